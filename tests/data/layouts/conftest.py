"""Published layouts, rebuilt small as their authors publish them, and the check that every one of them is imported right."""

import csv
from collections.abc import Callable, Mapping
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import yaml
from PIL import Image

from pfedsam.data.layouts import Layout, find_layout, write_sites


@pytest.fixture
def values() -> np.ndarray:
    """The voxels of a small volume, all different."""
    return np.arange(4 * 5 * 3, dtype=np.int16).reshape(4, 5, 3)


@pytest.fixture
def ids() -> np.ndarray:
    """A small mask of 0 and 255."""
    mask = np.zeros((6, 8), np.uint8)
    mask[2:4, 3:6] = 255
    return mask


@pytest.fixture
def volume(values: np.ndarray) -> Callable[..., None]:
    def write(path: Path, data: np.ndarray = values) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(data, np.diag([1.5, 1.5, 8, 1])), path)

    return write


@pytest.fixture
def picture(ids: np.ndarray) -> Callable[..., None]:
    def write(path: Path, pixels: np.ndarray = ids) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)

    return write


@pytest.fixture(params=[False, True], ids=["linked", "copied"])
def copy(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def imported(tmp_path: Path, copy: bool) -> Callable[..., Path]:
    """Imports a folder and checks sites, patients and classes against those that are given; gives the new folder."""

    def run(
        layout: Layout, source: Path, patients: Mapping[str, Mapping[str, str]], classes: Mapping[str, list[int]]
    ) -> Path:
        assert find_layout(None, source) is layout
        out = tmp_path / "out"
        found = write_sites(layout, source, out, copy=copy)
        assert found.cases == {site: len(cases) for site, cases in patients.items()}
        assert found.patients == {site: len({*cases.values()} - {""}) for site, cases in patients.items()}
        data = yaml.safe_load(found.study.read_text())["data"]
        assert set(data["sites"]) == set(patients)
        assert data["classes"] == classes
        for site, cases in patients.items():
            rows = list(csv.DictReader((out / site / "manifest.csv").read_text().splitlines()))
            assert {row["case"]: row["patient"] for row in rows} == cases
            files = [out / site / cell for row in rows for cell in [*row["image"].split(";"), row["mask"]]]
            assert all(path.is_file() for path in files)
            assert not copy or not any(path.is_symlink() for path in files)
        return out

    return run
