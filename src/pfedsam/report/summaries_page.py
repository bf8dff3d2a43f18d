"""The summaries of several sites' data side by side: rows for the terminal, a page, and the differences between the sites."""

import math
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import Final

from pfedsam.core.atomic import write_text
from pfedsam.core.errors import DataError
from pfedsam.data.site_summary import BINS, Histogram, SiteSummaryFile
from pfedsam.report.format import MISSING, format_cases
from pfedsam.report.page import environment

_FAR: Final = 0.1
"""Smallest distance of the intensities of two sites, in a range of 1, that is reported as a difference."""
_FACTOR: Final = 2.0
"""Smallest factor between the pixel sizes, or the shares of a class, of two sites that is reported as a difference."""
_HEIGHT: Final = 60
"""Height of the drawing of a histogram in pixels."""


def summary_rows(summary: SiteSummaryFile) -> dict[str, str]:
    """The properties of a site as text, by the name of the property."""
    least = summary.min_cases
    none_has_spacing = summary.cases is not None and summary.without_spacing == summary.cases
    rows = {
        summary.kind: format_cases(summary.cases, min_cases=least),
        "patients": format_cases(summary.patients, min_cases=least),
        "mean intensity": MISSING if summary.intensities is None else f"{mean_intensity(summary.intensities):.2f}",
        "longer side in pixels (bins)": _bins(summary.sizes, least),
        "pixel in mm (bins)": MISSING if none_has_spacing else _bins(summary.spacing, least),
        "without spacing": format_cases(summary.without_spacing),
    }
    if summary.depths is not None and summary.slice_distance is not None:
        rows |= {
            "slices (bins)": _bins(summary.depths, least),
            "slice distance in mm (bins)": MISSING if none_has_spacing else _bins(summary.slice_distance, least),
        }
    for name, one in summary.classes.items():
        share = MISSING if one.share is None else f"mean {100 * one.share:.2g} % of the pixels"
        rows[f"class {name}"] = f"{format_cases(one.cases)} cases, {share}" if one.annotated else "not annotated"
    return rows


def mean_intensity(intensities: Sequence[float]) -> float:
    """The mean intensity from counts in equal bins between 0 and 1, with the middle of each bin as its value."""
    return sum((number + 0.5) / BINS * part for number, part in enumerate(intensities)) / (sum(intensities) or 1)


def intensity_distance(one: SiteSummaryFile, other: SiteSummaryFile) -> float | None:
    """The Wasserstein distance of order 1 between the intensities of two sites, in 0..1."""
    if one.intensities is None or other.intensities is None:
        return None
    total, moved = 0.0, 0.0
    for mine, theirs in zip(one.intensities, other.intensities, strict=True):
        moved += mine - theirs
        total += abs(moved) / BINS
    return total


def differences(summaries: Sequence[SiteSummaryFile]) -> list[str]:
    """One sentence for each difference between two sites; an empty list if there is none."""
    kinds = (_intensities, _scales, _labels)
    return [text for one, other in combinations(summaries, 2) for differing in kinds for text in differing(one, other)]


def _intensities(one: SiteSummaryFile, other: SiteSummaryFile) -> Iterator[str]:
    both = f"{one.site} and {other.site}"
    if one.kind != other.kind:
        yield f"{both}: one has {one.kind}, the other {other.kind}, which no study takes together."
    distance = intensity_distance(one, other)
    if distance is not None and distance >= _FAR and one.intensities and other.intensities:
        means = f"mean {mean_intensity(one.intensities):.2f} and {mean_intensity(other.intensities):.2f}"
        yield f"{both} differ in intensity: their distributions are {distance:.2f} apart ({means})."


def _scales(one: SiteSummaryFile, other: SiteSummaryFile) -> Iterator[str]:
    both = f"{one.site} and {other.site}"
    scales = {"pixels": (one.spacing, other.spacing), "slices": (one.slice_distance, other.slice_distance)}
    for what, found in scales.items():
        lengths = _if_far_apart(*map(_middle, found))
        if lengths:
            yield f"{both} differ in scale: the distance of their {what} is about {lengths[0]:.2g} and {lengths[1]:.2g} mm."


def _labels(one: SiteSummaryFile, other: SiteSummaryFile) -> Iterator[str]:
    both = f"{one.site} and {other.site}"
    for name in dict.fromkeys([*one.classes, *other.classes]):
        mine, theirs = one.classes.get(name), other.classes.get(name)
        if mine is None or theirs is None:
            yield f"{both} differ in labels: {one.site if mine is None else other.site} has no class {name!r}."
        elif mine.annotated != theirs.annotated:
            lacking = other.site if mine.annotated else one.site
            yield f"{both} differ in labels: {lacking} does not annotate {name!r}."
        elif shares := _if_far_apart(mine.share, theirs.share):
            percent = f"{100 * shares[0]:.2g} % and {100 * shares[1]:.2g} %"
            yield f"{both} differ in labels: {name!r} fills on average {percent} of the masks that have it."


def _if_far_apart(first: float | None, second: float | None) -> tuple[float, float] | None:
    """Two positive numbers if they are at least `_FACTOR` apart; None otherwise, and if one of them is zero or not known."""
    if not first or not second or max(first, second) < _FACTOR * min(first, second):
        return None
    return first, second


def _middle(found: Histogram | None) -> float | None:
    """The geometric middle of the fullest bin; None if the bin has no bounds, or nothing is known."""
    if found is None:
        return None
    known = [(count, number) for number, count in enumerate(found.counts) if count]
    number = max(known)[1] if known else 0
    if not 0 < number < len(found.edges):
        return None
    return math.sqrt(found.edges[number - 1] * found.edges[number])


def _bins(found: Histogram, least: int) -> str:
    """The bins with their counts, without those that are empty or withheld; "withheld" if no other is left."""
    texts = []
    for number, count in enumerate(found.counts):
        if count:
            low = f"{found.edges[number - 1]:g}" if number else "0"
            high = f"{found.edges[number]:g}" if number < len(found.edges) else "more"
            texts.append(f"{low} to {high} ({count})")
    if texts:
        return ", ".join(texts)
    return MISSING if least == 1 else "withheld"


def check_names(summaries: Sequence[SiteSummaryFile]) -> None:
    """Check that there is one summary for each of several sites.

    Raises:
        DataError: there are fewer than two summaries, or two of the same site.
    """
    names = [one.site for one in summaries]
    if len(names) < 2:
        raise DataError("one summary cannot be compared; give the files of at least two sites")
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise DataError(f"two of the summaries are of a site {twice[0]!r}; give one file of each site")


def write_summaries_page(summaries: Sequence[SiteSummaryFile], out: Path) -> Path:
    """Write the page, which contains no pictures of patients, to the file `out`, and return its path.

    Raises:
        StoreError: the page cannot be written.
    """
    rows = [summary_rows(one) for one in summaries]
    html = (
        environment()
        .get_template("summaries.html.j2")
        .render(
            summaries=summaries,
            labels=list(dict.fromkeys(label for row in rows for label in row)),
            rows=rows,
            distances=[[intensity_distance(one, other) for other in summaries] for one in summaries],
            differences=differences(summaries),
            bars={one.site: _bars(one) for one in summaries},
            height=_HEIGHT,
        )
    )
    write_text(out, html)
    return out


def _bars(summary: SiteSummaryFile) -> list[float] | None:
    """The heights of the bars of the intensities in pixels; the fullest bin has the height `_HEIGHT`."""
    if summary.intensities is None:
        return None
    top = max(summary.intensities) or 1
    return [round(_HEIGHT * part / top, 1) for part in summary.intensities]
