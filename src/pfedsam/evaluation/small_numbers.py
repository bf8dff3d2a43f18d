"""Scores that stand for too few cases to leave a site, and counts (`core.small_numbers`) that do.

A mean is withheld where fewer cases than that went into it, and the mean over classes where the mean of a class
is withheld, because the difference would tell it. The same holds for sums of counts over classes.
"""

from collections.abc import Collection
from dataclasses import asdict, replace

from pfedsam.core.small_numbers import OFF, publishable_count, publishable_counts
from pfedsam.evaluation.scores import MEASURES, ClassScores
from pfedsam.evaluation.summary import ClassSummary, Occurrence, SiteSummary, sum_counts


def withhold(summary: SiteSummary, least: int) -> SiteSummary:
    """A site's summary without what stands for fewer than so many cases.

    Args:
        summary: with every count known.
        least: fewest cases that a count or a score may stand for; `OFF` gives back the summary.
    """
    if least <= OFF or summary.cases is None:
        return summary
    cases = summary.cases
    classes = {name: _withhold_class(one, cases, least) for name, one in summary.classes.items()}
    hidden = {m for name, one in classes.items() for m in _withheld(summary.classes[name].mean, one.mean)}
    few = cases < least
    return replace(
        summary,
        cases=publishable_count(cases, None, least),
        patients=publishable_count(summary.patients, None, least),
        mean=_without(summary.mean, MEASURES if few else hidden),
        classes=classes,
        undefined=sum_counts(one.undefined for one in classes.values()),
    )


def _withheld(known: ClassScores, published: ClassScores) -> list[str]:
    """The measures that are known but not published."""
    return [m for m in MEASURES if getattr(published, m) is None and getattr(known, m) is not None]


def _withhold_class(one: ClassSummary, cases: int, least: int) -> ClassSummary:
    not_annotated = one.occurrence.not_annotated if one.occurrence else None
    scored = cases - (not_annotated or 0)
    few = [name for name, count in one.undefined.items() if scored - (count or 0) < least]
    undefined = {name: publishable_count(count, scored, least) for name, count in one.undefined.items()}
    occurrence = None if one.occurrence is None else _withhold_occurrence(one.occurrence, least)
    return ClassSummary(_without(one.mean, few), undefined, occurrence)


def _withhold_occurrence(occurrence: Occurrence, least: int) -> Occurrence:
    counts = {name: count or 0 for name, count in asdict(occurrence).items()}
    missed = counts.pop("missed")  # a part of those that are present; the others add up to all cases
    kept = publishable_counts(counts, least)
    kept["missed"] = None if kept["present"] is None else publishable_count(missed, counts["present"], least)
    return Occurrence(**kept)


def _without(mean: ClassScores, measures: Collection[str]) -> ClassScores:
    return replace(mean, **dict.fromkeys(measures))
