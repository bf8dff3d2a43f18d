"""Institutions come from the table."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from pfedsam.core.errors import DataError
from pfedsam.data.entries import further_sequences
from pfedsam.data.layouts import write_sites
from pfedsam.data.layouts.fets import LAYOUT

PATIENTS = {
    "institution_1": {"FeTS2022_00000": "FeTS2022_00000", "FeTS2022_00002": "FeTS2022_00002"},
    "institution_18": {"FeTS2022_00003": "FeTS2022_00003"},
}
CLASSES = {"necrotic_core": [1], "edema": [2], "enhancing_tumour": [4]}


@pytest.fixture
def source(tmp_path: Path, volume: Callable[..., None]) -> Path:
    root = tmp_path / "source"
    root.mkdir()
    rows = ["Partition_ID,Subject_ID", "1,FeTS2022_00000", "1,FeTS2022_00002", "18,FeTS2022_00003"]
    (root / "partitioning_1.csv").write_text("\n".join(rows))
    for row in rows[1:]:
        name = row.partition(",")[2]
        for kind in ("t1", "t1ce", "t2", "flair", "seg"):
            volume(root / name / f"{name}_{kind}.nii.gz")
    return root


def test_sites_patients_and_classes_are_right(source: Path, imported: Callable[..., Path]) -> None:
    imported(LAYOUT, source, PATIENTS, CLASSES)


def test_the_study_names_the_endings_of_the_sequences_so_that_predict_finds_them(source: Path, tmp_path: Path) -> None:
    study = write_sites(LAYOUT, source, tmp_path / "out").study
    channels = yaml.safe_load(study.read_text())["data"]["volume"]["channels"]
    assert channels == ["_t1ce", "_t2", "_flair"]
    name = "FeTS2022_00000"
    for folder in (source / name, tmp_path / "out" / "institution_1" / "images"):
        paths = [folder / f"{name}{ending}.nii.gz" for ending in channels]
        assert further_sequences(paths[0], channels) == tuple(paths[1:])
        assert all(path.is_file() for path in paths)


def test_a_patient_without_one_of_the_sequences_is_named(source: Path, tmp_path: Path) -> None:
    (source / "FeTS2022_00002" / "FeTS2022_00002_flair.nii.gz").unlink()
    with pytest.raises(DataError, match=r"'FeTS2022_00002' has no 'FeTS2022_00002_flair\.nii\.gz'"):
        write_sites(LAYOUT, source, tmp_path / "out")


def test_masks_without_a_line_in_the_table_are_told(source: Path, tmp_path: Path) -> None:
    (
        source / "FeTS2022_00003" / "._FeTS2022_00003_seg.nii.gz"
    ).touch()  # hidden files, as macOS adds them, are no masks
    assert list(write_sites(LAYOUT, source, tmp_path / "before").notes) == []
    table = source / "partitioning_1.csv"
    table.write_text(table.read_text().replace("\n18,FeTS2022_00003", ""))
    assert list(write_sites(LAYOUT, source, tmp_path / "after").notes) == [
        "1 mask(s) without an image, or without a line in the table of the data set, are left out: FeTS2022_00003/FeTS2022_00003_seg.nii.gz"
    ]
