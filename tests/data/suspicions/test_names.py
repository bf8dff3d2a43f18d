from dataclasses import replace
from pathlib import Path

import faulty_sites as faulty
import numpy as np
import pytest
from volume_files import write_nifti

from pfedsam.data.facts import SiteFacts
from pfedsam.data.images import ImageOptions
from pfedsam.data.manifest import Site
from pfedsam.data.suspicions.names import parts_as_sites
from pfedsam.data.volume_options import VolumeOptions


@pytest.mark.parametrize(
    "names",
    [
        [f"patient{i:03d}" for i in range(12)],
        [f"Image_{i:02d}" for i in range(12)],
        [f"{i:02d}_{kind}" for i in range(6) for kind in ("h", "dr")],  # HRF: other people, not other parts
        [f"r{1 + i % 2}_Im{i:03d}" for i in range(12)],  # RIM-ONE
        [f"im{i:04d}" for i in range(12)],  # STARE
        [f"{i:02d}_training" for i in range(6)] + [f"{i:02d}_test" for i in range(6)],  # DRIVE
        [f"{i:02d}_original" for i in range(12)],
        [f"flip{i:02d}" for i in range(12)],
        [f"batch{i // 6}_{i % 6:02d}" for i in range(12)],  # two batches of patients
        [f"north_scan_{i:02d}" for i in range(12)],
        [f"{kind}_image_{i:02d}" for kind in ("benign", "malignant", "normal") for i in range(4)],
        [f"sub-{i:02d}_T2w" for i in range(12)],
        [f"TCGA-A7-A1{i:02d}-01Z-00-DX1" for i in range(12)],
        [f"{kind} ({i})" for kind in ("benign", "malignant") for i in range(6)],  # BUSI
    ],
    ids=lambda names: names[0],
)
def test_ordinary_names_do_not_look_like_tiles(names, tmp_path):
    faulty.clean_study(tmp_path)
    for path in (tmp_path / "b").rglob("*.png"):
        path.unlink()
    faulty.clean_site(tmp_path / "b", 9, names=names)
    assert faulty.read_and_check(tmp_path).warnings == ()


@pytest.mark.parametrize(
    "names",
    [
        [f"p{p}_{t}" for p in range(4) for t in range(3)],
        [f"case{p}-tile{t}" for p in range(4) for t in range(3)],
        [f"{p:02d}{side}" for p in range(6) for side in "LR"],
        [f"scan{p}_slice{t:02d}" for p in range(2) for t in range(6)],
        [f"case{p}_aug{t}" for p in range(4) for t in range(3)],
        [f"eye{p}{ending}" for p in range(3) for ending in ("_orig", "_hflip", "_vflip", "_rot90")],
        [f"lung{p}{ending}" for p in range(6) for ending in ("", "-augmented")],  # the original has its plain name
        [f"slide {p} [x={t * 512},y=0,w=512,h=512]" for p in "AB" for t in range(6)],  # QuPath
        [f"slide {p} [d=2,x={t * 512},y=0,w=512,h=512,z=0]" for p in "AB" for t in range(6)],
        [f"lung{p}_jpg.rf.{p}f0a9c{t}e7b1d" for p in range(4) for t in range(3)],  # Roboflow
        [f"sub-{p:02d}_ses-{t:02d}_T2w" for p in range(4) for t in (1, 2, 3)],  # BIDS
        [f"TCGA-A7-A13{p}-01Z-00-DX{t}" for p in range(4) for t in (1, 2, 3)],
        [f"p{p}_{view}" for p in range(3) for view in ("LCC", "LMLO", "RCC", "RMLO")],
        [f"p{p}_{side}_{view}" for p in range(3) for side in ("LEFT", "RIGHT") for view in ("CC", "MLO")],
        [f"patient{p:03d}_{phase}" for p in range(6) for phase in ("ED", "ES")],
        [f"patient{p:03d}_4CH_{phase}" for p in range(6) for phase in ("ED", "ES")],
        [f"p{p}_visit{t}" for p in range(4) for t in range(3)],
        [f"p{p}_{t}" for p in range(4) for t in ("baseline", "followup1", "followup2")],
    ],
    ids=lambda names: names[0],
)
def test_names_of_several_pictures_of_one_source_are_told(names, tmp_path):
    faulty.clean_study(tmp_path)
    for path in (tmp_path / "b").rglob("*.png"):
        path.unlink()
    faulty.clean_site(tmp_path / "b", 9, names=names)
    (warning,) = faulty.read_and_check(tmp_path).warnings
    assert "several pictures of one source" in warning


