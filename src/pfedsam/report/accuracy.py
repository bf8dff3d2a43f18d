"""The numbers of a comparison of methods over seeds, computed from the folders of the runs (docs/evidence.md).

Dice and IoU are in points of 100. A method's value at a site is the mean over seeds. Its mean is taken over sites, then over seeds. Its
worst site is the one with the lowest mean over seeds. Differences are paired by seed, site and case. Results do not contain case names.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any, Final, TypeAlias

from pfedsam.core import rng
from pfedsam.evaluation.scores import MEASURES
from pfedsam.evaluation.statistics import (
    bootstrap_interval,
    cluster_means,
    holm,
    mean_and_spread,
    paired_difference,
    stratified_mean,
    wilcoxon_p,
)
from pfedsam.report.case_scores import CaseDice, read_case_dice
from pfedsam.report.records import Record, read_records
from pfedsam.report.summary_file import LOCAL_ONLY, Entry, Summary, read_summary

_POINTS: Final = {"dice": 100.0, "iou": 100.0, "nsd": 100.0, "lesion_recall": 100.0}
"""Measures that are given in points of 100; the others keep their unit."""
_NAMED: Final = {"gain_over_fedavg_lora": "fedavg", "gain_over_fedmsa": "fedmsa"}
"""The label of a method by the name of a headline figure."""


@dataclass(frozen=True)
class Line:
    """An entry of a comparison: a method, or a variant of a method."""

    label: str
    method: str
    private: bool
    """Whether the images stay at their sites."""

    @property
    def is_variant(self) -> bool:
        """Whether the entry is a method with changed options."""
        return self.label != self.method


@dataclass(frozen=True)
class Cost:
    """The cost of a run; None where it was not measured for the whole run."""

    seconds: float | None
    cpu_seconds: float | None


@dataclass(frozen=True)
class RunScores:
    """The values of one run that a comparison needs; all are of the model in use."""

    summary: Summary
    dice: Mapping[str, Mapping[str, Mapping[str, float | None]]]
    """Dice in points by site, case and class; None where undefined."""
    validation: Mapping[str, float]
    """Dice in points of the last validation, by site."""
    cost: Cost
    patients: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Patient by site and case; a case that is not listed counts as a patient of its own."""
    curve: Mapping[int, float] = field(default_factory=dict)
    """Dice in points of each validation during training, the mean over sites of the model in use, by round, counted from 1."""
    training_seconds: float | None = None
    """Wall-clock seconds in which the sites trained, without validations and test; None if a round has no record of it."""


Runs: TypeAlias = Mapping[str, Mapping[int, RunScores]]
"""Finished runs by label and seed."""


@dataclass(frozen=True)
class Comparison:
    """The subject minus another method on the same cases, in points of Dice."""

    difference: float
    interval: tuple[float, float] | None
    """The 95 % bootstrap interval; None if a site has a single patient."""
    p: float
    """Wilcoxon's signed-rank test over patients, two-sided."""
    patients: int
    seeds: tuple[int, ...]
    sites: dict[str, float]


def read_run(folder: Path, cost: Cost) -> RunScores:
    """The scores of a finished run.

    Raises:
        StoreError: a file is missing or damaged.
    """
    summary = read_summary(folder / "summary.json")
    model = "shared" if summary.mean.personal is None else "personal"
    cases = {site: read_case_dice(folder / "sites" / site / "scores.json", model) for site in summary.sites}
    dice = {site: {one.case: _dice_in_points(one) for one in found} for site, found in cases.items()}
    patients = {site: {one.case: one.patient for one in found} for site, found in cases.items()}
    records = read_records(folder / "records.jsonl")
    curve = _validation_curve(records, summary.rounds, model)
    training = _training_seconds(records, summary.rounds)
    return RunScores(summary, dice, _last_validation(records, model), cost, patients, curve, training)


def method_result(line: Line, runs: Mapping[int, RunScores]) -> dict[str, Any]:
    """The results of one method over its seeds, in a form for JSON."""
    summaries = [run.summary for run in runs.values()]
    last = summaries[-1]
    sites = {site: _measures([_entry(s, site) for s in summaries]) for site in last.sites}
    in_use = last.mean.in_use
    return {
        "method": line.method,
        "private": line.private,
        "seeds": list(runs),
        "unit": in_use.unit if in_use else "px",
        "sites": sites,
        "mean": _measures([s.mean.in_use for s in summaries]),
        "worst_site": _worst_site(sites),
        "validation": _spread(_validation_means(runs.values())),
        "curve": _mean_curve([run.curve for run in runs.values()]),
        "up_bytes": last.communication.up_bytes_per_site_round,
        "down_bytes": last.communication.down_bytes_per_site_round,
        "rounds": _mean_count(s.rounds for s in summaries),
        "steps": _mean_count(s.steps for s in summaries),
        "seconds": _mean_known(run.cost.seconds for run in runs.values()),
        "training_seconds": _mean_known(run.training_seconds for run in runs.values()),
        "cpu_seconds": _mean_known(run.cost.cpu_seconds for run in runs.values()),
    }


