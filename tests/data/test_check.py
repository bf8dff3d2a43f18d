from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from pfedsam.core.errors import DataError
from pfedsam.data.check import check_site, refuse_problems
from pfedsam.data.images import ImageOptions
from pfedsam.data.labels import LabelMap
from pfedsam.data.manifest import Site, read_site

LABELS = LabelMap({"nucleus": [1], "never": [2]})


def test_a_sound_site(site_folder):
    report = check_site(read_site("north", site_folder("a_0", "a_1", "b_0"), patient_pattern="^(.)"), LABELS)
    assert (report.site, report.cases, report.patients, report.parts) == ("north", 3, 2, {})
    assert report.sizes == {(4, 6): 3}
    assert report.ids == {0: 3, 1: 3}
    assert report.classes == {"nucleus": 3, "never": 0}
    assert report.problems == ()


def test_every_problem_is_named_at_once(site_folder):
    folder = site_folder(*"abcdefgh")
    (folder / "masks/a.png").unlink()
    Image.fromarray(np.zeros((5, 6), np.uint8)).save(folder / "masks/b.png")
    Image.fromarray(np.full((4, 6), 7, np.uint8)).save(folder / "masks/c.png")
    for name in ("images/d.png", "masks/e.png"):
        (folder / name).write_bytes((folder / name).read_bytes()[:50])
    (folder / "images/h.png").unlink()
    site = read_site("north", folder, patient_pattern="^([fg])", masks_required=False)
    sides = ["train"] * 5 + ["train", "test"]
    cases = [
        replace(case, split=side, patient="fg" if case.id in "fg" else case.id)
        for case, side in zip(site.cases, sides, strict=True)
    ]
    report = check_site(replace(site, cases=tuple(cases)), LABELS)
    expected = (
        "case 'a': the image has no mask; add a mask",
        "case 'b': the image has 6 x 4 pixels, its mask 6 x 5; export",
        "case 'c': its mask has the unknown label 7; data.classes allows nucleus [1], never [2], background [0]. Add",
        "case 'd': 'd.png' is damaged or cut off",
        "case 'e': 'e.png' is damaged or cut off",
        "mask 'h.png' has no image; name it",
        "case 'f': patient 'fg' is on two sides of the split ('f' in train and 'g' in test); put",
    )
    assert len(report.problems) == len(expected)
    for problem, text in zip(report.problems, expected, strict=True):
        assert problem.startswith("site 'north'")
        assert text in problem
    assert report.parts == {"train": 6, "test": 1}
    assert report.sizes == {(4, 6): 6}
    assert report.ids == {0: 4, 1: 3, 7: 1}


def test_a_pattern_that_matches_nothing_is_a_problem(site_folder):
    site = read_site("north", site_folder("a-1", "b-1"))
    report = check_site(site, LABELS, patient_pattern="^(.+)_")
    assert report.problems == (
        "site 'north': patient_pattern '^(.+)_' matches none of its 2 file names, such as 'a-1' (the ending left out), "
        "so that every case would be a patient; correct or remove it, or let it match the names of every site: "
        "'^(.+?)(_t[0-9])?$' takes those with and without the ending _t0",
    )
    assert check_site(site, LABELS, patient_pattern="^(.+)-").problems == ()


def test_the_pattern_that_the_message_proposes_takes_both_kinds_of_names(site_folder):
    site = read_site("north", site_folder("a_t0", "a_t1", "b"), patient_pattern="^(.+?)(_t[0-9])?$")
    assert {name: len(cases) for name, cases in site.patients().items()} == {"a": 2, "b": 1}


def test_a_site_whose_masks_are_all_background_is_a_warning(site_folder):
    folder = site_folder("a", "b")
    for name in ("a", "b"):
        Image.fromarray(np.zeros((4, 6), np.uint8)).save(folder / f"masks/{name}.png")
    report = check_site(read_site("north", folder), LABELS)
    assert report.problems == ()
    (warning,) = report.warnings
    assert warning.startswith("site 'north': its masks hold background alone")
    assert "data.classes" in warning


def test_pictures_that_are_left_out_are_a_warning(site_folder):
    folder = site_folder("a")
    for name in ("images/c.ppm", "images/b.bmp"):
        (folder / name).touch()
    report = check_site(read_site("north", folder), LABELS)
    assert report.problems == ()
    assert report.warnings == (
        "site 'north': 'images/b.bmp' is left out (2 such file(s)); only .jpeg, .jpg, .png, .tif, .tiff are read: "
        "save it as one of these (masks not as JPEG), or take it out",
    )


def test_an_empty_site_and_a_size_limit(site_folder, tmp_path):
    assert check_site(Site("north", tmp_path, ()), LABELS).problems == (
        "site 'north': has no cases; add images and masks",
    )
    report = check_site(read_site("north", site_folder("a")), LABELS, ImageOptions(max_megapixels=1e-5))
    assert len(report.problems) == 2


def test_sound_sites_pass_and_the_first_twenty_problems_are_named(site_folder, tmp_path):
    refuse_problems([read_site("north", site_folder("a"))], LABELS)
    empty = [Site(f"empty{i:02d}", tmp_path, ()) for i in range(22)]
    with pytest.raises(DataError) as caught:
        refuse_problems(empty, LABELS)
    first, *named, last = str(caught.value).splitlines()
    assert first == "The data has 22 problem(s):"
    assert [name for name in named if "has no cases" in name] == named
    assert len(named) == 20
    assert last == "... and 2 more; `pfedsam data check` lists them all."
