from pathlib import Path

import numpy as np
from mask_files import write_seg_file
from pydicom import dcmread
from volume_files import write_nifti, write_series

from pfedsam.data.check import check_sites
from pfedsam.data.images import ImageOptions
from pfedsam.data.labels import LabelMap
from pfedsam.data.manifest import read_site
from pfedsam.data.suspicions import Study
from pfedsam.data.volume_options import VolumeOptions


def _case(folder: Path, name: str, *names: str) -> None:
    """A series, and a DICOM-SEG of segments of these names on its slices."""
    values = np.random.default_rng(len(list(folder.rglob("*")))).integers(0, 99, (8, 8, 4)).astype(np.int16)
    series = write_series(folder / "images" / name, values)
    sources = sorted((dcmread(path) for path in series.iterdir()), key=lambda one: one.ImagePositionPatient[2])
    ids = np.zeros((4, 8, 8), np.uint8)
    for number in range(1, len(names) + 1):
        ids[1:3, 2 * number - 2 : 2 * number] = number
    (folder / "masks").mkdir(exist_ok=True)
    write_seg_file(folder / "masks" / f"{name}.dcm", sources, ids, names=names)


def _warnings(folder: Path, **segments: int) -> list[str]:
    options = VolumeOptions(segments=segments, foreground_share=0.5)
    labels = LabelMap({"liver": [1], "lesion": [2]})
    study = Study(labels, ImageOptions(), validation=False, volume=options)
    report = check_sites([read_site("north", folder, masks_required=False)], study)
    assert report.problems == ()
    return [warning for warning in report.warnings if "data.volume.segments" in warning]


def test_a_segment_of_another_spelling_is_a_warning_with_its_cases(tmp_path):
    _case(tmp_path, "a", "Liver", "Lesion")
    _case(tmp_path, "b", "Liver", "Lesions")
    _case(tmp_path, "c", "liver", "lesion 1")
    (warning,) = _warnings(tmp_path, Liver=1, Lesion=2)
    assert warning.startswith(
        "site 'north', 2 cases 'b', 'c': no part of the mask has the name 'Lesion', and another part"
    )
    assert "lesions" not in warning.lower()
    assert not _warnings(tmp_path, Liver=1, Lesion=2, Lesions=2, **{"Lesion 1": 2})


def test_a_part_that_is_beside_the_wanted_one_elsewhere_is_no_other_spelling(tmp_path):
    _case(tmp_path, "a", "Liver", "Lesion", "BODY")
    _case(tmp_path, "b", "Liver", "BODY")
    assert not _warnings(tmp_path, Liver=1, Lesion=2)
    _case(tmp_path, "c", "Liver", "BODY", "Tumour")
    (warning,) = _warnings(tmp_path, Liver=1, Lesion=2)
    assert warning.startswith("site 'north', case 'c': no part of the mask has the name 'Lesion'")


def test_what_was_left_out_of_masks_is_a_warning_with_its_cases(tmp_path):
    """Masks of the grid of their image but for four rows more, in which one of them has 1 and one 2 voxels."""
    draw, ids = np.random.default_rng(0), np.zeros((12, 8, 4), np.uint8)
    ids[4:9, 2:6, 1:3] = 1
    for number, name in enumerate(("a", "b", "c")):
        write_nifti(tmp_path / "images" / f"{name}.nii", draw.integers(0, 99, (8, 8, 4)).astype(np.int16))
        ids[0, :2, 0] = np.arange(2) < number
        affine = np.eye(4)
        affine[0, 3] = -4.0
        kept = ids if number else ids[4:]
        write_nifti(tmp_path / "masks" / f"{name}.nii", kept, affine if number else np.eye(4))
    study = Study(
        LabelMap({"liver": [1]}),
        ImageOptions(),
        validation=False,
        volume=VolumeOptions(resample=True, foreground_share=0.5),
    )
    report = check_sites([read_site("north", tmp_path, masks_required=False)], study)
    (warning,) = [warning for warning in report.warnings if "left out" in warning]
    assert warning == (
        "site 'north', 2 cases 'b', 'c': 1 of 41 voxels of the mask lie outside its image and are left out (the numbers are those of 'b')"
    )
