"""Statistics of a comparison: pure functions on numbers (docs/evidence.md).

Two models are compared on the same cases. A patient may have several, and with several seeds a case may lie in several test parts; a
patient's differences belong together and are resampled together, because they are not independent (a cluster bootstrap; Davison and
Hinkley, 1997, sec. 3.8).
"""

import statistics
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import stats

from pfedsam.core.errors import DataError

Strata: TypeAlias = Mapping[str, Sequence[Sequence[float]]]
"""Site to patients to the differences of one patient, one for each of its cases and each seed in which it was tested."""


def mean_and_spread(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Mean and sample standard deviation; None of nothing, and no spread of one value."""
    mean = statistics.fmean(values) if values else None
    return mean, statistics.stdev(values) if len(values) > 1 else None


def stratified_mean(strata: Strata) -> float:
    """The mean over sites of the mean over all differences of a site.

    Raises:
        DataError: a site has no difference.
    """
    return statistics.fmean(_mean(site, cases) for site, cases in strata.items())


def bootstrap_interval(
    strata: Strata, *, generator: np.random.Generator, resamples: int = 10_000, level: float = 0.95
) -> tuple[float, float]:
    """The percentile interval of `stratified_mean`, patients drawn anew within each site.

    Args:
        strata: differences by site and patient.
        generator: decides what is drawn.
        resamples: how often.
        level: of the interval, as 0.95.

    Raises:
        DataError: a site has no difference.
    """
    total = np.zeros(resamples)
    for site, cases in strata.items():
        _mean(site, cases)
        filled = [case for case in cases if case]
        sums = np.array([sum(case) for case in filled])
        counts = np.array([len(case) for case in filled])
        drawn = generator.integers(len(filled), size=(resamples, len(filled)))
        total += sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.quantile(total / len(strata), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def resampled_means(
    patients: Sequence[npt.NDArray[np.float64]], *, generator: np.random.Generator, resamples: int = 2_000
) -> npt.NDArray[np.float64]:
    """A site's mean in each draw of as many patients as it has, [resamples]; NaN where a draw holds no defined value.

    The mean is over the drawn cases for each class, then over the classes, as that of a summary.

    Args:
        patients: Values [cases, classes] of each patient, NaN where undefined.
        generator: decides what is drawn; the same one gives the same patients, so that draws of two models are paired.
        resamples: how often.
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
    """The middle part of the samples that are numbers, as (low, high); None of nothing."""
    known = samples[np.isfinite(samples)]
    if not known.size:
        return None
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def wilcoxon_p(differences: Sequence[float]) -> float | None:
    """The two-sided p of Wilcoxon's signed-rank test, zero differences left out; None of nothing, 1 where all are zero."""
    if not differences:
        return None
    values: npt.NDArray[np.float64] = np.asarray(differences, dtype=np.float64)
    if not values.any():
        return 1.0
    return float(stats.wilcoxon(values, zero_method="wilcox").pvalue)


def cluster_means(strata: Strata) -> list[float]:
    """One difference a patient, the mean over its cases and seeds: what Wilcoxon's test is made on."""
    return [statistics.fmean(case) for cases in strata.values() for case in cases if case]


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's (1979) adjusted p values of several comparisons, in the order given."""
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
