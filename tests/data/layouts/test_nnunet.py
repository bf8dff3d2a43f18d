"""Channels, labels and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from pfedsam.core.errors import DataError
from pfedsam.data.entries import further_sequences
from pfedsam.data.layouts import write_sites
from pfedsam.data.layouts.nnunet import LAYOUT
from pfedsam.data.manifest import read_site
from pfedsam.data.split import SplitOptions, split_site

PATIENTS = {"liver": {"liver_001": "", "liver_002": ""}}
CLASSES = {"liver": [1], "tumour": [2]}


@pytest.fixture
def source(tmp_path: Path, volume: Callable[..., None], values: np.ndarray) -> Path:
    root = tmp_path / "Dataset007_Liver"
    root.mkdir()
    labels = {"background": 0, "liver": 1, "tumour": 2, "ignore": 3}
    content = {"channel_names": {"0": "T1", "1": "T2"}, "labels": labels, "file_ending": ".nii.gz"}
    for name in ("liver_001", "liver_002"):
        for channel in ("0000", "0001"):
            volume(root / "imagesTr" / f"{name}_{channel}.nii.gz")
        volume(root / "labelsTr" / f"{name}.nii.gz", (values % 3).astype(np.uint8))
    (root / "dataset.json").write_text(json.dumps(content))
    return root


def test_sites_patients_and_classes_are_right(source: Path, imported: Callable[..., Path]) -> None:
    imported(LAYOUT, source, PATIENTS, CLASSES)


def test_a_pattern_keeps_the_scans_of_a_patient_in_one_part(source: Path, tmp_path: Path) -> None:
    """Dataset027_ACDC has two times of each heart, `patient001_frame01` and `patient001_frame12`."""
    for part, old in (("imagesTr", "liver_001_0000"), ("labelsTr", "liver_001")):
        for name in (f"patient{p:03d}_frame{t:02d}" for p in range(1, 9) for t in (1, 12)):
            (source / part / f"{old}.nii.gz".replace("liver_001", name)).write_bytes(
                (source / part / f"{old}.nii.gz").read_bytes()
            )
        for path in (source / part).glob("liver_*"):
            path.unlink()
    content = json.loads((source / "dataset.json").read_text())
    (source / "dataset.json").write_text(json.dumps(content | {"channel_names": {"0": "cine"}}))
    found = write_sites(LAYOUT, source, tmp_path / "out")
    assert found.patients == {"liver": 0}  # not known
    site = read_site("liver", tmp_path / "out" / "liver", patient_pattern="^(patient[0-9]+)_")
    assert len(site.cases) == 16
    assert len(site.patients()) == 8
    parts = {(case.id[: len("patient001")], case.split) for case in split_site(site, SplitOptions(), 0).cases}
    assert len(parts) == 8
    assert {part for _, part in parts} == {"train", "val", "test"}


@pytest.mark.parametrize(
    ("change", "message"),
    [({"labels": {"background": 0, "whole": "1"}}, r"label 'whole' as '1'; it must be an id"), (None, "no JSON")],
)
def test_a_description_that_cannot_be_used_is_named(
    change: dict[str, object] | None, message: str, source: Path, tmp_path: Path
) -> None:
    content = json.loads((source / "dataset.json").read_text())
    (source / "dataset.json").write_text("{" if change is None else json.dumps(content | change))
    with pytest.raises(DataError, match=message):
        write_sites(LAYOUT, source, tmp_path / "out")


def test_a_label_without_an_image_is_named(source: Path, tmp_path: Path) -> None:
    (source / "imagesTr" / "liver_002_0001.nii.gz").unlink()
    with pytest.raises(DataError, match=r"'liver_002'.*'liver_002_0001.nii.gz'"):
        write_sites(LAYOUT, source, tmp_path / "out")


def _data(source: Path, out: Path, **change: object) -> dict[str, object]:
    """The study's `data` after an import with a changed description."""
    content = json.loads((source / "dataset.json").read_text())
    (source / "dataset.json").write_text(json.dumps(content | change))
    found: dict[str, object] = yaml.safe_load(write_sites(LAYOUT, source, out).study.read_text())["data"]
    return found


def test_the_study_names_the_endings_of_the_sequences_so_that_predict_finds_them(source: Path, tmp_path: Path) -> None:
    channels = _data(source, tmp_path / "out")["volume"]["channels"]  # type: ignore[index]
    assert channels == ["_0000", "_0001"]
    for folder in (source / "imagesTr", tmp_path / "out" / "liver" / "images"):
        first = folder / "liver_001_0000.nii.gz"
        assert first.is_file()
        assert further_sequences(first, channels) == (folder / "liver_001_0001.nii.gz",)
        assert (folder / "liver_001_0001.nii.gz").is_file()
    one = _data(source, tmp_path / "one", channel_names={"0": "T1"})
    assert "volume" not in one


def test_ids_that_are_to_be_ignored_are_ignored(source: Path, tmp_path: Path) -> None:
    data = _data(source, tmp_path / "out")
    assert data["ignore"] == [3]
    assert "overlap" not in data


