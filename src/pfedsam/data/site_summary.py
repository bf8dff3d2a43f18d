"""A site's data in a few histograms that may be shown to others: no property of a single case, and no count of few cases.

`pfedsam data summary` writes a summary, and `pfedsam data compare` shows those of several sites side by side. Intensities are those of the
model's input, after contrast and normalisation. The edges of the histograms are the same everywhere, so that sites can be compared.

A summary is checked as a whole wherever it is made or read: its numbers agree with each other, and none stands for fewer cases than its
`min_cases`, nor can such a number be computed from the others.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Annotated, Final, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from pydantic import Field, ValidationError, model_validator

from pfedsam.core import atomic
from pfedsam.core.errors import DataError
from pfedsam.core.files import read_regular
from pfedsam.core.options import Options, first_mistake
from pfedsam.core.small_numbers import OFF, publishable_count, publishable_counts
from pfedsam.data.about import about
from pfedsam.data.facts import CaseFacts, SiteFacts, gather_facts
from pfedsam.data.labels import LabelMap
from pfedsam.data.loader import load_image
from pfedsam.data.manifest import Case, Site
from pfedsam.data.suspicions import Study
from pfedsam.data.volume_case import open_case

BINS: Final = 32
"""Number of bins of the intensities between 0 and 1."""
SPACING_EDGES: Final = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0)
"""In mm; values below the first and above the last edge have a bin as well."""
SIZE_EDGES: Final = (64, 128, 192, 256, 320, 384, 512, 768, 1024, 1536, 2048, 4096)
"""Of the longer side of a picture or slice, in pixels."""
DEPTH_EDGES: Final = (2, 8, 16, 32, 64, 128, 256, 512)
"""Of a volume, in slices."""
HISTOGRAMS: Final[Mapping[str, tuple[float, ...]]] = {
    "sizes": SIZE_EDGES,
    "depths": DEPTH_EDGES,
    "spacing": SPACING_EDGES,
    "slice_distance": SPACING_EDGES,
}
"""The fields of a summary that are histograms of cases, with their edges."""
OF_VOLUMES: Final = ("depths", "slice_distance")
"""The histograms that only volumes have."""
_SHOWN_SLICES: Final = 5
"""Slices of a volume, evenly spaced, whose intensities are counted."""
_MOST_BYTES: Final = 1_000_000
_MOST_CASES: Final = 1_000_000
_ROUNDING: Final = 1e-6
_Count: TypeAlias = Annotated[int, Field(ge=0, le=_MOST_CASES)] | None
_Share: TypeAlias = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class Histogram(Options):
    """Numbers of cases between edges."""

    edges: tuple[float, ...]
    counts: tuple[_Count, ...] = Field(description="One more than there are edges; null: withheld.")

    @model_validator(mode="after")
    def _one_more(self) -> "Histogram":
        if len(self.counts) != len(self.edges) + 1 or list(self.edges) != sorted(set(self.edges)):
            raise ValueError("a histogram has ascending edges and one count more than it has edges")
        return self


class ClassFrequency(Options):
    """How often a class occurs."""

    annotated: bool
    cases: _Count = Field(description="Masks that have it; null: withheld, or not annotated.")
    share: _Share | None = Field(
        description="Mean part of the pixels of these masks; null: withheld, or there is none."
    )


class SiteSummaryFile(Options):
    """The content of the file."""

    schema_: Literal[1] = Field(default=1, alias="schema")
    site: str = Field(pattern=r"^[\w.\-]{1,100}$")
    min_cases: int = Field(ge=1, description="The fewest cases that a number stands for.")
    kind: Literal["pictures", "volumes"]
    cases: _Count
    patients: _Count
    intensities: tuple[_Share, ...] | None = Field(
        description="Part of the pixels of all cases, each case with the same weight, in equal bins between 0 and 1."
    )
    sizes: Histogram = Field(description="The longer side in pixels.")
    depths: Histogram | None = Field(description="Slices of volumes.")
    spacing: Histogram = Field(description="Size of a pixel in mm, the larger of both.")
    slice_distance: Histogram | None = Field(description="Of volumes, in mm.")
    without_spacing: _Count
    classes: dict[str, ClassFrequency]

    @model_validator(mode="after")
    def _bins(self) -> "SiteSummaryFile":
        if self.intensities is not None and len(self.intensities) != BINS:
            raise ValueError(f"intensities have {BINS} bins")
        return self

    @model_validator(mode="after")
    def _sound(self) -> "SiteSummaryFile":
        groups = chain.from_iterable(_problems_of(group, self) for group in _groups(self))
        problem = next(chain(_contradictions(self), groups), None)
        if problem:
            raise ValueError(problem)
        return self


@dataclass(frozen=True)
class _Group:
    """Counts of cases that belong together."""

    name: str
    counts: tuple[int | None, ...]
    total: int | None = None
    """The number of cases that they are counted among; None if it is withheld, or if nothing follows from it."""
    every: bool = False
    """Whether each of these cases is in one of the counts."""


def _groups(summary: SiteSummaryFile) -> Iterator[_Group]:
    """All counts of a summary."""
    cases = summary.cases
    yield _Group("cases", (cases,))
    yield _Group("patients", (summary.patients,))
    yield _Group("without_spacing", (summary.without_spacing,), cases)
    with_spacing = None if cases is None else cases - (summary.without_spacing or 0)
    totals = {"sizes": cases, "depths": cases, "spacing": with_spacing, "slice_distance": with_spacing}
    for name in HISTOGRAMS:
        if (table := getattr(summary, name)) is not None:
            yield _Group(name, table.counts, totals[name], every=True)
    for name, one in summary.classes.items():
        if one.annotated:
            yield _Group(f"class {name!r}", (one.cases,), cases)


def _problems_of(group: _Group, summary: SiteSummaryFile) -> Iterator[str]:
    """What is wrong with counts: they do not add up, stand for too few cases, or are withheld without a reason."""
    least, name = summary.min_cases, group.name
    given = [count for count in group.counts if count is not None]
    rest = 0 if group.total is None else group.total - sum(given)
    whole = len(given) == len(group.counts)
    if given and summary.cases is None:
        yield f"{name} is given although the number of cases is withheld"
    if rest < 0 or (rest and group.every and whole):
        yield f"the counts of {name} do not add up to the number of cases"
    if least <= OFF and not whole:
        yield f"{name} is withheld although min_cases is {OFF}"
    if least > OFF and any(count < least for count in given):
        yield f"{name} has a count below min_cases"
    if 0 < rest < least:
        yield f"a count below min_cases can be computed from the counts of {name}"


def _contradictions(summary: SiteSummaryFile) -> Iterator[str]:
    """Contradictions between the fields, other than those within one group of counts."""
    if any((getattr(summary, name) is None) == (summary.kind == "volumes") for name in OF_VOLUMES):
        yield f"{' and '.join(OF_VOLUMES)} are given for volumes and for nothing else"
    if (summary.patients or 0) > (summary.cases or 0):
        yield "there are more patients than cases"
    known = summary.cases is not None
    if summary.intensities is None and known:
        yield "the intensities are withheld although the number of cases is given"
    if summary.intensities is not None and not (known and abs(sum(summary.intensities) - 1) <= _ROUNDING):
        yield "the intensities do not add up to 1, or are given although the number of cases is withheld"
    for name, one in summary.classes.items():
        if one.share is not None and not (one.annotated and known):
            yield f"class {name!r} has a share although it is not annotated or the number of cases is withheld"
        if one.cases is not None and not (one.annotated and bool(one.cases) == bool(one.share)):
            yield f"class {name!r} has cases without a share, a share without cases, or is not annotated"


def summarize_data(
    site: Site, study: Study, *, min_cases: int, tell: Callable[[], None] | None = None
) -> SiteSummaryFile:
    """The summary of one site; its files are read.

    Args:
        site: the site as stored on disk.
        study: its classes, and how images are read.
        min_cases: least number of cases that a published number may be computed from.
        tell: called after each case.

    Raises:
        DataError: a case has a problem, which `pfedsam data check` reports too.
    """
    labels = study.labels_of(site.name)
    facts = gather_facts(site, labels, study.image, study.volume, tell=tell)
    problems = [problem for one in facts.cases for problem in one.problems]
    if problems:
        raise DataError(
            f"{problems[0]}. {len(problems)} case(s) of the site have a problem, and a summary is of sound data: run `pfedsam data check`"
        )
    return _summary(facts, labels, study, min_cases)


def _summary(facts: SiteFacts, labels: LabelMap, study: Study, least: int) -> SiteSummaryFile:
    cases, number = facts.cases, len(facts.cases)
    kind = _kind(cases)
    volumes = kind == "volumes"
    sizes = [one.size for one in cases if one.size]
    spacings = [one.spacing_mm for one in cases if one.spacing_mm]
    known = publishable_counts({"with": len(spacings), "without": number - len(spacings)}, least)
    if known["with"] is None:
        spacings = []  # the number of cases without spacing, which is withheld, would follow from the histogram's sum
    return SiteSummaryFile(
        site=facts.name,
        min_cases=least,
        kind=kind,
        cases=publishable_count(number, None, least),
        patients=publishable_count(len(facts.site.patients()), None, least),
        intensities=None if number < least else _intensities(facts.site.cases, study),
        sizes=_histogram(_in_plane(sizes), SIZE_EDGES, least),
        depths=_histogram(_across_slices(sizes), DEPTH_EDGES, least) if volumes else None,
        spacing=_histogram(_in_plane(spacings), SPACING_EDGES, least),
        slice_distance=_histogram(_slice_distances(spacings), SPACING_EDGES, least) if volumes else None,
        without_spacing=known["without"],
        classes={name: _frequency(cases, labels, name, least) for name in labels.names},
    )


def _kind(cases: Sequence[CaseFacts]) -> Literal["pictures", "volumes"]:
    return "volumes" if any(one.case.volume for one in cases) else "pictures"


def _in_plane(lengths: Sequence[tuple[float, ...]]) -> list[float]:
    """The larger of height and width, of each size or spacing."""
    return [max(one[-2:]) for one in lengths]


def _across_slices(lengths: Sequence[tuple[float, ...]]) -> list[float]:
    """The number of slices, or their distance, of each size or spacing of a volume."""
    return [one[0] for one in lengths]


def _slice_distances(spacings: Sequence[tuple[float, ...]]) -> list[float]:
    """The distances of the slices of all volumes; none if some have no thickness, whose number would follow from the histogram's sum."""
    return _across_slices(spacings) if all(len(one) == 3 for one in spacings) else []


