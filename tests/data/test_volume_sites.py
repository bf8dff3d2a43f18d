"""Sites of volumes: what is a case, how its slices are loaded and drawn, and what a check reads of them."""

from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from volume_files import write_nifti, write_series

from pfedsam.core import rng
from pfedsam.core.errors import DataError
from pfedsam.data.check import check_sites
from pfedsam.data.images import ImageOptions
from pfedsam.data.labels import LabelMap
from pfedsam.data.loader import batches, load_case_truth
from pfedsam.data.manifest import read_site
from pfedsam.data.readers import open_volume
from pfedsam.data.readers.nifti import NiftiReader
from pfedsam.data.suspicions import Study
from pfedsam.data.volume_options import VolumeOptions

VALUES = np.random.default_rng(0).integers(0, 900, (6, 8, 5)).astype(np.int16)
MASK = np.zeros((6, 8, 5), np.uint8)
MASK[2:4, 3:6, 1:3] = 1
AFFINE = np.diag([1.0, 2, 5, 1])
LABELS = LabelMap({"organ": [1]})


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A site with a NIfTI file and a DICOM series of the same voxels, each with a NIfTI mask."""
    write_nifti(tmp_path / "images/a.nii.gz", VALUES, AFFINE)
    write_nifti(tmp_path / "masks/a.nii.gz", MASK, AFFINE)
    write_series(tmp_path / "images/b", VALUES, AFFINE)
    write_nifti(tmp_path / "masks/b.nii", MASK, AFFINE)
    return tmp_path


def test_a_case_is_a_file_or_a_folder_of_dicom_files(site):
    first, second = read_site("north", site).cases
    assert (first.id, first.volume, second.id, second.volume) == ("a", True, "b", True)
    assert second.image.is_dir()
    truth = load_case_truth(first, LABELS, ImageOptions(), VolumeOptions())
    assert truth.classes.shape == (5, 8, 6)
    assert truth.spacing_mm == (5, 2, 1)
    assert truth.classes.sum() == MASK.sum()


def test_a_share_of_what_is_drawn_holds_foreground_and_empty_slices_stay_in():
    foreground = [(1,) if index % 10 == 0 else () for index in range(100)]
    drawn = [
        index
        for batch in batches(
            100, 1, batch_size=3, steps=200, generator=rng.generator(0), foreground=foreground, share=0.5
        )
        for index, _ in batch
    ]
    share = sum(bool(foreground[index]) for index in drawn) / len(drawn)
    assert 0.5 <= share < 0.6  # half of them surely, and a tenth of the others
    assert len({index for index in drawn if not foreground[index]}) == 90
    assert {len(batch) for batch in batches(4, 1, batch_size=3, steps=5, generator=rng.generator(0), share=0.5)} == {3}


def test_a_check_keeps_no_volume_in_memory(site, monkeypatch):
    monkeypatch.setattr(NiftiReader, "slice", None)  # `slice` keeps what it has read
    report = check_sites([read_site("north", site)], Study(LABELS, ImageOptions()))
    assert report.problems == ()
    (found,) = report.sites
    assert found.images.sizes == {(5, 8, 6): 2}
    assert found.images.spacings == {(5, 2, 1): 2}
    assert found.masks.ids == {0: 2, 1: 2}


def test_a_check_reads_every_voxel_of_image_and_mask_and_names_both(site):
    for part in ("images", "masks"):
        content = (site / part / "a.nii.gz").read_bytes()
        (site / part / "a.nii.gz").write_bytes(content[:-9])  # within the compressed voxels
    (file,) = (one for one in (site / "images/b").iterdir() if dcmread(one).InstanceNumber == 3)
    dataset = dcmread(file)
    dataset.RescaleSlope, dataset.RescaleIntercept = "9e99", 0
    dataset.save_as(file)
    first, second, third = check_sites([read_site("north", site)], Study(LABELS, ImageOptions())).problems
    assert first.startswith("site 'north', case 'a': 'a.nii.gz' is damaged or cut off")
    assert second.startswith("site 'north', case 'a': its mask 'a.nii.gz' is damaged or cut off")
    assert third.startswith(f"site 'north', case 'b': {file.name!r} holds ")


def test_values_that_do_not_fit_the_normalisation_are_found_by_a_check(site):
    study = Study(LABELS, ImageOptions(), volume=VolumeOptions(normalise="none"))
    (problem,) = check_sites([read_site("north", site)], study).problems
    assert (
        f"2 cases 'a', 'b': its values go from {VALUES.min()} to {VALUES.max()}, and data.volume.normalise" in problem
    )


def test_sequences_that_were_listed_as_patients_are_told_by_their_equal_masks(site):
    big = np.zeros((6, 8, 5), np.uint8)
    big[1:5, 1:7, 1:4] = 1  # 72 voxels
    for name, mask in (("a.nii.gz", big), ("b.nii", big), ("c.nii", MASK), ("d.nii", MASK)):
        write_nifti(site / "masks" / name, mask, AFFINE)
        if name[0] in "cd":
            write_nifti(site / "images" / name, VALUES, AFFINE)
    found = check_sites([read_site("north", site)], Study(LABELS, ImageOptions())).warnings
    assert [line for line in found if "equal voxel by voxel" in line] == [
        "site 'north', 2 cases 'a', 'b': the masks of 'a' (site 'north', patient 'a') and 'b' (site 'north', patient 'b') are equal voxel "
        "by voxel, so that they are probably of one patient, who can end up in two parts of the split; name the sequences of a case "
        "by data.volume.channels, or give them the same patient"
    ]
    (site / "manifest.csv").write_text("image,mask,patient\nimages/a.nii.gz,masks/a.nii.gz,p\nimages/b,masks/b.nii,p\n")
    found = check_sites([read_site("north", site)], Study(LABELS, ImageOptions())).warnings
    assert not [line for line in found if "equal voxel" in line]


def test_nothing_is_said_about_the_spacing_of_a_volume_that_cannot_be_read(site):
    (site / "images/a.nii.gz").write_bytes(b"\x1f\x8b")
    report = check_sites([read_site("north", site)], Study(LABELS, ImageOptions()))
    assert report.sites[0].images.spacings == {(5.0, 2.0, 1.0): 1}
    assert not [line for line in report.warnings if "spacing" in line]


def test_a_volume_whose_mask_does_not_fit_is_named_and_no_name_of_a_patient(site):
    write_nifti(site / "masks/b.nii", MASK[:5], AFFINE)
    report = check_sites([read_site("north", site)], Study(LABELS, ImageOptions()))
    assert len(report.problems) == 1
    assert "site 'north', case 'b': the image has" in report.problems[0]
    assert "Canary" not in str(report)


def test_loose_slices_of_one_series(tmp_path):
    write_series(tmp_path / "images", VALUES)
    with pytest.raises(DataError, match="of one DICOM series; put the files of each series into a folder of its own"):
        read_site("north", tmp_path, masks_required=False)


def test_the_views_of_one_series_are_a_case_each(tmp_path):
    def without_position(dataset: Dataset, _: int) -> None:
        del dataset.ImagePositionPatient, dataset.ImageOrientationPatient

    folder = write_series(tmp_path / "images", VALUES[..., :4], change=without_position)
    for path, view in zip(sorted(folder.iterdir()), ("LCC", "LMLO", "RCC", "RMLO"), strict=True):
        path.rename(folder / f"{view}.dcm")
    cases = read_site("north", tmp_path, masks_required=False).cases
    assert [case.id for case in cases] == ["LCC", "LMLO", "RCC", "RMLO"]
    for case in cases:
        assert open_volume(case.image, VolumeOptions()).header().shape == (*VALUES.shape[:2], 1)


def test_a_manifest_names_series_sequences_and_lost_spacing(site):
    write_series(site / "images/b", VALUES[:4], AFFINE)
    (site / "manifest.csv").write_text(
        "image,mask,patient,case,spacing,series\n"
        "images/b,masks/b.nii,p1,one,,1\n"
        "images/b,,p1,two,,2\n"
        "images/a.nii.gz;images/a.nii.gz,masks/a.nii.gz,p2,lost,unknown,\n"
        "images/a.nii.gz,masks/a.nii.gz,p3,given,3x2x1,\n"
    )
    given, lost, one, two = read_site("north", site, masks_required=False).cases
    assert (given.spacing_mm, lost.spacing_lost, one.series, two.series) == ((3, 2, 1), True, "1", "2")
    assert len(lost.sequences) == 1
    assert load_case_truth(lost, LABELS, ImageOptions(), VolumeOptions()).spacing_mm is None
    assert load_case_truth(given, LABELS, ImageOptions(), VolumeOptions()).spacing_mm == (3, 2, 1)


def test_sequences_of_a_case_are_told_by_their_endings(tmp_path):
    for name in ("p1_t1", "p1_t2", "p2_t1", "p2_t2"):
        write_nifti(tmp_path / f"images/{name}.nii.gz", VALUES, AFFINE)
    first, second = read_site("north", tmp_path, masks_required=False, channels=("_t1", "_t2")).cases
    assert (first.id, second.id) == ("p1", "p2")
    assert [path.name for path in (first.image, *first.sequences)] == ["p1_t1.nii.gz", "p1_t2.nii.gz"]
    (tmp_path / "images/p2_t2.nii.gz").unlink()
    with pytest.raises(DataError, match="case 'p2' has no file that ends with '_t2'"):
        read_site("north", tmp_path, masks_required=False, channels=("_t1", "_t2"))
