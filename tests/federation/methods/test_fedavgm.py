"""FedAvgM's server step against its two equations in plain Python, and its own options."""

import random

import pytest
import torch

from pfedsam.federation.bounds import change_norm
from pfedsam.federation.methods import METHODS, MethodOptions, configured, fedavgm, pfedsam
from pfedsam.federation.server import WeightedMean
from pfedsam.federation.update import Update


def test_it_is_the_papers_update_coordinate_by_coordinate() -> None:
    """Five rounds of three sites with 1, 2 and 5 cases, in floats of Python: v = beta v + Delta, x = x + v."""
    numbers = random.Random(0)
    x, v = [0.5, -2.0], [0.0, 0.0]
    server = fedavgm.MomentumStep(0.7)
    state = server.init({"w": torch.tensor(x, dtype=torch.float64)})
    cases = dict(zip("abc", (1, 2, 5), strict=True))
    for round_ in range(5):
        sites = {name: [value + numbers.gauss(0, 0.1) for value in x] for name in "abc"}
        for i in range(2):
            v[i] = 0.7 * v[i] + sum(cases[n] * (sites[n][i] - x[i]) for n in "abc") / 8
            x[i] += v[i]
        updates = [Update(n, round_, {"w": torch.tensor(w, dtype=torch.float64)}, cases[n]) for n, w in sites.items()]
        state = server.apply(state, updates)
        assert state.round == round_ + 1
        assert state.shared["w"].tolist() == pytest.approx(x, abs=1e-12)
        assert state.memory["v:w"].tolist() == pytest.approx(v, abs=1e-12)


def test_without_momentum_it_is_the_mean() -> None:
    server, received = fedavgm.MomentumStep(0.0), {"w": torch.tensor([1.0, -3.0])}
    sent = [Update("a", 0, {"w": torch.tensor([2.0, 1.0])}, 3), Update("b", 0, {"w": torch.tensor([-2.0, 5.0])}, 1)]
    assert server.apply(server.init(received), sent).shared["w"].tolist() == [1.0, 2.0]


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_no_round_moves_further_than_the_sites_are_told(momentum: float) -> None:
    """Sites whose changes have a norm of at most 1, always in one direction, growing, or back and forth."""
    server, direction = fedavgm.MomentumStep(momentum), torch.full((16,), 0.25, dtype=torch.float64)  # of norm 1
    for sizes in ([1.0] * 40, [1e-6 * 2**i for i in range(19)], [1.0, -1.0] * 5):
        state = server.init({"w": torch.zeros(16, dtype=torch.float64)})
        for size in sizes:
            after = server.apply(state, [Update("a", state.round, {"w": state.shared["w"] + size * direction}, 1)])
            assert change_norm(state.shared, after.shared) <= server.largest_change(1.0, 16) * (1 + 1e-9)
            state = after
    if momentum:  # the bound is reached, so it is not larger than needed
        state = server.init({"w": torch.zeros(16, dtype=torch.float64)})
        for _ in range(200):
            before, state = state, server.apply(state, [Update("a", 0, {"w": state.shared["w"] + direction}, 1)])
        assert change_norm(before.shared, state.shared) == pytest.approx(server.largest_change(1.0, 16))


def test_sites_train_and_share_as_in_fedavg(make) -> None:
    assert make("fedavgm").shared == make("fedavg").shared
    assert METHODS["fedavgm"].phases is METHODS["fedavg"].phases


def test_pfedsam_has_the_same_step_if_its_momentum_is_set() -> None:
    assert METHODS["pfedsam"].server == WeightedMean()
    assert pfedsam.configure(pfedsam.PFedSAMOptions(server_momentum=0.5)).server == fedavgm.MomentumStep(0.5)


def test_the_momentum_is_an_option() -> None:
    own = MethodOptions.model_validate({"fedavgm": {"momentum": 0.9}})
    assert configured("fedavgm", own).server == fedavgm.MomentumStep(0.9)
