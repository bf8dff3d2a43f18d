"""What every model of a federation says about its components."""

from typing import ClassVar

from toy_model import toy_personal

from pfedsam.model.segmenter import Declared, Segmenter


class Plain(Declared):
    groups = ("head",)


class Own(Declared):
    groups = ("experts", "absent")
    local_only = True
    pretrained = True


class Tiny(Segmenter):
    declarations: ClassVar = (Plain(), Own())
    _components: ClassVar = {"head": ("a", "b"), "experts": ("c",)}


def test_groups_of_components_that_the_model_has() -> None:
    model = Tiny()
    assert model.groups(lambda part: part.local_only) == {"experts"}
    assert model.groups(lambda part: True) == {"head", "experts"}
    assert model.pretrained() == {"c"}


def test_components_are_a_copy() -> None:
    model = Tiny()
    model.components().clear()
    assert set(model.components()) == {"head", "experts"}


def test_the_personal_sam_is_one() -> None:
    model = toy_personal()
    assert isinstance(model, Segmenter)
    assert "experts" in model.groups(lambda part: part.local_only)
