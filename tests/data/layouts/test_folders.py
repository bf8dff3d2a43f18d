"""What has our form already, with and without a manifest."""

import csv
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from mask_files import write_ct, write_seg_of
from PIL import Image

from pfedsam.core.errors import DataError
from pfedsam.data.layouts import write_sites
from pfedsam.data.layouts.folders import LAYOUT
from pfedsam.data.manifest import read_site

PATIENTS = {"north": {"a": "", "b": ""}, "south_side": {"c": ""}}
CLASSES = {"class_1": [1], "class_2": [2], "class_255": [255]}


@pytest.fixture
def source(tmp_path: Path, volume: Callable[..., None], picture: Callable[..., None], values: np.ndarray) -> Path:
    root = tmp_path / "source"
    root.mkdir()
    for name in ("a", "b"):
        picture(root / "north" / "images" / f"{name}.png")
        picture(root / "north" / "masks" / f"{name}.png")
    volume(root / "south side" / "images" / "c.nii.gz")
    volume(root / "south side" / "masks" / "c.nii.gz", (values % 3).astype(np.uint8))
    return root


def test_sites_patients_and_classes_are_right(source: Path, imported: Callable[..., Path]) -> None:
    imported(LAYOUT, source, PATIENTS, CLASSES)


def _rows(out: Path, site: str) -> list[dict[str, str]]:
    return list(csv.DictReader((out / site / "manifest.csv").read_text().splitlines()))


def test_the_parts_of_one_data_set_are_no_sites(source: Path, tmp_path: Path) -> None:
    (source / "north").rename(source / "Train")
    assert write_sites(LAYOUT, source, tmp_path / "one").cases == {"Train": 2, "south_side": 1}
    (source / "south side").rename(source / "valid")
    with pytest.raises(
        DataError, match=r"the folders 'Train', 'valid' are parts .* one site whose manifest\.csv has the column split"
    ):
        write_sites(LAYOUT, source, tmp_path / "two")


def test_a_manifest_keeps_its_patients_split_and_spacing(
    tmp_path: Path, picture: Callable[..., None], ids: np.ndarray
) -> None:
    root = tmp_path / "source" / "north"
    for number, part in enumerate(("images", "images", "masks", "masks")):
        picture(root / part / f"{number % 2}.png", ids)
    table = ("image,mask,patient,split,case,spacing", "images/0.png,masks/0.png,p,train,left,0.5x0.25")
    (root / "manifest.csv").write_text("\n".join([*table, "images/1.png,masks/1.png,p,train,right,"]))
    out = write_sites(LAYOUT, tmp_path / "source", tmp_path / "out")
    assert out.patients == {"north": 1}
    before, after = read_site("north", root), read_site("north", tmp_path / "out" / "north")
    for old, new in zip(before.cases, after.cases, strict=True):
        assert (new.id, new.patient, new.split, new.spacing_mm) == (old.id, "p", "train", old.spacing_mm)
    assert [case.spacing_mm for case in after.cases] == [(0.5, 0.25), None]


def test_a_lost_spacing_and_a_series_are_kept(tmp_path: Path, volume: Callable[..., None]) -> None:
    root = tmp_path / "source" / "north"
    volume(root / "a.nii.gz")
    volume(root / "b.nii.gz", np.ones((4, 5, 3), np.uint8))
    (root / "manifest.csv").write_text("image,mask,patient,spacing,series\na.nii.gz,b.nii.gz,p,unknown,2\n")
    write_sites(LAYOUT, tmp_path / "source", tmp_path / "out")
    (row,) = _rows(tmp_path / "out", "north")
    assert (row["patient"], row["spacing"], row["series"]) == ("p", "unknown", "2")


def test_what_is_left_out_is_told(source: Path, picture: Callable[..., None], tmp_path: Path) -> None:
    picture(source / "north" / "masks" / "alone.png")
    (source / "north" / "images" / "x.bmp").write_bytes(b"x")
    (source / "raw").mkdir()
    (source / ".hidden" / "images").mkdir(parents=True)
    first, second = write_sites(LAYOUT, source, tmp_path / "out").notes
    assert first.startswith("the folder 'raw' is left out")
    assert "2 file(s)" in second
    assert "'masks/alone.png', 'images/x.bmp'" in second


def test_two_folders_that_would_be_one_site_are_refused(source: Path, tmp_path: Path) -> None:
    (source / "north").rename(source / "south_side")
    with pytest.raises(DataError, match=r"'south side' and 'south_side' would both become the site 'south_side'"):
        write_sites(LAYOUT, source, tmp_path / "out")


@pytest.mark.parametrize("name", ["c;0", "c\n0", "c\\0", " c", "c\u2028d"])
def test_a_name_that_no_manifest_can_hold_is_refused(name: str, tmp_path: Path, picture: Callable[..., None]) -> None:
    picture(tmp_path / "source" / "north" / "images" / f"{name}.png")
    picture(tmp_path / "source" / "north" / "masks" / f"{name}.png")
    with pytest.raises(DataError, match=r"cannot be listed in manifest\.csv.*rename its files"):
        write_sites(LAYOUT, tmp_path / "source", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("second", "message"),
    [(b"a.tif", r"two masks, 'a\.png' and 'a\.tif'"), (b"\xff.png", "not UTF-8")],
)
def test_files_that_data_check_refuses_are_refused(source: Path, tmp_path: Path, second: bytes, message: str) -> None:
    masks = source / "north" / "masks"
    Path(os.fsdecode(os.path.join(os.fsencode(masks), second))).write_bytes((masks / "a.png").read_bytes())
    with pytest.raises(DataError, match=message):
        write_sites(LAYOUT, source, tmp_path / "out")


def test_a_mask_in_jpeg_is_refused(source: Path, tmp_path: Path, ids: np.ndarray) -> None:
    (source / "north" / "masks" / "a.png").unlink()
    Image.fromarray(ids).save(source / "north" / "masks" / "a.jpg")
    with pytest.raises(DataError, match=r"site 'north', case 'a': its mask 'a\.jpg' is a JPEG"):
        write_sites(LAYOUT, source, tmp_path / "out")


def test_dicom_folders_are_taken_with_their_segmentations(tmp_path: Path) -> None:
    root = tmp_path / "source" / "north"
    image = write_ct(root / "images" / "a")
    pixels = np.zeros((5, 6, 8), np.uint8)  # slice, row, column
    pixels[0, 1:3, 2:4] = 1
    (root / "masks").mkdir()
    write_seg_of(root / "masks" / "a.dcm", image, pixels)
    found = write_sites(LAYOUT, tmp_path / "source", tmp_path / "out")
    assert (found.cases, found.notes) == ({"north": 1}, ())
    assert yaml.safe_load(found.study.read_text())["data"]["classes"] == {"class_1": [1]}
    (case,) = read_site("north", tmp_path / "out" / "north").cases
    assert (case.id, case.volume) == ("a", True)
