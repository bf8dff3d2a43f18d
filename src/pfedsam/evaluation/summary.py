"""Summaries of the scores per case: one for each site and one for the federation, which always names the worst site beside the mean.

The means are taken in this order (docs/evidence.md): over the cases of a site for each class, then over the classes, then over the sites.
Undefined measures are left out of a mean and counted; the mean of no value is None. Distances in mm and in pixels are never averaged
together: where both occur, the unit is "mixed" and the mean distance is None. The same holds for the surface Dice (NSD), because its
tolerance is in mm or in pixels, and for volumes.

HD95 and ASSD are means over the cases in which a class was found, so a model that misses a class often can still have small distances.
`Occurrence` therefore gives in how many cases the class is present and in how many of these it was missed.
"""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Final, Literal, TypeAlias, TypeVar

from pfedsam.core.errors import DataError
from pfedsam.evaluation.scores import MEASURES, CaseScores, ClassScores, Presence, Unit, VolumeUnit

SummaryUnit: TypeAlias = Unit | Literal["mixed"]
"""The unit of a mean distance; "mixed" if the distances have different units."""

SummaryVolumeUnit: TypeAlias = VolumeUnit | Literal["mixed"]
"""The unit of a mean volume difference; "mixed" if the volumes have different units."""

U = TypeVar("U", bound=str)
_DISTANCES: Final = frozenset({"hd95", "assd", "nsd"})
"""The distances, and the surface Dice (NSD), whose tolerance is a distance."""


@dataclass(frozen=True)
class Units:
    """The units of the means of a site or of all sites."""

    distance: SummaryUnit
    volume: SummaryVolumeUnit

    def allow(self, measure: str) -> bool:
        """Whether all values of this measure have the same unit, so that they may be averaged."""
        if measure == "volume_difference":
            return self.volume != "mixed"
        return self.distance != "mixed" or measure not in _DISTANCES


@dataclass(frozen=True)
class Occurrence:
    """Numbers of cases by the presence of a class; present, extra, absent and not annotated add up to all cases.

    A count that a site withholds (`evaluation.small_numbers`) is None.
    """

    present: int | None
    """Cases whose truth contains the class."""
    missed: int | None
    """Cases among these whose prediction does not contain the class: HD95 and ASSD are undefined, because one mask is empty."""
    extra: int | None
    """Cases whose prediction contains the class and whose truth does not: HD95 and ASSD are undefined here, too."""
    absent: int | None
    """Cases in which neither contains the class: every measure is undefined, because both masks are empty."""
    not_annotated: int | None = 0
    """Cases of a site that does not annotate the class: it is not scored there, and does not count as undefined."""

    @classmethod
    def of(cls, presences: Sequence[Presence]) -> "Occurrence":
        """The counts over a number of cases."""
        missed = presences.count("missed")
        return cls(
            presences.count("both") + missed,
            missed,
            presences.count("extra"),
            presences.count("absent"),
            presences.count("not_annotated"),
        )

    def __add__(self, other: "Occurrence") -> "Occurrence":
        both = zip(astuple(self), astuple(other), strict=True)
        return Occurrence(*(_sum_known(counts) for counts in both))


UNDEFINED_WHERE: Final[Mapping[str, tuple[str, ...]]] = {
    **dict.fromkeys(("dice", "iou", "nsd", "volume_difference"), ("absent",)),
    **dict.fromkeys(("hd95", "assd"), ("missed", "extra", "absent")),
    "lesion_recall": ("extra", "absent"),
}
"""Measure -> the kinds of cases (fields of `Occurrence`) in which it is undefined, so that its undefined cases are their sum."""


@dataclass(frozen=True)
class ClassSummary:
    """The mean over a site's cases for one class, and the number of cases in which each measure was undefined."""

    mean: ClassScores
    undefined: dict[str, int | None]
    """None for a count that the site withholds."""
    occurrence: Occurrence | None
    """None if the site runs an older version that does not count it."""


@dataclass(frozen=True)
class SiteSummary:
    """One model at one site: the mean over the class means, and the counts of undefined values over all cases and classes.

    The mean over sites has the same form: each measure is a mean over sites, and each count is a sum.
    """

    cases: int | None
    """None if the site withholds the number."""
    patients: int | None
    """None if the site withholds the number, or runs an older version that does not count them."""
    units: Units
    mean: ClassScores
    classes: dict[str, ClassSummary]
    undefined: dict[str, int | None]


@dataclass(frozen=True)
class FederationSummary:
    """One model over all sites; `spread` is the standard deviation between sites, None for fewer than two sites."""

    mean: SiteSummary
    spread: ClassScores
    worst_site: str | None


def summarize_site(scores: Sequence[CaseScores]) -> SiteSummary:
    """The summary of one model at one site.

    Raises:
        DataError: there is no case, or the cases were scored for different classes.
    """
    if not scores:
        raise DataError(
            "no case was scored, because the site has no test case. Check its split with `pfedsam data split`."
        )
    names = _common_classes([case.classes for case in scores], "the cases of one site")
    units = _common_units(Units(case.unit, case.volume_unit) for case in scores)
    classes = {name: _summarize_class(scores, name, units) for name in names}
    return SiteSummary(
        cases=len(scores),
        patients=len({case.patient for case in scores}),
        units=units,
        mean=_mean_of([entry.mean for entry in classes.values()], units),
        classes=classes,
        undefined=sum_counts(entry.undefined for entry in classes.values()),
    )


