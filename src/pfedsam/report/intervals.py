"""Bootstrap intervals of a run's Dice and of differences between runs, with patients resampled within each site (`docs/evidence.md`).

The intervals need the scores of single cases, which are only in each site's own folder (`sites/<name>/scores.json`). A run on one machine
has these folders. The coordinator of a study between hospitals gets summaries only, so its report has no intervals.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from pfedsam.core import rng
from pfedsam.core.text import some_of
from pfedsam.evaluation.statistics import percentile_interval, resampled_means
from pfedsam.report.case_scores import read_case_dice
from pfedsam.report.summary_file import Summary

Interval: TypeAlias = tuple[float, float]
"""Lower and upper end of a 95 % interval."""

NO_INTERVALS: Final = (
    "There are no intervals: they need the scores of single cases, which stay at the sites. Each site finds its own in scores.json "
    "in its study folder."
)
_LEAST_PATIENTS: Final = 2
_LISTED: Final = 5
"""Number of sites or runs that a note lists."""
_NO_MEAN: Final = (
    "The mean over sites has none either, because it would need the spread between the patients of every site."
)


@dataclass(frozen=True)
class RunIntervals:
    """The resampled Dice of one run; runs that were tested on the same patients use the same resamples."""

    patients: Mapping[str, tuple[str, ...]]
    """Test patients by site."""
    counted: Mapping[str, int]
    """Number of these patients that have a defined Dice, by site."""
    samples: Mapping[str, npt.NDArray[np.float64]]
    """Dice of each resample, [draws], by site; NaN where a resample has no case with a defined Dice."""

    def of_site(self, site: str) -> Interval | None:
        """The interval of a site's Dice; None with fewer than two patients."""
        return self._interval(self.samples[site], [site]) if site in self.samples else None

    def of_mean(self) -> Interval | None:
        """The interval of the mean over the sites with a Dice; None if one of them has a single patient."""
        return self._interval(self._mean, self._defined)

    def difference(self, other: "RunIntervals", site: str | None = None) -> Interval | None:
        """The interval of this run's Dice minus the other's at a site, or of the means over sites.

        None where the patients differ, where the means are over different sites, or where `of_site` or `of_mean` of one of the runs is
        None.
        """
        if not self.has_patients_of(other, site) or (site is None and self._defined != other._defined):
            return None
        sites = self._defined if site is None else [site]
        samples = self._mean - other._mean if site is None else self.samples[site] - other.samples[site]
        return None if other._too_few(sites) else self._interval(samples, sites)

    def has_patients_of(self, other: "RunIntervals", site: str | None = None) -> bool:
        """Whether both runs have the same test patients at a site, or the same sites with the same test patients."""
        if site is None:
            return self.patients == other.patients
        return site in self.patients and self.patients[site] == other.patients.get(site)

    def reasons(self) -> list[str]:
        """Why the mean over sites has no interval, one clause for each site without one; empty if it has an interval."""
        return [f"{site} has one test patient{self._of_several(site)}" for site in self._too_few(self._defined)]

    def _of_several(self, site: str) -> str:
        """What is special about the only patient of a site that counts, if the site has more patients."""
        return "" if self.counted[site] == len(self.patients[site]) else " with a defined Dice"

    @property
    def _defined(self) -> list[str]:
        """The sites with a Dice, over which the mean is taken."""
        return [site for site in self.samples if self.counted[site]]

    def _too_few(self, sites: Iterable[str]) -> list[str]:
        """The sites with fewer than two patients: the spread between the patients of such a site is unknown."""
        return [site for site in sites if self.counted[site] < _LEAST_PATIENTS]

    @property
    def _mean(self) -> npt.NDArray[np.float64]:
        """The mean over sites of the resampled Dice, shape [draws]; NaN without a site that has a Dice."""
        defined = [self.samples[site] for site in self._defined]
        mean: npt.NDArray[np.float64] = np.mean(defined, axis=0) if defined else np.full(1, np.nan)
        return mean

    def _interval(self, samples: npt.NDArray[np.float64], sites: Sequence[str]) -> Interval | None:
        """The interval of samples of shape [draws] that depend on the patients of these sites; None if a site has too few."""
        return None if self._too_few(sites) else percentile_interval(samples)


def read_intervals(run_folder: Path, summary: Summary) -> RunIntervals | None:
    """The intervals of the model in use; None if the scores of a site are not in the folder.

    Raises:
        StoreError: a file with scores is damaged.
    """
    model = "shared" if summary.mean.personal is None else "personal"
    patients, counted, samples = {}, {}, {}
    for site in summary.sites:
        path = run_folder / "sites" / site / "scores.json"
        if Path(site).name != site or not path.is_file():
            return None
        rows = _dice_by_patient(path, model)
        patients[site] = tuple(rows)
        counted[site] = sum(bool(np.isfinite(dice).any()) for dice in rows.values())
        generator = rng.numpy_generator(0, site, "bootstrap of patients")
        samples[site] = resampled_means(list(rows.values()), generator=generator)
    return RunIntervals(patients, counted, samples) if samples else None


def difference_interval(
    own: RunIntervals | None, other: RunIntervals | None, site: str | None = None
) -> Interval | None:
    """The interval of `own` minus `other` at a site, or of their means over sites; None if a run has no intervals."""
    return None if own is None or other is None else own.difference(other, site)


def missing_note(runs: Iterable[RunIntervals | None]) -> str | None:
    """A note on sites and means without an interval, with the reason; None if there is no such site."""
    reasons = _reasons(runs)
    return f"No interval: {some_of(reasons, _LISTED)}. {_NO_MEAN}" if reasons else None


def difference_note(runs: Mapping[str, RunIntervals | None], against: str) -> str | None:
    """A note on differences to the run `against` that have no interval, with the reasons; None if all have one."""
    base, few = runs.get(against), _reasons(runs.values())
    others = [label for label, run in runs.items() if run and base and not run.has_patients_of(base)]
    unknown = [label for label, run in runs.items() if run is None]
    reasons = [some_of(few, _LISTED)] if few else []
    if others:
        reasons.append(f"{some_of(others, _LISTED)} and {against} do not have the same test patients")
    if unknown:
        reasons.append(f"the scores of single cases of {some_of(unknown, _LISTED)} are not known")
    if not reasons:
        return None
    return f"A difference without a bar has no interval: {'; '.join(reasons)}.{f' {_NO_MEAN}' if few else ''}"


def _reasons(runs: Iterable[RunIntervals | None]) -> list[str]:
    """The reasons of all runs, each once."""
    return list(dict.fromkeys(reason for run in runs if run is not None for reason in run.reasons()))


def are_apart(one: Interval | None, other: Interval | None) -> bool:
    """Whether two intervals are known and do not overlap."""
    return one is not None and other is not None and (one[0] > other[1] or other[0] > one[1])


def _dice_by_patient(path: Path, model: str) -> dict[str, npt.NDArray[np.float64]]:
    """Dice [cases, classes] by patient, NaN where undefined; patients are in alphabetical order.

    Raises:
        StoreError: the file cannot be read, or does not contain scores.
    """
    found: dict[str, list[list[float]]] = {}
    for one in read_case_dice(path, model):
        found.setdefault(one.patient, []).append([np.nan if dice is None else dice for dice in one.dice.values()])
    return {patient: np.array(found[patient], dtype=np.float64) for patient in sorted(found)}
