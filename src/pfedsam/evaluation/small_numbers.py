"""Withholds scores and counts that are based on too few cases to leave a site (see also `core.small_numbers`).

A mean over too few cases is withheld. If the mean of a class is withheld, the mean over classes is withheld as well, because the former
could be computed from it. The same holds for sums of counts, over classes and over the kinds of cases in which a measure is undefined.
"""

from collections.abc import Collection, Mapping
from dataclasses import asdict, replace

from pfedsam.core.small_numbers import OFF, publishable_count, publishable_counts
from pfedsam.evaluation.scores import MEASURES, ClassScores
from pfedsam.evaluation.summary import UNDEFINED_WHERE, ClassSummary, Occurrence, SiteSummary, sum_counts


def withhold(summary: SiteSummary, least: int) -> SiteSummary:
    """A site's summary without counts and scores that are based on too few cases.

    Args:
        summary: the summary, in which every count is known.
        least: the smallest number of cases on which a count or a score may be based; with `OFF` the summary is returned unchanged.
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


def publishable_losses(losses: Mapping[str, float], cases: Mapping[str, int], least: int) -> dict[str, float]:
    """The losses of a phase that may leave a site.

    A loss over fewer than `least` different cases is withheld, and then also the total, from which it could be computed.

    Args:
        losses: the mean losses of a phase.
        cases: the number of cases over which each is a mean; a loss over no case, such as a distance between parameters, is absent.
        least: the smallest number of cases on which a loss may be based.
    """
    few = {name for name in losses if cases.get(name, least) < least}
    return {name: value for name, value in losses.items() if name not in few and not (few and name == "total")}


def _withheld(known: ClassScores, published: ClassScores) -> list[str]:
    """The measures that are known but withheld."""
    return [m for m in MEASURES if getattr(published, m) is None and getattr(known, m) is not None]


def _withhold_class(one: ClassSummary, cases: int, least: int) -> ClassSummary:
    not_annotated = one.occurrence.not_annotated if one.occurrence else None
    scored = cases - (not_annotated or 0)
    few = [name for name, count in one.undefined.items() if scored - (count or 0) < least]
    occurrence = None if one.occurrence is None else _withhold_occurrence(one.occurrence, least)
    hidden = {kind for kind, count in asdict(occurrence).items() if count is None} if occurrence else set()
    undefined = {
        name: publishable_count(count, scored, least) if hidden.isdisjoint(UNDEFINED_WHERE[name]) else None
        for name, count in one.undefined.items()
    }
    return ClassSummary(_without(one.mean, few), undefined, occurrence)


def _withhold_occurrence(occurrence: Occurrence, least: int) -> Occurrence:
    counts = {name: count or 0 for name, count in asdict(occurrence).items()}
    missed = counts.pop("missed")  # these are among the cases with the class; the other counts add up to all cases
    kept = publishable_counts(counts, least)
    kept["missed"] = None if kept["present"] is None else publishable_count(missed, counts["present"], least)
    return Occurrence(**kept)


def _without(mean: ClassScores, measures: Collection[str]) -> ClassScores:
    return replace(mean, **dict.fromkeys(measures))
