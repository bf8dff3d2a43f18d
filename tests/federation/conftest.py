import pytest
import torch

from pfedsam.federation.update import Update, UpdateSpec

REGISTERED = {"east": 10, "north": 30, "south": 20, "west": 40}


@pytest.fixture
def registered():
    return dict(REGISTERED)


@pytest.fixture
def updates():
    """One sound update of each site, for round 3, with values of very different size."""
    generator = torch.Generator().manual_seed(5)
    return [
        Update(
            site=site,
            round=3,
            tensors={
                "lora.a": torch.randn(4, 3, generator=generator) * 10.0**place,
                "lora.b": torch.randn(3, 4, generator=generator),
                "token": torch.randn(2, generator=generator).to(torch.bfloat16),
            },
            cases=cases,
        )
        for place, (site, cases) in enumerate(REGISTERED.items())
    ]


@pytest.fixture
def spec(updates):
    return UpdateSpec.of(updates[0].tensors)
