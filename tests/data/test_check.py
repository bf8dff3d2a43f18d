from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from pfedsam.core.errors import DataError
from pfedsam.data.check import DataReport, check_sites, refuse_problems
from pfedsam.data.images import ImageOptions
from pfedsam.data.labels import LabelMap
from pfedsam.data.manifest import Site, read_site
from pfedsam.data.suspicions import Study

LABELS = LabelMap({"nucleus": [1], "never": [2]})
STUDY = Study(LABELS, ImageOptions(contrast="percentile"))
"""The pictures of `site_folder` are dark, and each of one value."""


def _check(site: Site, pattern: str | None = None) -> DataReport:
    return check_sites([site], replace(STUDY, patient_pattern=pattern))


def test_what_a_sound_site_has(site_folder):
    report = _check(read_site("north", site_folder("a_0", "a_1", "b_0"), patient_pattern="^(.)"))
    (site,) = report.sites
    assert (site.site, site.cases, site.patients, site.parts) == ("north", 3, 2, {})
    assert site.images.sizes == {(4, 6): 3}
    assert site.images.depths == {8: 3}
    assert site.images.channels == {1: 3}
    assert site.images.values == pytest.approx((5 / 255, 25 / 255))  # 5, 15 and 25 of 255
    assert site.images.spacings == {None: 3}
    assert site.masks.ids == {0: 3, 1: 3}
    assert site.masks.classes == {"nucleus": 3, "never": 0}
    assert site.masks.shares == {"nucleus": pytest.approx(4 / 24), "never": None}  # the diagonal of 4 x 6
    assert (site.masks.empty, site.masks.missing) == (0, 0)
    assert report.problems == ()


def test_empty_masks_and_unlabelled_images_are_counted(site_folder):
    folder = site_folder("a", "b", "c")
    Image.fromarray(np.zeros((4, 6), np.uint8)).save(folder / "masks/a.png")
    (folder / "masks/b.png").unlink()
    (site,) = _check(read_site("north", folder, masks_required=False)).sites
    assert (site.masks.empty, site.masks.missing) == (1, 1)


def test_every_case_is_counted_as_progress(site_folder):
    told = []
    check_sites([read_site("north", site_folder("a", "b"))], STUDY, tell=lambda *seen: told.append(seen))
    assert told == [(1, 2, "north"), (2, 2, "north")]


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
    report = _check(replace(site, cases=tuple(cases)))
    expected = (
        "case 'a': the image has no mask; add a mask",
        "case 'b': the image has 6 x 4 pixels, its mask 6 x 5; export",
        "case 'c': its mask has the unknown label 7; data.classes allows nucleus [1], never [2], background [0]. Add",
        "case 'd': 'd.png' is damaged or cut off",
        "case 'e': its mask 'e.png' is damaged or cut off",
        "mask 'h.png' has no image; name it",
        "case 'f': patient 'fg' is in two parts of the split ('f' in train and 'g' in test); put",
    )
    assert len(report.problems) == len(expected)
    for problem, text in zip(report.problems, expected, strict=True):
        assert problem.startswith("site 'north'")
        assert text in problem
    (found,) = report.sites
    assert found.parts == {"train": 6, "test": 1}
    assert found.images.sizes == {(4, 6): 6}
    assert found.masks.ids == {0: 4, 1: 3, 7: 1}


def test_equal_problems_are_one_line_with_three_examples(site_folder):
    folder = site_folder(*(f"c{number:03d}" for number in range(300)))
    for number in range(300):
        Image.fromarray(np.full((4, 6), 7, np.uint8)).save(folder / f"masks/c{number:03d}.png")
    (problem,) = _check(read_site("north", folder)).problems
    assert problem.startswith(
        "site 'north', 300 cases such as 'c000', 'c001', 'c002': its mask has the unknown label 7;"
    )


def test_problems_of_different_kinds_stay_apart(site_folder):
    folder = site_folder("a", "b", "c")
    Image.fromarray(np.zeros((5, 6), np.uint8)).save(folder / "masks/a.png")
    Image.fromarray(np.zeros((9, 6), np.uint8)).save(folder / "masks/b.png")
    (folder / "masks/c.png").unlink()
    first, second = _check(read_site("north", folder, masks_required=False)).problems
    assert first.startswith("site 'north', 2 cases 'a', 'b': the image has 6 x 4 pixels, its mask 6 x 5;")
    assert second.startswith("site 'north', case 'c': the image has no mask;")


def test_a_pattern_that_matches_nothing_is_a_problem(site_folder):
    site = read_site("north", site_folder("a-1", "b-1"))
    report = _check(site, "^(.+)_")
    assert report.problems == (
        "site 'north': patient_pattern '^(.+)_' matches none of its 2 file names, such as 'a-1' (the ending left out), "
        "so that every case would be a patient; correct or remove it, or let it match the names of every site: "
        "'^(.+?)(_t[0-9]+)?$' takes those with and without an ending such as _t0",
    )
    matched = read_site("north", site.folder, patient_pattern="^(.+)-")
    assert _check(matched, "^(.+)-").problems == ()
    empty = read_site("north", site.folder, patient_pattern="^(x?)")  # the group matches, and contains no patient
    assert "patient_pattern '^(x?)' matches none of its 2 file names" in _check(empty, "^(x?)").problems[0]
    (site.folder / "manifest.csv").write_text("image,mask,patient\nimages/b-1.png,masks/b-1.png,p\n")
    assert _check(read_site("north", site.folder, patient_pattern="^(.+)_"), "^(.+)_").problems == ()


def test_the_pattern_that_the_message_proposes_takes_both_kinds_of_names(site_folder):
    site = read_site("north", site_folder("a_t0", "a_t11", "b"), patient_pattern="^(.+?)(_t[0-9]+)?$")
    assert {name: len(cases) for name, cases in site.patients().items()} == {"a": 2, "b": 1}


def test_an_empty_site_and_a_size_limit(site_folder, tmp_path):
    assert _check(Site("north", tmp_path, ())).problems == ("site 'north': has no cases; add images and masks",)
    study = replace(STUDY, image=ImageOptions(max_megapixels=1e-5))
    image, mask = check_sites([read_site("north", site_folder("a"))], study).problems
    assert image.startswith("site 'north', case 'a': 'a.png' has")
    assert mask.startswith("site 'north', case 'a': its mask 'a.png' has")
    assert image.endswith("or raise data.image.max_megapixels")


def test_sound_sites_pass_and_the_first_twenty_problems_are_named(site_folder, tmp_path):
    assert refuse_problems([read_site("north", site_folder("a"))], STUDY).sites[0].cases == 1
    empty = [Site(f"empty{i:02d}", tmp_path, ()) for i in range(22)]
    with pytest.raises(DataError) as caught:
        refuse_problems(empty, STUDY)
    first, *named, last = str(caught.value).splitlines()
    assert first == "The data has 22 problem(s):"
    assert [name for name in named if "has no cases" in name] == named
    assert len(named) == 20
    assert last == "... and 2 more; `pfedsam data check` lists them all."
