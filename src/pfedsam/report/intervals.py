"""Bootstrap intervals of a run's Dice and of differences between runs, with patients resampled within each site (`docs/evidence.md`).

The intervals need the scores of single cases, which are only in each site's own folder (`sites/<name>/scores.json`). A run on one machine
has these folders. The coordinator of a study between hospitals gets summaries only, so its report has no intervals.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from pfedsam.core import rng
from pfedsam.core.errors import StoreError
from pfedsam.core.files import read_regular
from pfedsam.evaluation.statistics import percentile_interval, resampled_means
from pfedsam.report.summary_file import Summary

Interval: TypeAlias = tuple[float, float]
"""Lower and upper end of a 95 % interval."""

NO_INTERVALS: Final = (
    "There are no intervals: they need the scores of single cases, which stay at the sites. Each site finds its own in scores.json "
    "in its study folder."
)


@dataclass(frozen=True)
class RunIntervals:
    """The resampled Dice of one run; runs that were tested on the same patients use the same resamples."""

    patients: Mapping[str, tuple[str, ...]]
    """Test patients by site."""
    samples: Mapping[str, npt.NDArray[np.float64]]
    """Dice of each resample, [draws], by site; NaN where a resample has no case with a defined Dice."""

    def of_site(self, site: str) -> Interval | None:
        """The interval of a site's Dice; None if it is undefined, for example with a single patient."""
        return self._interval(self.samples[site], [site]) if site in self.samples else None

    def of_mean(self) -> Interval | None:
        """The interval of the mean over sites."""
        return self._interval(self._mean, list(self.samples))

    def difference(self, other: "RunIntervals", site: str | None = None) -> Interval | None:
        """The interval of this run's Dice minus the other's at a site, or of the means over sites; None where the patients differ."""
        sites = list(self.samples) if site is None else [site]
        if any(name not in other.patients or self.patients.get(name) != other.patients[name] for name in sites):
            return None
        if site is not None:
            return self._interval(self.samples[site] - other.samples[site], sites)
        return (
            self._interval(self._mean - other._mean, sites) if self.patients.keys() == other.patients.keys() else None
        )

    @property
    def _mean(self) -> npt.NDArray[np.float64]:
        """The mean over sites of the resampled Dice, shape [draws]."""
        mean: npt.NDArray[np.float64] = np.mean(list(self.samples.values()), axis=0)
        return mean

    def _interval(self, samples: npt.NDArray[np.float64], sites: Sequence[str]) -> Interval | None:
        """The interval of samples of shape [draws]; None if no site has two patients, as the spread between patients is unknown then."""
        return percentile_interval(samples) if any(len(self.patients[site]) > 1 for site in sites) else None


def read_intervals(run_folder: Path, summary: Summary) -> RunIntervals | None:
    """The intervals of the model in use; None if the scores of a site are not in the folder.

    Raises:
        StoreError: a file with scores is damaged.
    """
    model = "shared" if summary.mean.personal is None else "personal"
    patients, samples = {}, {}
    for site in summary.sites:
        path = run_folder / "sites" / site / "scores.json"
        if Path(site).name != site or not path.is_file():
            return None
        rows = _dice_by_patient(path, model)
        patients[site] = tuple(rows)
        generator = rng.numpy_generator(0, site, "bootstrap of patients")
        samples[site] = resampled_means(list(rows.values()), generator=generator)
    return RunIntervals(patients, samples) if samples else None


def difference_interval(
    own: RunIntervals | None, other: RunIntervals | None, site: str | None = None
) -> Interval | None:
    """The interval of `own` minus `other` at a site, or of their means over sites; None if a run has no intervals."""
    return None if own is None or other is None else own.difference(other, site)


def are_apart(one: Interval | None, other: Interval | None) -> bool:
    """Whether two intervals are known and do not overlap."""
    return one is not None and other is not None and (one[0] > other[1] or other[0] > one[1])


def _dice_by_patient(path: Path, model: str) -> dict[str, npt.NDArray[np.float64]]:
    """Dice [cases, classes] by patient, NaN where undefined; patients are in alphabetical order.

    Raises:
        StoreError: the file cannot be read, or does not contain scores.
    """
    found: dict[str, list[list[float]]] = {}
    try:
        cases: list[dict[str, Any]] = json.loads(read_regular(path))["models"][model]
        for case in cases:
            dice = [np.nan if one["dice"] is None else float(one["dice"]) for one in case["classes"].values()]
            found.setdefault(str(case.get("patient", case["case"])), []).append(dice)
        return {patient: np.array(found[patient], dtype=np.float64) for patient in sorted(found)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(
            f"sites/{path.parent.name}/{path.name} cannot be read as scores. Make it again with `pfedsam evaluate`."
        ) from error
