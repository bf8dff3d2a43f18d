"""Summaries of several sites and their differences, with values computed by hand."""

from pathlib import Path

import pytest

from pfedsam.core.errors import DataError
from pfedsam.data.site_summary import BINS, SPACING_EDGES, ClassFrequency, Histogram, SiteSummaryFile
from pfedsam.report.format import MISSING
from pfedsam.report.summaries_page import (
    check_names,
    differences,
    intensity_distance,
    mean_intensity,
    summary_rows,
    write_summaries_page,
)


def summary(
    site: str, *, bin_: int = 8, spacing: int = 7, share: float | None = 0.1, **changes: object
) -> SiteSummaryFile:
    """A site of 20 pictures whose intensities lie in one bin, and their spacing in one."""
    counts = tuple(20 if number == spacing else 0 for number in range(len(SPACING_EDGES) + 1))
    content: dict[str, object] = {
        "site": site,
        "min_cases": 1,
        "kind": "pictures",
        "cases": 20,
        "patients": 20,
        "intensities": tuple(float(number == bin_) for number in range(BINS)),
        "sizes": Histogram(edges=(64,), counts=(0, 20)),
        "depths": None,
        "spacing": Histogram(edges=SPACING_EDGES, counts=counts),
        "slice_distance": None,
        "without_spacing": 0,
        "classes": {"cup": ClassFrequency(annotated=True, cases=20, share=share)},
    }
    return SiteSummaryFile.model_validate(content | changes)


def withheld(site: str) -> SiteSummaryFile:
    """A site of so few pictures that no number is given."""
    nothing = {"cases": None, "patients": None, "intensities": None, "without_spacing": None}
    tables = {name: {"edges": (1,), "counts": (None, None)} for name in ("sizes", "spacing")}
    classes = {"cup": {"annotated": True, "cases": None, "share": None}}
    content = summary(site).model_dump(by_alias=True) | nothing | tables | {"classes": classes, "min_cases": 10}
    return SiteSummaryFile.model_validate(content)


def test_distance_and_mean_are_those_of_moved_bins() -> None:
    one, other = summary("a", bin_=0), summary("b", bin_=16)
    assert intensity_distance(one, other) == pytest.approx(0.5)
    assert intensity_distance(one, one) == 0
    assert intensity_distance(one, withheld("c")) is None
    assert mean_intensity(one.intensities or ()) == pytest.approx(0.5 / BINS)


def test_sizes_of_pixels_are_missing_where_no_case_has_a_spacing_and_not_withheld() -> None:
    unknown = {"edges": (1,), "counts": (None, None)}
    known = {"min_cases": 10, "without_spacing": 20, "spacing": unknown, "sizes": unknown}
    without = SiteSummaryFile.model_validate(summary("a").model_dump(by_alias=True) | known)
    assert summary_rows(without)["pixel in mm (bins)"] == MISSING
    assert summary_rows(withheld("b"))["pixel in mm (bins)"] == "withheld"


def test_sites_that_are_alike_have_no_difference() -> None:
    assert differences([summary("a"), summary("b", bin_=10, share=0.15)]) == []


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"bin_": 24}, "a and b differ in intensity: their distributions are 0.50 apart (mean 0.27 and 0.77)."),
        ({"spacing": 2}, "a and b differ in scale: the distance of their pixels is about 0.89 and 0.24 mm."),
        ({"share": 0.03}, "a and b differ in labels: 'cup' fills on average 10 % and 3 % of the masks that have it."),
        ({"classes": {}}, "a and b differ in labels: b has no class 'cup'."),
        (
            {"classes": {"cup": {"annotated": False, "cases": None, "share": None}}},
            "a and b differ in labels: b does not annotate 'cup'.",
        ),
    ],
)
def test_a_difference_is_told_with_both_names(other, said: str) -> None:
    assert differences([summary("a"), summary("b", **other)]) == [said]


def test_withheld_numbers_are_shown_as_such() -> None:
    rows = summary_rows(withheld("a"))
    assert (rows["pictures"], rows["patients"]) == ("fewer than 10", "fewer than 10")
    assert rows["pixel in mm (bins)"] == "withheld"
    assert summary_rows(summary("a"))["pixel in mm (bins)"] == "0.8 to 1 (20)"


def test_a_count_that_is_withheld_because_the_rest_is_small_is_not_called_small() -> None:
    """Of 100 cases, 95 have the class, 95 no spacing, and 95 one size; the other 5 are withheld, and so are these."""
    known = {"cases": 100, "patients": 100, "intensities": summary("a").intensities}
    many = SiteSummaryFile.model_validate(withheld("a").model_dump(by_alias=True) | known)
    rows = summary_rows(many)
    assert "fewer than" not in " ".join(rows.values())
    assert (rows["without spacing"], rows["class cup"]) == (MISSING, f"{MISSING} cases, {MISSING}")
    assert rows["longer side in pixels (bins)"] == "withheld"


def test_a_share_says_that_it_is_a_mean() -> None:
    assert summary_rows(summary("a"))["class cup"] == "20 cases, mean 10 % of the pixels"


def test_the_page_holds_every_site_and_difference(tmp_path: Path) -> None:
    path = write_summaries_page([summary("north"), summary("south", bin_=24), withheld("east")], tmp_path / "c.html")
    text = path.read_text()
    assert text.count("<svg") >= 2
    assert "north and south differ in intensity" in text
    assert "0.500" in text


def test_summaries_of_one_site_are_refused() -> None:
    with pytest.raises(DataError, match="at least two"):
        check_names([summary("a")])
    with pytest.raises(DataError, match="a site 'a'"):
        check_names([summary("a"), summary("a")])