def _frequency(cases: Sequence[CaseFacts], labels: LabelMap, name: str, least: int) -> ClassFrequency:
    if name in labels.not_annotated:
        return ClassFrequency(annotated=False, cases=None, share=None)
    shares = [share for one in cases if (share := one.mask.share(frozenset(labels.ids[name])))]
    mean = sum(shares) / len(shares) if shares and len(shares) >= least else None
    return ClassFrequency(annotated=True, cases=publishable_count(len(shares), len(cases), least), share=mean)


def _histogram(values: Sequence[float], edges: Sequence[float], least: int) -> Histogram:
    counts = np.bincount(np.searchsorted(edges, values, side="right"), minlength=len(edges) + 1).tolist()
    shown = publishable_counts(dict(enumerate(counts)), least)
    return Histogram(edges=tuple(edges), counts=tuple(shown[number] for number in range(len(counts))))


def _intensities(cases: Sequence[Case], study: Study) -> tuple[float, ...]:
    """The share of pixels in each bin, averaged over the cases."""
    total = np.zeros(BINS)
    for case in cases:
        values = np.concatenate([picture.mean(axis=-1).ravel() for picture in _pictures(case, study)])
        total += np.histogram(values, bins=BINS, range=(0, 1))[0] / values.size
    return tuple((total / len(cases)).clip(0, 1).tolist())


