"""The fused product equals a loop over the chosen experts; balance and usage by hand."""

import pytest
import torch
import torch.nn.functional as F

from pfedsam.core import rng
from pfedsam.model.components.experts import ExpertOptions, LMoE
from pfedsam.model.components.routing import Routing


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_it_equals_a_loop_over_the_selected_experts(top_k: int) -> None:
    experts = LMoE(8, ExpertOptions(count=4, width=3, top_k=top_k), rng.generator(0))
    with torch.no_grad():
        experts.up.normal_(generator=rng.generator(1))
        experts.router.mul_(50)
    tokens = torch.randn(5, 8, generator=rng.generator(2))
    onto = torch.randn(5, 8, generator=rng.generator(3))
    added, routing = experts(onto, tokens)
    expected = torch.zeros(5, 8)
    for t, token in enumerate(tokens):
        gates = (experts.router @ token).softmax(0)
        for e in gates.topk(top_k).indices.tolist():
            rows = slice(3 * e, 3 * e + 3)
            hidden = F.gelu(experts.down[rows] @ token + experts.down_bias[rows])
            expected[t] += gates[e] * (experts.up[:, rows] @ hidden)
    torch.testing.assert_close(added, onto + expected, atol=1e-5, rtol=1e-5)
    assert routing.selected.sum(-1).tolist() == [top_k] * 5


def test_a_new_mixture_adds_nothing() -> None:
    onto = torch.randn(5, 8, generator=rng.generator(1))
    added, _ = LMoE(8, ExpertOptions(), rng.generator(0))(onto, torch.randn(5, 8, generator=rng.generator(2)))
    assert torch.equal(added, onto)


def test_usage_and_balance_by_hand() -> None:
    selected = torch.tensor([[True, False], [True, False], [True, False], [False, True]])
    probabilities = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.4, 0.6]])
    routing = Routing(probabilities, selected)
    assert routing.usage().tolist() == [0.75, 0.25]
    assert routing.balance_loss().item() == pytest.approx(2 * (0.75 * 0.7 + 0.25 * 0.3))


def test_more_chosen_than_there_are_is_refused() -> None:
    with pytest.raises(ValueError, match="only 2 experts"):
        ExpertOptions(count=2, top_k=3)
