"""A client round over frozen weights in bf16: the loss falls, and what changes has the names and types of a round in float32."""

from pathlib import Path

import pytest
import torch

from pfedsam.core import rng
from pfedsam.data.examples import Example
from pfedsam.data.manifest import Case
from pfedsam.data.transforms import AugmentOptions, Frame
from pfedsam.federation.methods.pfedsam import METHOD
from pfedsam.model import numerics
from pfedsam.model.backbones.compact import compact_config, new_network
from pfedsam.model.backbones.sam import SamBackbone
from pfedsam.model.build import build_personal
from pfedsam.model.options import ModelOptions
from pfedsam.model.partition import Partition
from pfedsam.model.personal import PersonalSam
from pfedsam.model.prefix import PrefixCache, PrefixOptions
from pfedsam.training.client_round import ClientState, client_round
from pfedsam.training.options import TrainingOptions
from pfedsam.training.site_data import SiteData


def site(folder: Path, model: PersonalSam) -> SiteData:
    """Four images of noise with a bright square; the square is the label."""
    frame, examples = Frame.of((64, 64), 64), []
    for i in range(4):
        pixels = torch.rand(3, 64, 64, generator=rng.generator(i, "image")) * 0.3
        labels = torch.zeros(64, 64, dtype=torch.uint8)
        labels[8 * i : 8 * i + 32, 16:48] = 1
        pixels[:, labels > 0] += 0.6
        examples.append(Example(Case("s", str(i), Path(), Path(), str(i)), pixels, labels, frame))
    cache = PrefixCache(folder, "m", model.prefix_shape, PrefixOptions(dtype="bfloat16"))
    return SiteData("s", examples, cache, AugmentOptions(views=1), 0)


def test_a_round_in_bfloat16(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numerics, "fast_bfloat16", lambda _: True)
    options = ModelOptions.model_validate({"backbone": "sam-toy", "adapt_last": 1, "precision": "bfloat16"})
    model = build_personal(
        SamBackbone(new_network(compact_config("sam-toy"), rng.generator(0))), options, 1, rng.generator(1)
    ).eval()
    partition = Partition.of(model, model.components(), METHOD.placement(options))
    training = TrainingOptions(
        rounds=2, steps_per_round=24, batch_size=4, phases="decoupled", optimizer={"learning_rate": 4e-3}
    )
    start = {name: value.clone() for name, value in model.state_dict().items()}
    shared, state, losses = partition.select(model, "shared"), ClientState(partition.select(model, "local")), []
    for round_ in range(2):
        result = client_round(
            model,
            partition,
            site(tmp_path, model),
            METHOD.phases(training),
            shared=shared,
            state=state,
            round_=round_,
            options=training,
            balance=0.01,
        )
        shared, state = result.shared, result.state
        losses.append(result.losses)
    assert set(result.shared) == set(partition.shared)
    assert set(state.local) == set(partition.local)
    kept = [*result.shared.values(), *state.local.values(), *state.optimizer.values()]
    assert {value.dtype for value in kept} == {torch.float32}
    for phase in ("global", "local"):
        assert losses[1][phase]["segmentation"] < 0.95 * losses[0][phase]["segmentation"]
    now = model.state_dict()
    assert all(torch.equal(now[name], start[name]) for name in partition.frozen)