def _mean_count(counts: Iterable[int | None]) -> int | None:
    """The mean of the counts that are known, as a whole number."""
    found = _mean_known(counts)
    return None if found is None else round(found)


def _worst_site(sites: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """The site of the lowest mean Dice with its Dice, from the measures of the sites; both None where no site has a Dice."""
    means = {site: measures["dice"]["mean"] for site, measures in sites.items()}
    known = {site: dice for site, dice in means.items() if dice is not None}
    worst = min(known, key=lambda site: (known[site], site), default=None)
    return {"site": worst, "dice": known.get(worst or "")}


def _validation_curve(records: Sequence[Record], rounds_trained: int, model: str) -> dict[int, float]:
    """Dice in points by round from the validations in rounds; see `RunScores.curve`."""
    found: dict[int, list[float]] = {}
    for (_, number), dice in _validations_in_use(records, model).items():
        if number < rounds_trained:
            found.setdefault(number + 1, []).append(dice)
    return {number: mean(scores) for number, scores in found.items()}


def _training_seconds(records: Sequence[Record], rounds_trained: int) -> float | None:
    """Seconds of the training of all rounds; see `RunScores.training_seconds`."""
    by_round = {
        int(one["round"]): float(one["train_s"]) for one in records if one["kind"] == "timing" and "train_s" in one
    }
    return sum(by_round.values()) if len(by_round) == rounds_trained else None


def _mean_curve(curves: Sequence[Mapping[int, float]]) -> dict[int, float]:
    """The mean over seeds after every round after which all seeds were validated."""
    common = set.intersection(*(set(curve) for curve in curves)) if curves else set()
    return {number: round(mean(curve[number] for curve in curves), 2) for number in sorted(common)}


def _validation_means(runs: Iterable[RunScores]) -> list[float]:
    """The mean over sites of the last validation of each run that has one."""
    return [sum(run.validation.values()) / len(run.validation) for run in runs if run.validation]


def compare(subject: Mapping[int, RunScores], other: Mapping[int, RunScores]) -> Comparison | None:
    """The paired comparison over the seeds and cases that both have in common; None if there is none.

    All differences of a patient, over all its cases and seeds, are treated as one cluster.
    """
    seeds = tuple(seed for seed in subject if seed in other)
    differences = _paired_differences([(subject[seed], other[seed]) for seed in seeds])
    if not differences:
        return None
    means = cluster_means(differences)
    p = wilcoxon_p(means)
    return Comparison(
        difference=stratified_mean(differences),
        interval=bootstrap_interval(differences, generator=rng.numpy_generator(0, "bootstrap")),
        p=1.0 if p is None else p,
        patients=len(means),
        seeds=seeds,
        sites={site: stratified_mean({site: found}) for site, found in differences.items()},
    )


def _paired_differences(pairs: Iterable[tuple[RunScores, RunScores]]) -> dict[str, list[list[float]]]:
    """The differences of Dice of the cases that both runs of a pair have: by site, a list for each patient (`paired_difference`)."""
    strata: dict[str, dict[str, list[float]]] = {}
    for subject, other in pairs:
        for site, cases in subject.dice.items():
            theirs, patients = other.dice.get(site, {}), subject.patients.get(site, {})
            for case in sorted(cases.keys() & theirs.keys()):
                difference = paired_difference(cases[case], theirs[case], correct=100.0)
                if difference is not None:
                    strata.setdefault(site, {}).setdefault(patients.get(case, case), []).append(difference)
    return {site: list(patients.values()) for site, patients in strata.items()}


def comparisons(subject: str, runs: Runs) -> dict[str, Comparison]:
    """The comparisons of the subject with every other label that has seeds and cases in common with it."""
    others = {label: compare(runs.get(subject, {}), found) for label, found in runs.items() if label != subject}
    return {label: found for label, found in others.items() if found is not None}


def comparison_result(found: Mapping[str, Comparison]) -> dict[str, dict[str, Any]]:
    """The comparisons in a form for JSON, with Holm's correction over all of them."""
    corrected = holm({label: one.p for label, one in found.items()})
    return {
        label: {
            "difference": one.difference,
            "interval": None if one.interval is None else list(one.interval),
            "p": one.p,
            "p_holm": corrected[label],
            "patients": one.patients,
            "seeds": list(one.seeds),
            "sites": one.sites,
        }
        for label, one in found.items()
    }


def best_private_baseline(lines: Iterable[Line], found: Mapping[str, Comparison]) -> str | None:
    """The baseline over which the subject has the smallest gain; variants and pooled methods are not considered."""
    baselines = [line.label for line in lines if line.private and not line.is_variant and line.label in found]
    return min(baselines, key=lambda label: found[label].difference) if baselines else None


def headline(
    lines: Iterable[Line], results: Mapping[str, Mapping[str, Any]], found: Mapping[str, Comparison]
) -> dict[str, float | None]:
    """The most important figures of a comparison; None where a run is missing."""
    figures: dict[str, float | None] = {}
    for label, result in results.items():
        figures[f"dice_mean.{label}"] = result["mean"]["dice"]["mean"]
        figures[f"dice_worst_site.{label}"] = result["worst_site"]["dice"]
        figures[f"validation_dice_mean.{label}"] = result["validation"]["mean"]
        figures[f"up_bytes.{label}"] = result["up_bytes"]
        figures[f"seconds.{label}"] = result["seconds"]
        figures[f"cpu_seconds.{label}"] = result["cpu_seconds"]
        figures[f"steps.{label}"] = result["steps"]
    best = best_private_baseline(lines, found)
    figures["gain_over_best_private_baseline"] = found[best].difference if best else None
    for name, label in _NAMED.items():
        figures[name] = found[label].difference if label in found else None
    figures["min_gain_over_local"] = min(found[LOCAL_ONLY].sites.values()) if LOCAL_ONLY in found else None
    return figures


def _entry(summary: Summary, site: str) -> Entry | None:
    found = summary.sites.get(site)
    return found.in_use if found else None


def _measures(entries: Iterable[Entry | None]) -> dict[str, dict[str, Any]]:
    known = [entry for entry in entries if entry is not None]
    return {measure: _spread(_in_points(measure, known)) for measure in MEASURES}


def _in_points(measure: str, entries: Iterable[Entry]) -> list[float]:
    """The defined values of a measure, in points of 100 or in their unit (`_POINTS`)."""
    values = (getattr(entry, measure) for entry in entries)
    return [_POINTS.get(measure, 1.0) * value for value in values if value is not None]


def _spread(values: list[float]) -> dict[str, Any]:
    mean, spread = mean_and_spread(values)
    return {"mean": mean, "spread": spread, "values": values}


def _mean_known(values: Iterable[float | None]) -> float | None:
    """The mean of the values that were measured."""
    return mean_and_spread([value for value in values if value is not None])[0]


def _dice_in_points(case: CaseDice) -> dict[str, float | None]:
    return {name: None if dice is None else 100 * dice for name, dice in case.dice.items()}


def _last_validation(records: Sequence[Record], model: str) -> dict[str, float]:
    """Dice in points by site, from the validation of the model that the site has at the end.

    This is the last validation that is not followed by a `kept` record of the same round. The Dice is that of the shared model if the
    site uses the shared model.
    """
    in_use = _validations_in_use(records, model)
    return {moment[0]: in_use[moment] for moment in _last_moments(records).items() if moment in in_use}


def _validations_in_use(records: Sequence[Record], model: str) -> dict[tuple[str, int], float]:
    """Dice in points by site and round of each validation, of `model`, or of the shared model if the site used that."""
    uses_shared = _moments(records, "plain")
    return {
        _moment(row): 100 * row["dice"]
        for row in records
        if row["kind"] == "validation"
        and row["dice"] is not None
        and row["model"] == ("shared" if _moment(row) in uses_shared else model)
    }


def _last_moments(records: Sequence[Record]) -> dict[str, int]:
    """The round of the last validation of each site after which it did not return to an earlier model."""
    kept = _moments(records, "kept")
    return dict(_moment(row) for row in records if row["kind"] == "validation" and _moment(row) not in kept)


def _moments(records: Sequence[Record], kind: str) -> set[tuple[str, int]]:
    """The sites and rounds of the records of one kind."""
    return {_moment(row) for row in records if row["kind"] == kind}


def _moment(row: Record) -> tuple[str, int]:
    return row["site"], row["round"]
