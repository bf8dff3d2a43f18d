"""A task of the decathlon, with the hidden files that a Mac leaves."""

import json
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import yaml

from pfedsam.core.errors import DataError
from pfedsam.data.layouts import find_layout, write_sites
from pfedsam.data.layouts.msd import LAYOUT

PATIENTS = {"hippocampus": {"hippocampus_001": "", "hippocampus_003": ""}}
CLASSES = {"Anterior": [1], "Posterior": [2]}


@pytest.fixture
def source(tmp_path: Path, volume: Callable[..., None], values: np.ndarray) -> Path:
    root = tmp_path / "source"
    root.mkdir()
    for name in ("hippocampus_001", "hippocampus_003"):
        volume(root / "imagesTr" / f"{name}.nii.gz")
        volume(root / "labelsTr" / f"{name}.nii.gz", (values % 3).astype(np.uint8))
        volume(root / "imagesTr" / f"._{name}.nii.gz")  # as a Mac leaves them
    labels = {"0": "background", "1": "Anterior", "2": "Posterior"}
    content = {"name": "Hippocampus", "modality": {"0": "MRI"}, "labels": labels, "training": []}
    (root / "dataset.json").write_text(json.dumps(content))
    return root


def test_sites_patients_and_classes_are_right(source: Path, imported: Callable[..., Path]) -> None:
    imported(LAYOUT, source, PATIENTS, CLASSES)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        *(({"labels": value}, "labels as ") for value in (["b", "x"], None, {}, 5)),
        *(({"modality": value}, "modality as ") for value in (None, 5, "MR", ["MR", "CT"])),
        ({"labels": {"9" * 5000: "x"}}, "numbers a label '999"),
        ({"labels": {"\u00b9": "x"}}, "numbers a label"),
        ({"labels": {"1": None}}, "calls the label 1 None"),
    ],
)
def test_a_description_of_another_form_is_refused_before_anything_is_written(
    change: dict[str, object], message: str, source: Path, tmp_path: Path
) -> None:
    content = json.loads((source / "dataset.json").read_text())
    (source / "dataset.json").write_text(json.dumps(content | change))
    with pytest.raises(DataError, match=message) as refused:
        write_sites(LAYOUT, source, tmp_path / "out")
    assert len(str(refused.value)) < 300
    assert not (tmp_path / "out").exists()


def test_two_ids_of_one_name_are_one_class(source: Path) -> None:
    content = json.loads((source / "dataset.json").read_text())
    labels = {"0": "background", "1": "tumour", "2": "tumour"}
    (source / "dataset.json").write_text(json.dumps(content | {"labels": labels}))
    assert LAYOUT.classes(source) == {"tumour": [1, 2]}


def test_a_folder_of_nnunet_version_1_is_read_with_its_channels(
    tmp_path: Path, volume: Callable[..., None], values: np.ndarray
) -> None:
    """It has the description of the decathlon and the file names of nnU-Net."""
    root = tmp_path / "Task027_ACDC"
    root.mkdir()
    for name in ("p1", "p2", "p3"):
        for channel in range(4):
            volume(root / "imagesTr" / f"{name}_{channel:04d}.nii.gz", values + channel)
    for name in ("p1", "p2"):
        volume(root / "labelsTr" / f"{name}.nii.gz", (values % 2).astype(np.uint8))
    names = {str(number): name for number, name in enumerate(("T1", "T2", "FLAIR", "DWI"))}
    labels = {"0": "background", "1": "RV"}
    (root / "dataset.json").write_text(
        json.dumps({"name": "ACDC", "modality": names, "labels": labels, "training": []})
    )
    assert find_layout(None, root) is LAYOUT
    found = write_sites(LAYOUT, root, tmp_path / "out")
    assert found.cases == {"acdc": 2}
    assert found.without_mask == {"acdc": ["p3"]}
    assert found.notes == ("of 4 channels the first 3 are taken; left out: DWI",)
    data = yaml.safe_load(found.study.read_text())["data"]
    assert data["classes"] == {"RV": [1]}
    assert data["volume"] == {"channels": ["_0000", "_0001", "_0002"]}
    for channel in range(3):
        read = nib.load(tmp_path / "out" / "acdc" / "images" / f"p2_{channel:04d}.nii.gz")
        np.testing.assert_array_equal(np.asanyarray(read.dataobj), values + channel)


def test_the_sequences_that_are_not_read_are_told(source: Path) -> None:
    content = json.loads((source / "dataset.json").read_text())
    (source / "dataset.json").write_text(json.dumps(content | {"modality": {"0": "T2", "1": "ADC"}}))
    assert list(LAYOUT.notes(source)) == [
        "of 2 sequences the first (T2) is read; data.volume.frame in the study chooses another one"
    ]
