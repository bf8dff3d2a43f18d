"""What is no layout is refused, and nothing that is there is overwritten."""

from pathlib import Path

import pytest

from pfedsam.core.errors import DataError, OptionError
from pfedsam.data.layouts import LAYOUTS, find_layout, write_sites
from pfedsam.data.layouts.base import with_masks


def test_every_layout_is_tried() -> None:
    tested = {path.stem.removeprefix("test_").replace("_", "-") for path in Path(__file__).parent.glob("test_*.py")}
    assert tested - {"base"} == set(LAYOUTS)


def test_what_is_no_layout_is_refused_with_what_is_looked_for(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(OptionError, match=r"not clear.*--layout: saml"):
        find_layout(None, tmp_path / "empty")
    with pytest.raises(OptionError, match=r"no layout 'brats'; known: saml"):
        find_layout("brats", tmp_path / "empty")
    with pytest.raises(DataError, match=r"nothing of the layout 'acdc'; it looks for training/patient001"):
        write_sites(LAYOUTS["acdc"], tmp_path / "empty", tmp_path / "out")
    with pytest.raises(DataError, match="does not exist"):
        write_sites(LAYOUTS["acdc"], tmp_path / "none", tmp_path / "out")


def test_a_folder_that_is_not_empty_keeps_what_it_has(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("kept")
    with pytest.raises(DataError, match="not empty"):
        write_sites(LAYOUTS["acdc"], tmp_path / "source", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_images_are_paired_with_the_masks_of_the_same_stem() -> None:
    images = [Path("images/b.png"), Path("images/a.jpg"), Path("images/c.nii.gz")]
    masks = [Path("masks/a.png"), Path("masks/c.nii.gz"), Path("masks/d.png")]
    assert list(with_masks(images, masks)) == [("a", images[1], masks[0]), ("c", images[2], masks[1])]
