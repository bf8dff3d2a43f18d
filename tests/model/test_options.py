"""The options of the model: values of older versions, and options that can be compared and hashed."""

import pytest

from pfedsam.model.options import ModelOptions


@pytest.mark.parametrize(("stored", "now"), [(True, {"channels": None}), (False, None)])
def test_a_switch_for_the_image_in_an_older_configuration_means_the_same(stored: bool, now: object) -> None:
    assert ModelOptions.model_validate({"image_skip": stored}) == ModelOptions.model_validate({"image_skip": now})


def test_options_with_sizes_of_unets_are_hashed_like_equal_ones() -> None:
    content = {"unet": {"channels": [4, 8]}, "image_skip": {"channels": [4, 8]}}
    assert hash(ModelOptions.model_validate(content)) == hash(ModelOptions.model_validate(content))
    assert ModelOptions.model_validate(content) != ModelOptions()