def test_regions_that_share_ids_overlap(source: Path, tmp_path: Path) -> None:
    regions = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3}
    data = _data(source, tmp_path / "out", labels=regions)
    assert data["classes"] == {"whole": [1, 2, 3], "core": [2, 3], "enhancing": [3]}
    assert data["overlap"] is True


def test_hidden_files_of_a_mac_are_no_cases(source: Path, tmp_path: Path) -> None:
    (source / "labelsTr" / "._liver_001.nii.gz").write_bytes(b"x")
    assert write_sites(LAYOUT, source, tmp_path / "out").cases == {"liver": 2}


def test_a_picture_in_colour_is_one_file_for_three_channels(
    tmp_path: Path, picture: Callable[..., None], ids: np.ndarray
) -> None:
    root = tmp_path / "Dataset120_Road"
    picture(root / "imagesTr" / "a_0000.png", np.zeros((6, 8, 3), np.uint8))
    picture(root / "labelsTr" / "a.png", ids)
    content = {"channel_names": {"0": "R", "1": "G", "2": "B"}, "labels": {"road": 255}, "file_ending": ".png"}
    (root / "dataset.json").write_text(json.dumps(content))
    out = write_sites(LAYOUT, root, tmp_path / "out").study.parent
    assert sorted(path.name for path in (out / "road" / "images").iterdir()) == ["a.png"]


def test_several_pictures_of_a_case_are_refused(tmp_path: Path, picture: Callable[..., None], ids: np.ndarray) -> None:
    root = tmp_path / "Dataset121_Two"
    for number in range(2):
        picture(root / "imagesTr" / f"a_{number:04d}.png", np.zeros((6, 8), np.uint8))
    picture(root / "labelsTr" / "a.png", ids)
    content = {"channel_names": {"0": "near", "1": "far"}, "labels": {"road": 255}, "file_ending": ".png"}
    (root / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"2 pictures \(\.png\) for each case"):
        write_sites(LAYOUT, root, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("ending", [".bmp", ".nrrd", ".mha", ".npz"])
def test_files_that_are_not_read_are_refused_before_anything_is_written(ending: str, tmp_path: Path) -> None:
    root = tmp_path / "Dataset120_Road"
    for name in (f"imagesTr/a_0000{ending}", f"labelsTr/a{ending}"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"BM")
    content = {"channel_names": {"0": "R", "1": "G", "2": "B"}, "labels": {"road": 1}, "file_ending": ending}
    (root / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(
        DataError, match=rf"file_ending as '\{ending}', and such files are not read; allowed: .*\.png.*\.nii\.gz"
    ):
        write_sites(LAYOUT, root, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        *(({"labels": value}, "labels as ") for value in (["x", 1], None, "x", {}, 5)),
        *(({"channel_names": value}, "channel_names as ") for value in (None, 5, {}, "T2")),
        *(({"file_ending": value}, "file_ending as ") for value in ("", "*", "/../x", None, 5, [".nii.gz"])),
        *(({"labels": {"x": value}}, "classes of the data set cannot be used") for value in (-1, 10**30)),
        ({"labels": {"": 1}}, "empty name"),
    ],
)
def test_a_description_of_another_form_is_refused_before_anything_is_written(
    change: dict[str, object], message: str, source: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message):
        _data(source, tmp_path / "out", **change)
    assert not (tmp_path / "out").exists()


def test_the_test_part_is_left_out_with_a_note(source: Path, tmp_path: Path, volume: Callable[..., None]) -> None:
    for name in ("a_0000", "a_0001", "._a_0000"):
        volume(source / "imagesTs" / f"{name}.nii.gz")
    volume(source / "labelsTs" / "a.nii.gz")
    found = write_sites(LAYOUT, source, tmp_path / "out")
    assert found.cases == {"liver": 2}
    (note,) = found.notes
    assert note.startswith("the test part is left out (2 file(s) in imagesTs and 1 file(s) in labelsTs)")


def test_a_key_that_is_given_twice_is_refused(source: Path, tmp_path: Path) -> None:
    (source / "dataset.json").write_text('{"file_ending": ".nii.gz", "labels": {"x": 1, "x": 2}}')
    with pytest.raises(DataError, match="the key 'x' twice"):
        write_sites(LAYOUT, source, tmp_path / "out")


def test_images_without_labels_and_further_channels_are_told(
    source: Path, tmp_path: Path, volume: Callable[..., None]
) -> None:
    for case in ("liver_001", "liver_002", "liver_003"):
        for number in range(4):
            volume(source / "imagesTr" / f"{case}_{number:04d}.nii.gz")
    content = json.loads((source / "dataset.json").read_text())
    names = dict(enumerate(("T1", "T2", "FLAIR", "DWI")))
    (source / "dataset.json").write_text(json.dumps(content | {"channel_names": names}))
    found = write_sites(LAYOUT, source, tmp_path / "out")
    assert found.without_mask == {"liver": ["liver_003"]}
    assert found.notes == ("of 4 channels the first 3 are taken; left out: DWI",)
