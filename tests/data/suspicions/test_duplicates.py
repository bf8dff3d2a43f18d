from pathlib import Path

import faulty_sites as faulty
import numpy as np
import pytest
from PIL import Image
from volume_files import write_nifti, write_series

from pfedsam.data.check import DataReport, check_sites
from pfedsam.data.images import ImageOptions
from pfedsam.data.labels import LabelMap
from pfedsam.data.manifest import read_site
from pfedsam.data.split import SplitOptions, split_site
from pfedsam.data.suspicions import Study


def _check(folder: Path) -> DataReport:
    site = split_site(read_site("a", folder, masks_required=False), SplitOptions(), 0)
    return check_sites([site], _study())


def _study() -> Study:
    return Study(LabelMap({"organ": [1]}), ImageOptions(), validation=False)


def _mask(number: int) -> np.ndarray:
    mask = np.zeros((16, 16, 4), np.uint8)
    mask[2 : 9 + number, 3:10, 1:3] = 1
    return mask


def test_blank_pictures_are_not_equal_pictures(tmp_path):
    faulty.clean_study(tmp_path)
    for name in ("c00", "c01", "c02"):
        Image.fromarray(np.full((48, 56), 200, np.uint8)).save(tmp_path / "b" / "images" / f"{name}.png")
    assert not any("equal" in warning for warning in faulty.read_and_check(tmp_path).warnings)


@pytest.mark.parametrize(("shift", "found"), [(0, True), (1, False)])
def test_one_volume_under_two_patients_in_two_parts_of_the_split_is_an_error(tmp_path, shift, found):
    """Every volume is there twice, with the masks of two raters; a volume whose voxels differ by one value is another volume."""
    values = np.random.default_rng(0)
    for number in range(4):
        image = values.integers(0, 100, (16, 16, 4)).astype(np.int16)
        for rater in (0, 1):
            write_nifti(tmp_path / f"images/{'pq'[rater]}{number}.nii", image + shift * rater)
            write_nifti(tmp_path / f"masks/{'pq'[rater]}{number}.nii", np.roll(_mask(number), 2 * rater, axis=1))
    problems = _check(tmp_path).problems
    assert [("equal volumes under two patients" in one and "two parts of the split" in one) for one in problems] == (
        [True] * found
    )


@pytest.mark.parametrize(
    ("identifiers", "warned"),
    [
        (["A", "A", "B", "C"], True),  # p0 and p1 are one patient
        (["A", "B", "C", "D"], False),
        (["A", "A", "A", "A"], False),  # an anonymiser's placeholder
        (["", "", "A", "B"], False),
    ],
)
def test_dicom_cases_of_one_patient_under_several_names(tmp_path, identifiers, warned):
    values = np.random.default_rng(0)
    for number, identifier in enumerate(identifiers):
        image = values.integers(0, 100, (16, 16, 4)).astype(np.int16)
        write_series(
            tmp_path / f"images/p{number}", image, change=lambda one, _, to=identifier: setattr(one, "PatientID", to)
        )
    found = [one for one in _check(tmp_path).warnings if "PatientID" in one]
    assert len(found) == warned
    assert all("'p0' (patient 'p0') and 'p1' (patient 'p1')" in one for one in found)
    (tmp_path / "manifest.csv").write_text(
        "image,mask,patient\n" + "".join(f"images/p{i},,{name or i}\n" for i, name in enumerate(identifiers))
    )
    assert not any("PatientID" in one for one in _check(tmp_path).warnings)


def _volumes(folder: Path, masks: dict[str, np.ndarray], first: int) -> None:
    """Volumes with different voxels, and with these masks."""
    for number, (name, mask) in enumerate(masks.items(), start=first):
        values = np.random.default_rng(number).integers(0, 100, mask.shape).astype(np.int16)
        write_nifti(folder / f"images/{name}.nii", values)
        write_nifti(folder / f"masks/{name}.nii", mask)


@pytest.mark.parametrize(
    ("north", "south", "case"),
    [
        (["A", "B"], ["C", "B", "D"], "p1"),
        (["A", "B"], ["C", "D"], None),
        (["1", "2"], ["1", "2", "3"], None),  # numbers that were given at each site
        (["", "A"], ["", "B"], None),
    ],
)
def test_one_patient_id_at_two_sites_is_a_warning(tmp_path, north, south, case):
    values, sites = np.random.default_rng(0), []
    for name, identifiers in (("north", north), ("south", south)):
        for number, identifier in enumerate(identifiers):
            write_series(
                tmp_path / f"{name}/images/p{number}",
                values.integers(0, 100, (16, 16, 4)).astype(np.int16),
                change=lambda one, _, to=identifier: setattr(one, "PatientID", to),
            )
        sites.append(read_site(name, tmp_path / name, masks_required=False))
    found = [one for one in check_sites(sites, _study()).warnings if "PatientID" in one]
    assert [one.startswith(f"site 'north', case '{case}': 1 PatientID(s) of the DICOM files") for one in found] == (
        [True] * (case is not None)
    )
    assert all("which 'p1' has there" in one and "keep all cases of a patient at one site" in one for one in found)


def test_equal_masks_at_two_sites_are_to_be_kept_at_one_site(tmp_path):
    """Every site is split alone, so that a common name of the patient would not bring the cases together.

    `p` and `q` are at north and `p` at south: the cases that are named are those of two sites.
    """
    _volumes(tmp_path / "north", {"p": _mask(0), "q": _mask(0), "r": _mask(1)}, 0)
    _volumes(tmp_path / "south", {"p": _mask(0), "r": _mask(2)}, 3)
    sites = [read_site(name, tmp_path / name) for name in ("north", "south")]
    (found,) = [one for one in check_sites(sites, _study()).warnings if "equal voxel by voxel" in one]
    assert "the masks of 'p' (site 'north', patient 'p') and 'p' (site 'south', patient 'p')" in found
    assert found.endswith("because every site is split alone; keep them at one site")
    assert "same patient" not in found


@pytest.mark.parametrize(
    ("images", "masks", "warned"), [((0, 1), (1, 1), True), ((0, 1), (1, 2), False), ((0, 0), (1, 1), False)]
)
def test_pictures_with_equal_masks_are_of_one_patient(tmp_path, images, masks, warned):
    """Two pictures that differ and have one mask are T1 and T2 of a slice, for example; copies of a picture are another finding."""
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
    for name, image, mask in zip(("p", "q"), images, masks, strict=True):
        pixels = np.random.default_rng(image).integers(0, 255, (16, 16), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{name}.png")
        Image.fromarray(_mask(mask)[..., 1]).save(tmp_path / "masks" / f"{name}.png")
    found = [one for one in _check(tmp_path).warnings if "equal pixel by pixel" in one]
    assert bool(found) == warned
    assert all("the masks of 'p' (site 'a', patient 'p') and 'q'" in one and "the same patient" in one for one in found)
