"""What is no layout is refused, and nothing that is there is overwritten."""

from dataclasses import replace
from pathlib import Path

import pytest

from pfedsam.core.errors import DataError, OptionError
from pfedsam.data.layouts import LAYOUTS, find_layout, write_sites
from pfedsam.data.layouts.base import FoundCase, Layout, MadeFile, site_name, with_masks


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
    assert list(with_masks(images, masks)) == [
        ("b", images[0], None),
        ("a", images[1], masks[0]),
        ("c", images[2], masks[1]),
    ]


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "source" / "abc"
    for name in ("images/abc.png", "masks/one.png"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"the picture 'abc\.png' cannot be read"):
        find_layout(None, tmp_path / "source")
    masks = tmp_path / "volumes" / "north"
    for name in ("images/a.nii.gz", "masks/a.nii.gz"):
        (masks / name).parent.mkdir(parents=True)
        (masks / name).write_bytes(b"no volume")
    with pytest.raises(DataError, match=r"'a\.nii\.gz' is damaged"):
        write_sites(LAYOUTS["folders"], tmp_path / "volumes", tmp_path / "out")


def test_two_files_of_one_name_are_refused() -> None:
    with pytest.raises(DataError, match=r"masks/ holds 'a\.png' and 'a\.tif'"):
        list(with_masks([Path("images/a.png")], [Path("masks/a.png"), Path("masks/a.tif")]))


def test_an_import_that_fails_leaves_a_folder_for_the_next_try(tmp_path: Path) -> None:
    def fail(path: Path) -> None:
        raise OSError(28, "No space left on device", str(path))

    damaged = MadeFile(".png", fail)
    image = tmp_path / "a.png"
    image.write_bytes(b"x")
    cases = [FoundCase("north", "a", None, (image,), image), FoundCase("north", "b", None, (image,), damaged)]
    (tmp_path / "source").mkdir()
    (tmp_path / "out").mkdir()
    broken = Layout("test", "", "", lambda _: iter(cases), lambda _: {"x": [1]})
    with pytest.raises(DataError, match="No space left"):
        write_sites(broken, tmp_path / "source", tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
    sound = replace(broken, find=lambda _: iter(cases[:1]))
    assert write_sites(sound, tmp_path / "source", tmp_path / "out").cases == {"north": 1}
    assert image.read_bytes() == b"x"


def test_a_site_cannot_have_the_name_of_the_study(tmp_path: Path) -> None:
    case = FoundCase("study.yaml", "a", None, (tmp_path / "a.png",), tmp_path / "a.png")
    layout = Layout("test", "", "", lambda _: iter([case]), lambda _: {"x": [1]})
    with pytest.raises(DataError, match=r"a site cannot be called 'study\.yaml'"):
        write_sites(layout, tmp_path, tmp_path / "out")


def test_names_of_sites_are_cut_to_the_length_of_one() -> None:
    assert site_name("\u00e9" * 300) == "\u00e9" * 64
    assert site_name("../a b") == "a_b"


@pytest.mark.parametrize("site", ["{source}/north", "../north", "..", "north ward", ""])
def test_a_site_whose_name_is_a_path_or_has_a_space_is_refused_before_anything_is_written(
    site: str, tmp_path: Path
) -> None:
    images = tmp_path / "source" / "north" / "images"
    images.mkdir(parents=True)
    (images / "a.png").write_bytes(b"x")
    # The import writes to the same name in a folder of the site, which is an error, and then removes the folder of the site.
    case = FoundCase(site.format(source=tmp_path / "source"), "a", None, (images / "a.png",), images / "a.png")
    layout = Layout("test", "", "", lambda _: iter([case]), lambda _: {"x": [1]})
    with pytest.raises(DataError, match="cannot name a folder"):
        write_sites(layout, tmp_path / "source", tmp_path / "out")
    assert (images / "a.png").read_bytes() == b"x"
    assert not (tmp_path / "out").exists()


def test_a_case_that_lacks_a_sequence_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    volume = tmp_path / "a.nii.gz"
    case = FoundCase("north", "p1", None, (volume, volume), volume, endings=("_t1", "_t2", "_flair"))
    layout = Layout("test", "", "", lambda _: iter([case]), lambda _: {"x": [1]})
    with pytest.raises(DataError, match=r"'north': the layout gives the case 'p1' 2 image\(s\) and 3 ending\(s\)"):
        write_sites(layout, tmp_path / "source", tmp_path / "out")
