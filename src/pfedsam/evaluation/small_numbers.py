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
    hidden = {
        measure
        for name, one in classes.items()
        for measure in MEASURES
        if getattr(one.mean, measure) is None and getattr(summary.classes[name].mean, measure) is not None
    }
    few = cases < least
    return replace(
        summary,
        cases=publishable_count(cases, None, least),
        patients=publishable_count(summary.patients, None, least),
        mean=_without(summary.mean, MEASURES if few else hidden),
        classes=classes,
        undefined=sum_counts(one.undefined for one in classes.values()),
    )


def _withhold_class(one: ClassSummary, cases: int, least: int) -> ClassSummary:
    scored = cases - (one.occurrence.not_annotated or 0 if one.occurrence else 0)
    few = [name for name, count in one.undefined.items() if scored - (count or 0) < least]
    undefined = {name: publishable_count(count, scored, least) for name, count in one.undefined.items()}
    if one.occurrence is None:
        return ClassSummary(_without(one.mean, few), undefined, None)
    counts = {name: count or 0 for name, count in asdict(one.occurrence).items()}
    missed = counts.pop("missed")  # a part of those that are present; the others add up to all cases
    kept = publishable_counts(counts, least)
    kept["missed"] = None if kept["present"] is None else publishable_count(missed, counts["present"], least)
    return ClassSummary(_without(one.mean, few), undefined, Occurrence(**kept))


def _without(mean: ClassScores, measures: Collection[str]) -> ClassScores:
    return replace(mean, **dict.fromkeys(measures))
