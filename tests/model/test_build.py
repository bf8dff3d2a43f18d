"""Options become components, and components a personal SAM."""

import pytest
from toy_model import toy_backbone, toy_personal

from pfedsam.core import rng
from pfedsam.core.errors import OptionError
from pfedsam.model.build import build_personal, build_segmenter, components_of, present
from pfedsam.model.options import ModelOptions


def options(**changes: object) -> ModelOptions:
    return ModelOptions.model_validate({"backbone": "sam-toy", **changes})


def test_what_is_switched_off_is_not_there() -> None:
    bare = options(lora=None, experts=None, output_layers="shared")
    assert present(bare) == {"class_tokens", "output_layers", "decoder", "no_prompt"}
    assert present(bare, local_only=True) == frozenset()
    more = options(norms="local", local_lora=2, personal_copy=True)
    assert present(more, local_only=True) >= {"norms", "local_lora", "personal_copy", "experts"}


def test_components_stand_after_those_whose_parameters_they_replace() -> None:
    found = [type(c).__name__ for c in components_of(options(norms="local", local_lora=2, personal_copy=True))]
    for earlier, later in [
        ("OutputLayers", "PersonalOutputLayers"),
        ("Lora", "PersonalCopy"),
        ("PersonalOutputLayers", "Norms"),
        ("PersonalCopy", "LocalLora"),
    ]:
        assert found.index(earlier) < found.index(later)


def test_every_parameter_group_is_in_the_model() -> None:
    model = toy_personal(norms="local", local_lora=2)
    names = {name for name, _ in model.named_parameters()}
    assert present(options(adapt_last=1, norms="local", local_lora=2)) == set(model.components())
    assert all(name in names for group in model.components().values() for name in group)


def test_more_blocks_than_there_are() -> None:
    with pytest.raises(OptionError, match=r"adapt_last is 3, but this backbone has 2 encoder blocks: give 1 to 2"):
        build_personal(toy_backbone(), options(adapt_last=3), 1, rng.generator(1))


def test_a_unet_in_place_of_sam() -> None:
    chosen = options(unet={"channels": [4, 8], "residual_units": 1}, image_size=32)
    assert present(chosen) == {"unet", "unet_norms"}
    first, again = (build_segmenter(chosen, 2, rng.generator(3)) for _ in range(2))
    other = build_segmenter(chosen, 2, rng.generator(4))
    assert first.model.image_size == 32
    assert first.start == again.start != other.start
