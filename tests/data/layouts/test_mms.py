"""Two annotated times of each 4-D file become volumes."""

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from pfedsam.data.layouts import write_sites
from pfedsam.data.layouts.mms import LAYOUT

PATIENTS = {
    "centre_1": {"A0S9V9_ED": "A0S9V9", "A0S9V9_ES": "A0S9V9"},
    "centre_2": {"A1D0Q7_ED": "A1D0Q7", "A1D0Q7_ES": "A1D0Q7"},
}
CLASSES = {"left_ventricle": [1], "myocardium": [2], "right_ventricle": [3]}


@pytest.fixture
def source(tmp_path: Path, volume: Callable[..., None], values: np.ndarray) -> Path:
    root = tmp_path / "source"
    root.mkdir()
    times = np.stack([values + 100 * time for time in range(3)], axis=3)
    for code in ("A0S9V9", "A1D0Q7"):
        volume(root / "Training" / code / f"{code}_sa.nii.gz", times)
        volume(root / "Training" / code / f"{code}_sa_gt.nii.gz", (times % 4).astype(np.uint8))
    rows = "External code,VendorName,Vendor,Centre,ED,ES\nA0S9V9,Siemens,A,1,0,2\nA1D0Q7,Philips,B,2,1,2\n"
    (root / "info.csv").write_text(rows)
    return root


def test_sites_patients_and_classes_are_right(source: Path, imported: Callable[..., Path], values: np.ndarray) -> None:
    out = imported(LAYOUT, source, PATIENTS, CLASSES)
    for phase, time in (("ED", 1), ("ES", 2)):
        image = nib.load(out / "centre_2" / "images" / f"A1D0Q7_{phase}.nii.gz")
        assert np.array_equal(np.asarray(image.dataobj), values + 100 * time)
        assert np.allclose(image.affine, np.diag([1.5, 1.5, 8, 1]))


def test_masks_without_an_image_or_a_line_are_told(source: Path, tmp_path: Path, volume: Callable[..., None]) -> None:
    assert list(write_sites(LAYOUT, source, tmp_path / "before").notes) == []
    (source / "Training/A0S9V9/A0S9V9_sa.nii.gz").unlink()
    volume(source / "Training/B3/B3_sa_gt.nii.gz")
    assert list(write_sites(LAYOUT, source, tmp_path / "after").notes) == [
        "2 mask(s) without an image, or without a line in the table of the data set, are left out: "
        "Training/A0S9V9/A0S9V9_sa_gt.nii.gz, Training/B3/B3_sa_gt.nii.gz"
    ]