@pytest.mark.parametrize(
    ("names", "warned"),
    [
        (["train", "val", "test"], True),
        (["Training", "testing"], True),
        (["train", "north"], False),
        (["test"], False),
    ],
)
def test_parts_of_one_data_set_as_sites_are_a_warning(names, warned):
    sites = [SiteFacts(Site(name, Path(), ()), (), False, (), (), ()) for name in names]
    found = [str(one) for one in parts_as_sites(sites, faulty.Study(faulty.LABELS, ImageOptions()))]
    listed = ", ".join(map(repr, names))
    assert [f"the sites {listed} are parts of one data set" in one for one in found] == [True] * warned


def test_a_pattern_is_no_remedy_where_the_manifest_gives_the_patients(tmp_path):
    """The patients of a manifest take precedence over the pattern."""
    faulty.clean_study(tmp_path)
    names = [f"p{p}_t{t}" for p in range(4) for t in range(3)]
    faulty.clean_site(tmp_path / "b", 9, names=names)
    lines = [f"images/{name}.png,masks/{name}.png,{name}" for name in names]
    for path in (tmp_path / "b").rglob("c*.png"):
        path.unlink()
    (tmp_path / "b" / "manifest.csv").write_text("\n".join(["image,mask,patient", *lines]))
    (warning,) = faulty.read_and_check(tmp_path, "^(p.|c..)").warnings
    assert warning.endswith(
        "split; correct the patients in manifest.csv, or empty that column and set data.patient_pattern"
    )
    text = "\n".join(["image,mask,patient", *(line.removesuffix(line.split(",")[2]) for line in lines)])
    (tmp_path / "b" / "manifest.csv").write_text(text)
    assert faulty.read_and_check(tmp_path, "^(p.|c..)").warnings == ()


def test_pictures_of_kinds_that_are_not_read_are_a_warning(tmp_path):
    faulty.clean_study(tmp_path)
    for name in ("images/c.ppm", "images/b.bmp"):
        (tmp_path / "b" / name).touch()
    assert faulty.read_and_check(tmp_path).warnings == (
        "site 'b': 2 file(s) or folder(s) are left out ('images/b.bmp', 'images/c.ppm'); only .jpeg, .jpg, .png, .tif, .tiff, NIfTI, DICOM "
        "are read: save them as one of these (masks not as JPEG), unpack them, or take them out",
    )


def test_images_without_an_ending_of_a_sequence_are_a_warning(tmp_path):
    faulty.clean_study(tmp_path)
    for name in ("c_t1", "c_t2", "d_t3"):
        write_nifti(tmp_path / "v" / "images" / f"{name}.nii.gz", np.ones((4, 4, 2), np.int16), np.diag([1, 1, 3, 1]))
    channels = ("_t1", "_t2")
    site = faulty.read_site("v", tmp_path / "v", masks_required=False, channels=channels)
    study = faulty.Study(faulty.LABELS, ImageOptions(), volume=VolumeOptions(channels=list(channels)))
    assert (
        "site 'v': 1 image(s) in images/ are left out ('d_t3.nii.gz'), because their names end with none of '_t1', '_t2' "
        "(data.volume.channels); rename them, or take them out"
    ) in faulty.check_sites([site], study).warnings


def test_a_study_that_wants_no_validation_is_not_told_that_it_has_none(tmp_path):
    faulty.clean_study(tmp_path)
    faulty.no_validation_case(tmp_path)
    sites = [faulty.read_site(name, tmp_path / name) for name in faulty.SITES]
    study = replace(faulty.Study(faulty.LABELS, ImageOptions()), validation=False)
    assert faulty.check_sites(sites, study).warnings == ()


