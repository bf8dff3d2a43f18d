"""SAML as volumes: two zones of the prostate are one class, HCRUDB is I2CVB."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pfedsam.data.layouts import write_sites
from pfedsam.data.layouts.saml import LAYOUT

PATIENTS = {"BIDMC": {"Case00": "Case00"}, "I2CVB": {"Case01": "Case01", "Case02": "Case02"}}
CLASSES = {"prostate": [1, 2]}


@pytest.fixture
def source(tmp_path: Path, volume: Callable[..., None], values: np.ndarray) -> Path:
    root = tmp_path / "source"
    root.mkdir()
    for site, name in (("BIDMC", "Case00"), ("HCRUDB", "Case01"), ("HCRUDB", "Case02")):
        volume(root / site / f"{name}.nii.gz")
        volume(root / site / f"{name}_segmentation.nii.gz", (values > 9).astype(np.uint8))
    volume(root / "UCL" / "Case09.nii.gz")  # without a mask: no case
    return root


def test_sites_patients_and_classes_are_right(source: Path, imported: Callable[..., Path]) -> None:
    imported(LAYOUT, source, PATIENTS, CLASSES)


def test_names_in_other_case_are_found_and_images_without_a_mask_are_told(
    source: Path, tmp_path: Path, volume: Callable[..., None], values: np.ndarray
) -> None:
    volume(source / "hcrudb" / "Case03.nii.gz")
    volume(source / "hcrudb" / "case03_Segmentation.nii.gz", (values > 9).astype(np.uint8))
    found = write_sites(LAYOUT, source, tmp_path / "out")
    assert found.cases == {"BIDMC": 1, "I2CVB": 3}
    assert found.without_mask == {"UCL": ["Case09"]}


def test_masks_without_an_image_are_told(source: Path, tmp_path: Path) -> None:
    assert list(write_sites(LAYOUT, source, tmp_path / "before").notes) == []
    (source / "HCRUDB/Case02.nii.gz").unlink()
    assert list(write_sites(LAYOUT, source, tmp_path / "after").notes) == [
        "1 mask(s) without an image, or without a line in the table of the data set, are left out: HCRUDB/Case02_segmentation.nii.gz"
    ]