def summarize_sites(sites: Mapping[str, SiteSummary]) -> FederationSummary:
    """The summary over sites, each site with the same weight.

    Raises:
        DataError: there is no site, or the sites were scored for different classes.
    """
    if not sites:
        raise DataError("there is no site to summarise: a federation needs at least one site with scored cases.")
    mean = _mean_over_sites(list(sites.values()))
    means = [site.mean for site in sites.values()]
    spread = ClassScores(**{name: _spread(_column(means, name, mean.units)) for name in MEASURES})
    return FederationSummary(mean, spread, worst_site({name: site.mean.dice for name, site in sites.items()}))


def _mean_over_sites(sites: Sequence[SiteSummary]) -> SiteSummary:
    """The means of the measures over sites, and the sums of the counts.

    Raises:
        DataError: the sites were scored for different classes.
    """
    names = _common_classes([site.classes for site in sites], "the sites")
    units = _common_units(site.units for site in sites)
    return SiteSummary(
        cases=_sum_known([site.cases for site in sites]),
        patients=_sum_known([site.patients for site in sites]),
        units=units,
        mean=_mean_of([site.mean for site in sites], units),
        classes={name: _summarize_classes([site.classes[name] for site in sites], units) for name in names},
        undefined=sum_counts(site.undefined for site in sites),
    )


def _common_classes(scored: Sequence[Mapping[str, object]], what: str) -> list[str]:
    """The names of the classes, which must be the same, in the same order, for all that was scored.

    Raises:
        DataError: they are not; the message names `what` was scored.
    """
    names = list(scored[0])
    if any(list(classes) != names for classes in scored):
        raise DataError(f"{what} were scored for different classes; all must be scored for {names}.")
    return names


def worst_site(dice: Mapping[str, float | None]) -> str | None:
    """The site with the lowest Dice, the first by name among equal ones; None if no site has a defined Dice."""
    known = [(value, name) for name, value in dice.items() if value is not None]
    return min(known)[1] if known else None


def _summarize_class(cases: Sequence[CaseScores], name: str, units: Units) -> ClassSummary:
    """The mean over cases of one class; `undefined` counts the scored cases in which a measure is None, whatever the unit."""
    scores = [case.classes[name] for case in cases if case.presence[name] != "not_annotated"]
    undefined: dict[str, int | None] = {
        measure: sum(getattr(one, measure) is None for one in scores) for measure in MEASURES
    }
    return ClassSummary(_mean_of(scores, units), undefined, Occurrence.of([case.presence[name] for case in cases]))


def _summarize_classes(classes: Sequence[ClassSummary], units: Units) -> ClassSummary:
    """The mean over sites of one class."""
    counted = [one.occurrence for one in classes if one.occurrence is not None]
    return ClassSummary(
        mean=_mean_of([one.mean for one in classes], units),
        undefined=sum_counts(one.undefined for one in classes),
        occurrence=sum(counted, Occurrence(0, 0, 0, 0)) if len(counted) == len(classes) else None,
    )


def sum_counts(counts: Iterable[Mapping[str, int | None]]) -> dict[str, int | None]:
    """The sums of the counts of undefined measures; None where one of them is not known."""
    rows = list(counts)
    return {name: _sum_known([row[name] for row in rows]) for name in MEASURES}


def _sum_known(numbers: Sequence[int | None]) -> int | None:
    """The sum of the numbers; None if one of them is not known."""
    known = [number for number in numbers if number is not None]
    return sum(known) if len(known) == len(numbers) else None


def _mean_of(rows: Sequence[ClassScores], units: Units) -> ClassScores:
    """The mean of each measure over the rows for which it is defined."""
    return ClassScores(**{name: _mean(_column(rows, name, units)) for name in MEASURES})


def _column(rows: Sequence[ClassScores], measure: str, units: Units) -> list[float]:
    """The defined values of one measure; an empty list for a distance or a volume in mixed units."""
    if not units.allow(measure):
        return []
    return [value for row in rows if (value := getattr(row, measure)) is not None]


def _mean(values: Sequence[float]) -> float | None:
    """The exactly rounded mean, which does not depend on the order of the cases; None for no value."""
    return statistics.fmean(values) if values else None


def _spread(values: Sequence[float]) -> float | None:
    """The sample standard deviation; None for fewer than two values."""
    return statistics.stdev(values) if len(values) > 1 else None


def _common_units(units: Iterable[Units]) -> Units:
    """The units of distances and of volumes, each "mixed" if they differ."""
    rows = list(units)
    return Units(_common(one.distance for one in rows), _common(one.volume for one in rows))


def _common(units: Iterable[U]) -> U | Literal["mixed"]:
    """The unit if all have the same one, else "mixed"."""
    distinct = set(units)
    return distinct.pop() if len(distinct) == 1 else "mixed"
