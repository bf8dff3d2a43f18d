"""FedProx: FedAvg's shared set, and steps that stay nearer to what was received."""

import pytest
import torch

from pfedsam.federation.methods import fedprox
from pfedsam.training.options import TrainingOptions


def test_what_is_averaged_is_that_of_fedavg(make) -> None:
    assert make("fedprox").shared == make("fedavg").shared
    assert make("fedprox").local == set()


def test_mu_is_the_weight_of_the_pull() -> None:
    assert fedprox.configure(fedprox.FedProxOptions(mu=0.7)).phases(TrainingOptions())[0].proximal == 0.7
    assert fedprox.METHOD.phases(TrainingOptions())[0].proximal == 0.01


def test_without_mu_it_is_fedavg_to_the_bit(make, train) -> None:
    first, second = train(make("fedavg")).shared, train(make("fedprox", own={"mu": 0})).shared
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("mu", [10.0])
def test_the_pull_shortens_the_way_and_is_reported(mu, make, train) -> None:
    def way(name: str, own: dict[str, float] | None = None) -> tuple[float, dict[str, float]]:
        made = make(name, own=own)
        before = made.values()
        result = train(made)
        moved = sum((value - before[n]).square().sum().item() for n, value in result.shared.items())
        return moved, result.losses["global"]

    free, held = way("fedavg"), way("fedprox", {"mu": mu})
    assert held[0] < 0.8 * free[0]
    assert held[1]["total"] == pytest.approx(held[1]["segmentation"] + mu / 2 * held[1]["proximal"], rel=1e-5)
