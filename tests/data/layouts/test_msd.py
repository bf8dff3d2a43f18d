"""A task of the decathlon, with the hidden files that a Mac leaves."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pfedsam.core.errors import DataError
from pfedsam.data.layouts import write_sites
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


def test_the_sequences_that_are_not_read_are_told(source: Path) -> None:
    content = json.loads((source / "dataset.json").read_text())
    (source / "dataset.json").write_text(json.dumps(content | {"modality": {"0": "T2", "1": "ADC"}}))
    assert list(LAYOUT.notes(source)) == [
        "of 2 sequences the first (T2) is read; data.volume.frame in the study chooses another one"
    ]
