"""From scores per case to a line per site and one for the federation: never a mean without the worst site beside it.

Order of the means (docs/evidence.md): over the cases of a site for each class, over the classes, then over the sites.
Undefined measures are left out of a mean and counted; a mean of nothing is None. Distances in mm and in pixels are
never averaged together: where both occur the unit is "mixed" and the mean distance None.
"""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from pfedsam.core.errors import DataError
from pfedsam.evaluation.scores import MEASURES, CaseScores, ClassScores, Unit

SummaryUnit: TypeAlias = Unit | Literal["mixed"]
"""The unit of a mean distance; "mixed" where there is none."""

_DISTANCES = frozenset({"hd95", "assd"})


@dataclass(frozen=True)
class ClassSummary:
    """The mean over a site's cases for one class, and the number of cases in which each measure was undefined."""

    mean: ClassScores
    undefined: dict[str, int]


@dataclass(frozen=True)
class SiteSummary:
    """One model at one site: the mean of the classes' means, and what was undefined over all cases and classes.

    The mean over sites has the same form: each number a mean over sites, each count a sum.
    """

    cases: int
    unit: SummaryUnit
    mean: ClassScores
    classes: dict[str, ClassSummary]
    undefined: dict[str, int]


@dataclass(frozen=True)
class FederationSummary:
    """One model over all sites; `spread` is the standard deviation between sites, None for fewer than two."""

    mean: SiteSummary
    spread: ClassScores
    worst_site: str | None


def summarize_site(scores: Sequence[CaseScores]) -> SiteSummary:
    """The summary of one model at one site.

    Raises:
        DataError: There are no cases, or the cases were scored for different classes.
    """
    if not scores:
        raise DataError("no case was scored: a site needs a test case. Check its split with `pfedsam data split`.")
    names = list(scores[0].classes)
    if any(list(case.classes) != names for case in scores):
        raise DataError(f"the cases of one site were scored for different classes; all must be scored for {names}.")
    unit = _common_unit(case.unit for case in scores)
    classes = {name: _summarize_class([case.classes[name] for case in scores], unit) for name in names}
    return SiteSummary(
        cases=len(scores),
        unit=unit,
        mean=_mean_of([entry.mean for entry in classes.values()], unit),
        classes=classes,
        undefined=_sum_counts(entry.undefined for entry in classes.values()),
    )


def summarize_sites(sites: Mapping[str, SiteSummary]) -> FederationSummary:
    """The summary over sites, each site with the same weight.

    Raises:
        DataError: There are no sites, or they were scored for different classes.
    """
    if not sites:
        raise DataError("there is no site to summarise: a federation needs at least one site with scored cases.")
    every = list(sites.values())
    names = list(every[0].classes)
    if any(list(site.classes) != names for site in every):
        raise DataError(f"the sites were scored for different classes; all must be scored for {names}.")
    unit = _common_unit(site.unit for site in every)
    means = [site.mean for site in every]
    mean = SiteSummary(
        cases=sum(site.cases for site in every),
        unit=unit,
        mean=_mean_of(means, unit),
        classes={name: _summarize_classes([site.classes[name] for site in every], unit) for name in names},
        undefined=_sum_counts(site.undefined for site in every),
    )
    spread = ClassScores(**{name: _spread(_column(means, name, unit)) for name in MEASURES})
    return FederationSummary(mean, spread, worst_site({name: site.mean.dice for name, site in sites.items()}))


def worst_site(dice: Mapping[str, float | None]) -> str | None:
    """The site with the lowest Dice, the first by name where several tie; None where no site has a Dice."""
    known = [(value, name) for name, value in dice.items() if value is not None]
    return min(known)[1] if known else None


def _summarize_class(scores: Sequence[ClassScores], unit: SummaryUnit) -> ClassSummary:
    """The mean over cases of one class; `undefined` counts the cases' own None, whatever the unit."""
    undefined = {name: sum(getattr(one, name) is None for one in scores) for name in MEASURES}
    return ClassSummary(mean=_mean_of(scores, unit), undefined=undefined)


def _summarize_classes(classes: Sequence[ClassSummary], unit: SummaryUnit) -> ClassSummary:
    """The mean over sites of one class."""
    return ClassSummary(
        mean=_mean_of([one.mean for one in classes], unit), undefined=_sum_counts(one.undefined for one in classes)
    )


def _sum_counts(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """The counts of undefined measures, added up."""
    rows = list(counts)
    return {name: sum(row[name] for row in rows) for name in MEASURES}


def _mean_of(rows: Sequence[ClassScores], unit: SummaryUnit) -> ClassScores:
    """The mean of each measure over the rows that have it."""
    return ClassScores(**{name: _mean(_column(rows, name, unit)) for name in MEASURES})


def _column(rows: Sequence[ClassScores], measure: str, unit: SummaryUnit) -> list[float]:
    """The defined values of one measure; none for a distance in mixed units."""
    if unit == "mixed" and measure in _DISTANCES:
        return []
    return [value for row in rows if (value := getattr(row, measure)) is not None]


def _mean(values: Sequence[float]) -> float | None:
    """The mean, exactly rounded, so that the order of cases changes no bit; None of nothing."""
    return statistics.fmean(values) if values else None


def _spread(values: Sequence[float]) -> float | None:
    """The sample standard deviation; None below two values."""
    return statistics.stdev(values) if len(values) > 1 else None


def _common_unit(units: Iterable[SummaryUnit]) -> SummaryUnit:
    """The one unit of all, or "mixed"."""
    distinct = set(units)
    return distinct.pop() if len(distinct) == 1 else "mixed"