def _pictures(case: Case, study: Study) -> list[npt.NDArray[np.float32]]:
    """The model's input for a case: the picture, or evenly spaced slices, each [H, W, 3] in 0..1."""
    if not case.volume:
        return [load_image(case, study.image)]
    volume = open_case(case, study.image, study.volume)
    depth = volume.shape[0]
    chosen = sorted({round(place) for place in np.linspace(0, depth - 1, min(depth, _SHOWN_SLICES))})
    with about(case):
        return [volume.pixels(number) for number in chosen]


def write_site_summary(path: Path, summary: SiteSummaryFile) -> None:
    """Write a summary.

    Raises:
        StoreError: the file could not be written.
    """
    atomic.write_json(path, summary.model_dump(mode="json", by_alias=True), mode=0o644)


def read_site_summary(path: Path) -> SiteSummaryFile:
    """The summary in a file, which may come from another site.

    Raises:
        DataError: the file cannot be read, or is no summary.
    """
    try:
        content: Mapping[str, object] = json.loads(read_regular(path, _MOST_BYTES))
        return SiteSummaryFile.model_validate(content)
    except OSError as error:
        raise DataError(
            f"{path.name!r} cannot be read ({error.strerror}); give a file of `pfedsam data summary`"
        ) from error
    except ValidationError as error:
        raise DataError(
            f"{path.name!r} is not a summary of a site: {first_mistake(error)}; give a file of `pfedsam data summary`"
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path.name!r} is not a summary of a site; give a file of `pfedsam data summary`") from error
