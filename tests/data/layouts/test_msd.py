"""A task of the decathlon, with the hidden files that a Mac leaves."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pfedsam.data.layouts.msd import LAYOUT

PATIENTS = {"hippocampus": {"hippocampus_001": "hippocampus_001", "hippocampus_003": "hippocampus_003"}}
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
