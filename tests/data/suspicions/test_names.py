from dataclasses import replace

import faulty_sites as faulty
import pytest

from pfedsam.data.images import ImageOptions


@pytest.mark.parametrize(
    "names",
    [
        [f"patient{i:03d}" for i in range(12)],
        [f"Image_{i:02d}" for i in range(12)],
        [f"{i:02d}_{kind}" for i in range(6) for kind in ("h", "dr")],  # HRF: other people, not other parts
        [f"r{1 + i % 2}_Im{i:03d}" for i in range(12)],  # RIM-ONE
        [f"im{i:04d}" for i in range(12)],  # STARE
        [f"{i:02d}_training" for i in range(6)] + [f"{i:02d}_test" for i in range(6)],  # DRIVE
        [f"batch{i // 6}_{i % 6:02d}" for i in range(12)],  # two batches of patients
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


def test_pictures_of_kinds_that_are_not_read_are_a_warning(tmp_path):
    faulty.clean_study(tmp_path)
    for name in ("images/c.ppm", "images/b.bmp"):
        (tmp_path / "b" / name).touch()
    assert faulty.read_and_check(tmp_path).warnings == (
        "site 'b': 'images/b.bmp' is left out (2 such file(s)); only .jpeg, .jpg, .png, .tif, .tiff, NIfTI, DICOM are read: "
        "save it as one of these (masks not as JPEG), unpack it, or take it out",
    )


def test_a_study_that_wants_no_validation_is_not_told_that_it_has_none(tmp_path):
    faulty.clean_study(tmp_path)
    faulty.no_validation_case(tmp_path)
    sites = [faulty.read_site(name, tmp_path / name) for name in faulty.SITES]
    study = replace(faulty.Study(faulty.LABELS, ImageOptions()), validation=False)
    assert faulty.check_sites(sites, study).warnings == ()


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
