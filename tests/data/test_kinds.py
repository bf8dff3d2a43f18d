"""The kind of the training images is known from the files in a site's folder, and another kind is a warning."""

from pathlib import Path

import pytest

from pfedsam.data.intensity import RANGE
from pfedsam.data.kinds import joins_other_kind, other_kind, trained_on_volumes
from pfedsam.data.sequences import SEQUENCES


def test_the_kind_is_read_from_the_files_of_a_site(tmp_path: Path) -> None:
    assert trained_on_volumes(tmp_path) is None
    (tmp_path / RANGE).touch()
    assert trained_on_volumes(tmp_path) is False
    (tmp_path / SEQUENCES).touch()
    assert trained_on_volumes(tmp_path) is True


@pytest.mark.parametrize("trained", [True, False, None])
@pytest.mark.parametrize("volume", [True, False])
def test_only_the_other_kind_is_a_warning(trained: bool | None, volume: bool) -> None:
    said, joins = other_kind("north", trained, volume=volume), joins_other_kind("new", trained, volume=volume)
    if trained in (None, volume):
        assert said is joins is None
        return
    kinds = ("volumes (NIfTI or DICOM)", "pictures (PNG, JPEG or TIFF)")
    first, second = kinds if trained else reversed(kinds)
    assert said is not None
    assert f"the model of site 'north' was trained on {first} and is used on {second}" in said
    assert joins is not None
    assert f"site 'new' has {second}, and the federation was trained on {first}" in joins
