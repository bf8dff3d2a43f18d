"""Statistics of a comparison of two models: pure functions on numbers (docs/evidence.md).

Both models are scored on the same cases. A patient may have several cases, and with several seeds a case may be in several test parts.
The differences of one patient are not independent and are therefore resampled together (a cluster bootstrap; Davison and Hinkley, 1997,
sec. 3.8).
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import stats

from pfedsam.core.errors import DataError

Strata: TypeAlias = Mapping[str, Sequence[Sequence[float]]]
"""By site and patient: the differences of the patient, one for each of its cases and each seed in which the case was tested."""


def mean_and_spread(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Mean and sample standard deviation; the mean of no value and the deviation of fewer than two values are None."""
    mean = statistics.fmean(values) if values else None
    return mean, statistics.stdev(values) if len(values) > 1 else None


def paired_difference(
    values: Mapping[str, float | None], others: Mapping[str, float | None], *, correct: float = 1.0
) -> float | None:
    """The mean over classes of one model's Dice minus another's, in the same case.

    The Dice of a class is undefined (None) where neither the truth nor the prediction contains it. If it is defined for the other model,
    that one has a false region there, and the undefined value counts as `correct`. A class that is undefined for both is left out.

    Args:
        values: Dice by class.
        others: Dice of the other model for the same classes.
        correct: the value of an exact prediction in the unit of the values.

    Returns:
        The difference; None if no class has a value.
    """
    pairs = [(values[name], others[name]) for name in values]
    differences = [
        (correct if one is None else one) - (correct if other is None else other)
        for one, other in pairs
        if one is not None or other is not None
    ]
    return mean_and_spread(differences)[0]


def clearly_positive(differences: Sequence[float]) -> bool:
    """Whether the mean of differences of patients is above 0 by more than twice its standard error.

    A single difference is no evidence, because it has no standard error (docs/decisions/0027).
    """
    mean, deviation = mean_and_spread(differences)
    if mean is None or deviation is None:
        return False
    return mean > 2 * deviation / math.sqrt(len(differences))


def stratified_mean(strata: Strata) -> float:
    """The mean over sites of each site's mean over all its differences.

    Raises:
        DataError: a site has no difference.
    """
    return statistics.fmean(_mean(site, cases) for site, cases in strata.items())


def bootstrap_interval(
    strata: Strata, *, generator: np.random.Generator, resamples: int = 10_000, level: float = 0.95
) -> tuple[float, float] | None:
    """The bootstrap percentile interval of `stratified_mean`, with patients resampled within each site.

    None if a site has a single patient: the spread between its patients is unknown, so that the interval would be too narrow.

    Args:
        strata: differences by site and patient.
        generator: source of the random draws.
        resamples: number of resamples.
        level: confidence level of the interval, such as 0.95.

    Raises:
        DataError: a site has no difference.
    """
    total, patients = np.zeros(resamples), []
    for site, cases in strata.items():
        _mean(site, cases)
        filled = [case for case in cases if case]
        patients.append(len(filled))
        sums = np.array([sum(case) for case in filled])
        counts = np.array([len(case) for case in filled])
        drawn = generator.integers(len(filled), size=(resamples, len(filled)))
        total += sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    return percentile_interval(total / len(strata), level) if min(patients) > 1 else None


def resampled_means(
    patients: Sequence[npt.NDArray[np.float64]], *, generator: np.random.Generator, resamples: int = 2_000
) -> npt.NDArray[np.float64]:
    """A site's mean in each resample of its patients, shape [resamples]; NaN where a resample has no defined value.

    Each resample draws as many patients as the site has, with replacement. As in a summary, the mean is first taken over the drawn cases
    for each class and then over the classes.

    Args:
        patients: values [cases, classes] of each patient, NaN where undefined.
        generator: source of the random draws; two models with generators of the same seed get the same patients, so that they are paired.
        resamples: number of resamples.
    """
    if not patients:
        return np.full(resamples, np.nan)
    sums = np.array([np.nansum(values, axis=0) for values in patients])
    counts = np.array([np.isfinite(values).sum(axis=0) for values in patients])
    drawn = generator.multinomial(len(patients), np.full(len(patients), 1 / len(patients)), size=resamples)
    of_class, defined = drawn @ sums, drawn @ counts
    means = np.divide(of_class, defined, out=np.zeros_like(of_class), where=defined > 0)
    classes = (defined > 0).sum(axis=1)
    found: npt.NDArray[np.float64] = np.full(resamples, np.nan)
    np.divide(means.sum(axis=1), classes, out=found, where=classes > 0)
    return found


def percentile_interval(samples: npt.NDArray[np.float64], level: float = 0.95) -> tuple[float, float] | None:
    """The central part of the samples, shape [n], as (low, high), without NaN; None if no sample remains."""
    known = samples[np.isfinite(samples)]
    if not known.size:
        return None
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def wilcoxon_p(differences: Sequence[float]) -> float | None:
    """The two-sided p value of Wilcoxon's signed-rank test without the zero differences.

    None if there is no difference at all, and 1 if all differences are zero.
    """
    if not differences:
        return None
    values: npt.NDArray[np.float64] = np.asarray(differences, dtype=np.float64)
    if not values.any():
        return 1.0
    return float(stats.wilcoxon(values, zero_method="wilcox").pvalue)


def cluster_means(strata: Strata) -> list[float]:
    """One difference per patient, the mean over the patient's cases and seeds: the input of Wilcoxon's test."""
    return [statistics.fmean(case) for cases in strata.values() for case in cases if case]


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """The p values of several comparisons, adjusted by Holm's method (1979), in the given order."""
    adjusted: dict[str, float] = {}
    highest = 0.0
    for done, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        highest = max(highest, min(1.0, (len(p_values) - done) * p_values[name]))
        adjusted[name] = highest
    return {name: adjusted[name] for name in p_values}


def _mean(site: str, cases: Sequence[Sequence[float]]) -> float:
    values = [value for case in cases for value in case]
    if not values:
        raise DataError(f"site {site!r} has no case that both models were scored on; compare runs of the same split.")
    return statistics.fmean(values)
