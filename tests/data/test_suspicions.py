"""Faults that are told, and clean sites about which nothing is said."""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pfedsam.data.facts import CaseFacts, SiteFacts
from pfedsam.data.images import ImageOptions
from pfedsam.data.manifest import Case, Site
from pfedsam.data.suspicions import sparse_class
from pfedsam.data.synthetic import LABELS, SyntheticOptions, write_sites

_SPEC = importlib.util.spec_from_file_location("faulty_sites", Path(__file__).with_name("faulty_sites.py"))
faulty = importlib.util.module_from_spec(_SPEC)
sys.modules["faulty_sites"] = faulty  # dataclasses look their module up
_SPEC.loader.exec_module(faulty)


@pytest.mark.parametrize("name", faulty.FAULTS)
def test_each_fault_is_told_with_its_site_and_remedy(name, tmp_path):
    fault = faulty.FAULTS[name]
    assert faulty.is_told(fault, tmp_path)


@pytest.mark.parametrize("name", faulty.FAULTS)
def test_nothing_else_is_said_of_a_fault(name, tmp_path):
    """No other site is blamed, and the site of the fault for nothing else than what follows from it."""
    fault = faulty.FAULTS[name]
    faulty.clean_study(tmp_path)
    fault.make(tmp_path)
    report = faulty.read_and_check(tmp_path, fault.pattern)
    lines = [*report.problems, *report.warnings]
    others = [line for line in lines if fault.says not in line]
    assert others == []
    if name != "pattern matches partly":  # made at every site
        assert [line for line in lines if not line.startswith(f"site {fault.site!r}")] == []


def test_three_clean_sites_give_no_warning(tmp_path):
    faulty.clean_study(tmp_path)
    report = faulty.read_and_check(tmp_path)
    assert (report.problems, report.warnings) == ((), ())


def test_the_sites_of_the_demonstration_give_no_warning(tmp_path):
    sites = write_sites(tmp_path, SyntheticOptions(sites=4, cases=24, shift="scanners"), seed=0)
    study = faulty.Study(faulty.LabelMap(LABELS), ImageOptions())
    report = faulty.check_sites([faulty._split(site) for site in sites], study)
    assert (report.problems, report.warnings) == ((), ())


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


def test_a_small_range_does_not_matter_where_contrast_is_stretched(tmp_path):
    faulty.clean_study(tmp_path)
    faulty.twelve_bits_in_sixteen(tmp_path)
    assert faulty.read_and_check(tmp_path, image=ImageOptions(contrast="percentile")).warnings == ()


def test_masks_that_are_turned_like_their_images_are_no_fault(tmp_path):
    faulty.clean_study(tmp_path)
    faulty.exif_half_turn(tmp_path)
    exif = Image.Exif()
    exif[274] = 3
    for path in (tmp_path / "b" / "masks").iterdir():
        Image.open(path).save(path, exif=exif)
    assert faulty.read_and_check(tmp_path).warnings == ()


def test_blank_pictures_are_not_equal_pictures(tmp_path):
    faulty.clean_study(tmp_path)
    for name in ("c00", "c01", "c02"):
        Image.fromarray(np.full((48, 56), 200, np.uint8)).save(tmp_path / "b" / "images" / f"{name}.png")
    assert faulty.read_and_check(tmp_path).warnings == ()


def test_a_site_of_background_alone_is_one_warning(tmp_path):
    faulty.clean_study(tmp_path)
    faulty._change_masks(tmp_path / "b", np.zeros_like)
    (warning,) = faulty.read_and_check(tmp_path).warnings
    assert warning.startswith("site 'b': its masks hold background alone")
    assert "data.classes" in warning


def test_pictures_of_kinds_that_are_not_read_are_a_warning(tmp_path):
    faulty.clean_study(tmp_path)
    for name in ("images/c.ppm", "images/b.bmp"):
        (tmp_path / "b" / name).touch()
    assert faulty.read_and_check(tmp_path).warnings == (
        "site 'b': 'images/b.bmp' is left out (2 such file(s)); only .jpeg, .jpg, .png, .tif, .tiff, NIfTI, DICOM are read: "
        "save it as one of these (masks not as JPEG), or take it out",
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


@pytest.mark.parametrize(
    ("more", "warned"), [({}, True), ({"sparse_loss": True}, False), ({"foreground_share": 0.5}, False)]
)
def test_a_class_of_a_thousandth_is_a_warning_unless_something_is_done_about_it(more, warned):
    case = Case("a", "one", Path("one.png"), Path("one.png"), "one")
    facts = SiteFacts(
        Site("a", Path(), (case,)), (CaseFacts(case, pixels={0: 9990, 1: 10}, labelled=True),), False, (), (), ()
    )
    study = faulty.Study(faulty.LabelMap({"lesion": [1]}), ImageOptions(), **more)
    found = [str(one) for one in sparse_class([facts], study)]
    assert bool(found) == warned
    assert all("'lesion' fills 0.1 %" in one and "training.loss: focal_tversky" in one for one in found)
