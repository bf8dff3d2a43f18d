"""A component whose parameters could not be trained, stored or sent is refused when it is attached."""

import pytest
import torch
from torch import nn
from toy_model import toy_backbone

from pfedsam.core import rng
from pfedsam.core.errors import PartitionError
from pfedsam.model import build
from pfedsam.model.build import build_personal, build_segmenter
from pfedsam.model.components.base import Assembly, Component
from pfedsam.model.options import ModelOptions

OPTIONS = ModelOptions(adapt_last=1)


class Mine(Component):
    """A component as a user would write it, with layers of torch and their own initial values."""

    groups = ("mine",)

    def attach(self, assembly: Assembly) -> dict[str, list[str]]:
        return {"mine": assembly.add("mine", nn.Linear(4, 4))}


class OtherGroup(Mine):
    groups = ("my_layers",)


class TakenGroup(Mine):
    groups = ("experts",)

    def attach(self, assembly: Assembly) -> dict[str, list[str]]:
        return {"experts": assembly.add("mine", nn.Linear(4, 4))}


class HalfNamed(Mine):
    def attach(self, assembly: Assembly) -> dict[str, list[str]]:
        return {"mine": assembly.add("mine", nn.Linear(4, 4))[:1]}


class WithBatchNorm(Mine):
    def attach(self, assembly: Assembly) -> dict[str, list[str]]:
        return {"mine": assembly.add("mine", nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)))}


class WithDropout(Mine):
    def attach(self, assembly: Assembly) -> dict[str, list[str]]:
        return {"mine": assembly.add("mine", nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.1)))}


class Sound(Mine):
    def attach(self, assembly: Assembly) -> dict[str, list[str]]:
        layers = nn.Sequential(nn.Conv2d(3, 4, 1), nn.InstanceNorm2d(4, affine=True), nn.Dropout(0.0))
        return {"mine": assembly.add("mine", layers)}


def _with(part: Component, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = build.components_of
    monkeypatch.setattr(build, "components_of", lambda options: [*ours(options), part])


@pytest.mark.parametrize(
    ("part", "says"),
    [
        (OtherGroup(), "OtherGroup declares the groups 'my_layers', and its `attach` returns 'mine'"),
        (TakenGroup(), "TakenGroup has the group 'experts', as another component has"),
        (HalfNamed(), r"HalfNamed adds 'mine\.bias', which is in none of its groups and would never be trained"),
        (WithBatchNorm(), "WithBatchNorm adds the layer BatchNorm2d"),
        (WithDropout(), "WithDropout adds the layer Dropout"),
    ],
)
def test_a_component_that_could_not_be_trained_is_refused(
    part: Component, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _with(part, monkeypatch)
    with pytest.raises(PartitionError, match=says):
        build_personal(toy_backbone(), OPTIONS, 1, rng.generator(1))


def test_a_sound_component_is_attached(monkeypatch: pytest.MonkeyPatch) -> None:
    _with(Sound(), monkeypatch)
    found = build_personal(toy_backbone(), OPTIONS, 1, rng.generator(1)).components()["mine"]
    assert found == ("mine.0.weight", "mine.0.bias", "mine.1.weight", "mine.1.bias")


def test_layers_of_torch_start_with_the_same_values_in_every_process(monkeypatch: pytest.MonkeyPatch) -> None:
    _with(Mine(), monkeypatch)
    backbones = iter([toy_backbone() for _ in range(3)])
    monkeypatch.setattr(build, "load_backbone", lambda *given, **options: next(backbones))
    values = []
    for process in (1, 2):
        torch.manual_seed(process)
        before = torch.get_rng_state()
        values.append(build_segmenter(OPTIONS, 1, rng.generator(1)).model.get_parameter("mine.weight").clone())
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(*values)
    assert not torch.equal(values[0], build_segmenter(OPTIONS, 1, rng.generator(2)).model.get_parameter("mine.weight"))
