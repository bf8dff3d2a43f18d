"""Frozen weights in bf16: what is trained stays in float32, and the masks stay what they were."""

from pathlib import Path

import pytest
import torch

from pfedsam.core import rng
from pfedsam.core.errors import OptionError
from pfedsam.federation.methods.pfedsam import METHOD
from pfedsam.model import numerics
from pfedsam.model.backbones.checkpoint import load_backbone
from pfedsam.model.backbones.compact import compact_config, new_network
from pfedsam.model.backbones.sam import SamBackbone
from pfedsam.model.build import build_personal
from pfedsam.model.options import ModelOptions
from pfedsam.model.partition import Partition
from pfedsam.model.personal import PersonalSam
from pfedsam.model.prefix import PrefixCache, PrefixOptions


@pytest.fixture(autouse=True)
def _any_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processors without bf16 emulate it: slow, but right."""
    monkeypatch.setattr(numerics, "fast_bfloat16", lambda _: True)


def make(precision: str, **changes: object) -> PersonalSam:
    options = ModelOptions.model_validate({"backbone": "sam-toy", "adapt_last": 1, "precision": precision, **changes})
    sam = new_network(compact_config("sam-toy"), rng.generator(0))
    return build_personal(SamBackbone(sam), options, 1, rng.generator(1)).eval()


def test_what_is_trained_has_the_same_names_and_stays_in_float32() -> None:
    exact, rounded = make("float32"), make("bfloat16")
    assert rounded.components() == exact.components()
    parameters = dict(rounded.named_parameters())
    for names in rounded.components().values():
        assert {parameters[name].dtype for name in names} == {torch.float32}
    placement = METHOD.placement(ModelOptions())
    frozen = Partition.of(rounded, rounded.components(), placement).frozen
    dtypes = {parameters[name].dtype for name in frozen if name.startswith("sam.vision_encoder.")}
    assert dtypes == {torch.bfloat16}


def test_shared_and_personal_model_start_equal_and_give_float32_logits() -> None:
    model, pixels = make("bfloat16"), torch.rand(2, 3, 64, 64, generator=rng.generator(2))
    logits = model(pixels)
    assert logits.dtype == torch.float32
    assert torch.equal(logits, model(pixels, personal=False))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_with_and_without_the_cache_the_bits_are_the_same(tmp_path: Path, dtype: str) -> None:
    model, pixels = make("bfloat16"), torch.rand(2, 3, 64, 64, generator=rng.generator(2))
    assert model.prefix(pixels).dtype == torch.bfloat16
    direct = model(pixels)
    cache = PrefixCache(tmp_path, "m", model.prefix_shape, PrefixOptions.model_validate({"dtype": dtype}))
    for _ in range(2):  # written, then read
        tokens = torch.stack([cache.tokens(image, model.prefix) for image in pixels])
        assert torch.equal(model.from_prefix(tokens), direct)


def test_masks_are_those_of_float32() -> None:
    images = torch.rand(2, 3, 256, 256, generator=rng.generator(2))
    images[:, :, 60:160, 80:180] += 0.8  # an object to find
    masks = []
    for precision in ("float32", "bfloat16"):
        options = ModelOptions.model_validate({"precision": precision})
        model = build_personal(load_backbone("sam-tiny"), options, 1, rng.generator(1)).eval()
        with torch.no_grad():
            masks.append(model(images.clamp(0, 1)) > 0)
    exact, rounded = masks
    assert 0 < exact.float().mean() < 1
    assert 2 * (exact & rounded).sum() / (exact.sum() + rounded.sum()) > 0.97


def test_auto_follows_the_processor_and_bfloat16_is_refused_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert make("auto").frozen_dtype == torch.bfloat16
    monkeypatch.setattr(numerics, "fast_bfloat16", lambda _: False)
    assert make("auto").frozen_dtype == torch.float32
    with pytest.raises(OptionError, match=r"set model\.precision to float32"):
        make("bfloat16")


@pytest.mark.parametrize(
    ("changes", "frozen"),
    [
        ({"norms": "local"}, torch.bfloat16),
        ({"local_lora": 2}, torch.bfloat16),
        ({"personal_copy": True}, torch.bfloat16),
        ({"adapters": {}}, torch.bfloat16),
        ({"train_encoder": True, "adapt_last": None}, torch.float32),  # nothing of the encoder is frozen then
    ],
)
def test_whatever_is_added_takes_tokens_in_bfloat16(changes: dict[str, object], frozen: torch.dtype) -> None:
    model, pixels = make("bfloat16", **changes), torch.rand(2, 3, 64, 64, generator=rng.generator(2))
    names = [name for members in model.components().values() for name in members]
    parameters = dict(model.named_parameters())
    for name in names:
        parameters[name].requires_grad_()
    model(pixels).sum().backward()
    assert model.frozen_dtype == frozen
    assert {parameters[name].dtype for name in names} == {torch.float32}
    assert all(parameters[name].grad.isfinite().all() for name in names if parameters[name].grad is not None)