def _with_one_mask(tmp_path, patients):
    """A report about a manifest whose first lines, one for each of these patients, name the mask of the first line."""
    faulty.clean_study(tmp_path)
    folder = tmp_path / "b"
    lines = [f"images/{path.name},masks/{path.name},q{number}" for number, path in enumerate(_pictures(folder))]
    for number, patient in enumerate(patients):
        lines[number] = f"images/c{number:02d}.png,masks/c00.png,{patient}"
        if number:  # a mask that is not listed would be told, too
            (folder / "masks" / f"c{number:02d}.png").unlink()
    (folder / "manifest.csv").write_text("\n".join(["image,mask,patient", *lines]))
    return faulty.read_and_check(tmp_path)


def test_one_mask_for_pictures_of_several_patients_is_an_error(tmp_path):
    report = _with_one_mask(tmp_path, ("p0", "p1", "p1", "p2"))
    assert report.problems == (
        "site 'b', 4 cases such as 'c00', 'c01', 'c02': manifest.csv names one mask, 'masks/c00.png', for 4 images; name for each image "
        "its own mask (only volumes of one patient may share one)",
    )
    assert report.warnings == ()


def test_one_mask_for_pictures_of_one_patient_is_a_warning(tmp_path):
    report = _with_one_mask(tmp_path, ("p0", "p0"))
    (warning,) = report.warnings
    assert "site 'b', 2 cases 'c00', 'c01': manifest.csv names one mask, 'masks/c00.png', for 2 images" in warning
    assert report.problems == ()


@pytest.mark.parametrize(("patients", "problems"), [(("p0", "p0"), 0), (("p0", "p1"), 1)])
def test_volumes_may_share_a_mask_only_if_they_are_of_one_patient(patients, problems, tmp_path):
    draw = np.random.default_rng(0)
    for number in range(len(patients) + 1):
        write_nifti(
            tmp_path / f"{number}.nii.gz", draw.integers(0, 99, (8, 8, 3)).astype(np.int16), np.diag([1, 1, 3, 1])
        )
    write_nifti(tmp_path / "mask.nii.gz", (draw.random((8, 8, 3)) < 0.5).astype(np.uint8), np.diag([1, 1, 3, 1]))
    lines = [f"{number}.nii.gz,mask.nii.gz,{patient}" for number, patient in enumerate(patients)]
    lines.append("2.nii.gz,,p2")
    (tmp_path / "manifest.csv").write_text("\n".join(["image,mask,patient", *lines]))
    site = faulty.read_site("b", tmp_path, masks_required=False)
    report = faulty.check_sites([site], faulty.Study(faulty.LabelMap({"a": [1]}), ImageOptions(), validation=False))
    said = [problem for problem in report.problems if "one mask, 'mask.nii.gz', for 2 images" in problem]
    assert len(said) == problems
    assert not any("one mask" in warning for warning in report.warnings)


def test_masks_spelt_otherwise_than_their_images_are_told_so(tmp_path):
    faulty.clean_study(tmp_path)
    name = "mu\N{COMBINING DIAERESIS}ller.png"
    for part, path in (("images", name), ("masks", "m\N{LATIN SMALL LETTER U WITH DIAERESIS}ller.png")):
        (tmp_path / "b" / part / "c00.png").rename(tmp_path / "b" / part / path)
    report = faulty.read_and_check(tmp_path)
    assert len(report.problems) == 2  # an image without a mask, a mask without an image
    (warning,) = report.warnings
    assert "the names of image and mask look alike" in warning


def test_names_that_differ_only_in_capital_letters_are_told(tmp_path):
    faulty.clean_study(tmp_path)
    folder = tmp_path / "b"
    lines = [f"images/{path.name},masks/{path.name},P{number:02d}" for number, path in enumerate(_pictures(folder))]
    lines[3] = lines[3].replace("P03", "p02")
    (folder / "manifest.csv").write_text("\n".join(["image,mask,patient", *lines]))
    (warning,) = faulty.read_and_check(tmp_path).warnings
    assert warning == (
        "site 'b': patient names that differ only in capital and small letters: 'P02', 'p02', so that one patient counts as two; keep one "
        "of them, or write both alike"
    )


def _pictures(folder):
    return sorted((folder / "images").iterdir())
