"""The summary of a site's data: what it counts, by hand, and that nothing of few cases is in it."""

import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from pfedsam.core.errors import DataError
from pfedsam.data.images import ImageOptions
from pfedsam.data.labels import LabelMap
from pfedsam.data.manifest import read_site
from pfedsam.data.site_summary import BINS, read_site_summary, summarize_data, write_site_summary
from pfedsam.data.suspicions import Study

LABELS = LabelMap({"n": [1], "other": [2]})
STUDY = Study(LABELS, ImageOptions())


def test_counts_and_shares_of_pictures(site_folder) -> None:
    site = read_site("north", site_folder("a", "b", "c"))  # 6 x 4, four pixels of id 1, values 5, 15 and 25
    found = summarize_data(site, STUDY, min_cases=1)
    assert (found.kind, found.cases, found.patients, found.without_spacing) == ("pictures", 3, 3, 3)
    assert found.sizes.counts[0] == 3
    assert sum(found.sizes.counts) == 3  # type: ignore[arg-type]
    assert found.depths is None
    assert found.classes["n"].cases == 3
    assert found.classes["n"].share == pytest.approx(4 / 24)
    assert (found.classes["other"].cases, found.classes["other"].share) == (0, None)
    # 5 of 255 lies in the first of 32 bins, 15 in the second, 25 in the fourth.
    assert found.intensities == pytest.approx([1 / 3, 1 / 3, 0, 1 / 3, *[0] * (BINS - 4)])


def test_nothing_that_stands_for_few_cases_is_in_it(site_folder) -> None:
    site = read_site("north", site_folder("a", "b", "c"))
    found = summarize_data(site, STUDY, min_cases=4)
    numbers = found.model_dump(exclude={"site", "min_cases", "kind", "schema_"})
    for key in ("sizes", "spacing"):
        assert set(numbers.pop(key)["counts"]) == {None}
    assert {name: set(one.values()) for name, one in numbers.pop("classes").items()} == {
        "n": {True, None},
        "other": {True, None},
    }
    assert set(numbers.values()) == {None}


def test_a_class_of_a_part_of_the_cases_and_one_that_is_not_annotated(site_folder) -> None:
    site = read_site("north", site_folder("a", "b", "c"))
    own = LabelMap({"n": [1], "other": []}, frozenset({"other"}))
    found = summarize_data(site, replace(STUDY, site_labels={"north": own}), min_cases=3)
    assert found.classes["n"].cases == 3
    assert (found.classes["other"].annotated, found.classes["other"].cases) == (False, None)


@pytest.mark.parametrize(
    ("with_spacing", "told"),
    [(4, (None, 4)), (2, (2, 2)), (1, (None, None)), (3, (None, None))],
    ids=["all have a spacing", "two of four", "one of four", "all but one"],
)
def test_the_number_of_cases_without_spacing_does_not_follow_from_the_histogram(
    site_folder, with_spacing: int, told: tuple[int | None, int | None]
) -> None:
    site = read_site("north", site_folder("a", "b", "c", "d"))
    cases = tuple(
        replace(case, spacing_mm=(0.7, 0.7) if n < with_spacing else None) for n, case in enumerate(site.cases)
    )
    found = summarize_data(replace(site, cases=cases), STUDY, min_cases=2)
    assert (found.without_spacing, found.spacing.counts[6]) == told  # 0.6 to 0.8 mm


def test_volumes_have_slices_and_their_distance(tmp_path: Path) -> None:
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
    for number in range(2):
        values = np.arange(20 * 16 * 4, dtype=np.int16).reshape(20, 16, 4)
        affine = np.diag([0.7, 0.7, 4.0, 1.0])
        nib.save(nib.Nifti1Image(values, affine), tmp_path / "images" / f"v{number}.nii.gz")
        nib.save(nib.Nifti1Image((values > 700).astype(np.uint8), affine), tmp_path / "masks" / f"v{number}.nii.gz")
    found = summarize_data(read_site("north", tmp_path), STUDY, min_cases=2)
    assert (found.kind, found.cases) == ("volumes", 2)
    at = {
        key: [n for n, count in enumerate(getattr(found, key).counts) if count] for key in ("depths", "slice_distance")
    }
    assert at == {"depths": [1], "slice_distance": [12]}  # 2 to 8 slices; 3 to 5 mm
    assert found.spacing.counts[6] == 2  # 0.6 to 0.8 mm
    assert sum(found.intensities or ()) == pytest.approx(1)


def test_the_number_of_volumes_without_a_thickness_does_not_follow_from_the_histogram(tmp_path: Path) -> None:
    """Three single slices, one of which has no thickness."""
    for number in range(3):
        values = np.arange(20 * 16, dtype=np.int16).reshape(20, 16, 1)
        for part, content in (("images", values), ("masks", (values > 200).astype(np.uint8))):
            image = nib.Nifti1Image(content, None)
            image.header["pixdim"][1:4] = 0.7, 0.7, 4 if number else 0
            (tmp_path / part).mkdir(exist_ok=True)
            (tmp_path / part / f"v{number}.nii").write_bytes(image.to_bytes())
    found = summarize_data(read_site("north", tmp_path), STUDY, min_cases=2)
    assert (found.spacing.counts[6], any(found.slice_distance.counts)) == (3, False)


def test_a_summary_comes_back_equal_and_names_no_case(site_folder, tmp_path: Path) -> None:
    found = summarize_data(read_site("north", site_folder("Jane-Doe", "b")), STUDY, min_cases=1)
    write_site_summary(tmp_path / "north.json", found)
    assert read_site_summary(tmp_path / "north.json") == found
    assert "Jane" not in (tmp_path / "north.json").read_text()


@pytest.mark.parametrize(
    "change",
    [
        {"min_cases": 0},
        {"intensities": [0.5]},
        {"intensities": [2.0] * BINS},
        {"sizes": {"edges": [1, 2], "counts": [1]}},
        {"sizes": {"edges": [2, 1], "counts": [1, 1, 1]}},
        {"site": "<script>"},
        {"cases": 1},
        {"patients": 3},
        {"without_spacing": 1},
        {"intensities": None},
        {"intensities": [1 / BINS / 2] * BINS},
        {"depths": {"edges": [2], "counts": [0, 2]}},
        {"classes": {"n": {"annotated": True, "cases": 2, "share": None}}},
        {"classes": {"n": {"annotated": False, "cases": 2, "share": 0.5}}},
        {"min_cases": 3},
        {"schema": 2},
        {"case": "Jane"},
    ],
)
def test_what_is_no_summary_is_refused_by_its_name(site_folder, tmp_path: Path, change) -> None:
    found = summarize_data(read_site("north", site_folder("a", "b")), STUDY, min_cases=1)
    write_site_summary(tmp_path / "north.json", found)
    content = json.loads((tmp_path / "north.json").read_text())
    (tmp_path / "north.json").write_text(json.dumps(content | change))
    with pytest.raises(DataError, match=r"'north\.json' is not a summary"):
        read_site_summary(tmp_path / "north.json")


@pytest.mark.parametrize("text", ["", "{", "[]", "NaN", "[" * 100_000])
def test_a_file_of_anything_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(DataError, match="pfedsam data summary"):
        read_site_summary(tmp_path / "x.json")


def test_a_site_with_a_problem_has_no_summary(site_folder) -> None:
    folder = site_folder("a", "b")
    (folder / "masks" / "b.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match="case 'b'"):
        summarize_data(read_site("north", folder), STUDY, min_cases=1)
