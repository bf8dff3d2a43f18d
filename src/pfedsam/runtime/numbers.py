"""The numbers of a reply: which names there are in a study, and the way from reports and scores to names and back.

The list is made from the configuration alone, before any site has said anything; a name that is not on it cannot be sent.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Final

from pfedsam.evaluation.scores import MEASURES, ClassScores
from pfedsam.evaluation.summary import ClassSummary, SiteSummary, SummaryUnit
from pfedsam.experiment.build import BuiltModel, build_labels, build_method
from pfedsam.experiment.options import RunOptions
from pfedsam.federation.manifest import Task
from pfedsam.runtime.last_good import Validation, allowed_drop, models_of
from pfedsam.runtime.site_session import RoundReport

Numbers = Mapping[str, float | None]
_LOSSES: Final = ("total", "segmentation", "distillation", "balance", "proximal")
_KEPT: Final = "kept_round"
_PLAIN: Final = "uses_shared"
_UNITS: Final[tuple[SummaryUnit, ...]] = ("mm", "px", "mixed")


def allowed_numbers(options: RunOptions, built: BuiltModel) -> dict[Task, tuple[str, ...]]:
    """The names that the reply to each task may hold."""
    method, training = build_method(options), options.training
    models = tuple(models_of(options, built))
    classes = build_labels(options).names
    experts = options.model.experts.count if options.model.experts and "experts" in built.partition.components else 0
    depth = len(built.model.sam.vision_encoder.layers)
    usage = [f"usage.{block}.{e}" for block in range(built.model.first_adapted, depth) for e in range(experts)]
    losses = dict.fromkeys(f"loss.{phase.name}.{part}" for phase in method.round_phases(training) for part in _LOSSES)
    final = [f"loss.{phase.name}.{part}" for phase in method.final(training) for part in _LOSSES]
    test = [name for model in models for name in _score_names(f"test.{model}", classes)]
    choice = [_KEPT, _PLAIN] if built.partition.shared else [_KEPT]
    kept = [] if allowed_drop(options, built) is None else choice
    return {
        "join": ("cases",),
        "train": (*losses, *usage),
        "validate": (*(f"dice.{model}" for model in models), *kept),
        "align": (*final, *usage),
        "test": tuple(test),
    }


def from_report(report: RoundReport) -> dict[str, float | None]:
    """A report as numbers by name; what is not finite is told as undefined."""
    losses = {f"loss.{phase}.{part}": v for phase, row in report.losses.items() for part, v in row.items()}
    usage = {f"usage.{block}.{e}": v for block, shares in report.usage.items() for e, v in enumerate(shares)}
    return {name: value if math.isfinite(value) else None for name, value in {**losses, **usage}.items()}


def to_report(numbers: Numbers, names: Sequence[str]) -> RoundReport:
    """The report in numbers, in the order of the names that are allowed; the inverse of `from_report`."""
    losses: dict[str, dict[str, float]] = {}
    usage: dict[str, list[float]] = {}
    for name in names:
        value = numbers.get(name)
        if value is None:
            continue
        kind, group, entry = name.split(".")
        if kind == "loss":
            losses.setdefault(group, {})[entry] = value
        else:
            usage.setdefault(group, []).append(value)
    return RoundReport(losses, usage)


def from_validation(found: Validation, names: Sequence[str]) -> dict[str, float | None]:
    """A validation as numbers by name; none but those that are allowed, which an older study may have fewer of."""
    numbers = {f"dice.{model}": dice for model, dice in found.dice.items()}
    if found.kept is not None:
        numbers[_KEPT] = found.kept
    if found.plain:
        numbers[_PLAIN] = 1
    return {name: value for name, value in numbers.items() if name in names}


def to_validation(numbers: Numbers, names: Sequence[str]) -> Validation:
    """The validation in numbers, in the order of the names that are allowed; the inverse of `from_validation`."""
    dice = {name.removeprefix("dice."): numbers[name] for name in names if name in numbers and name.startswith("dice.")}
    kept = numbers.get(_KEPT)
    return Validation(dice, None if kept is None else max(0, int(kept)), bool(numbers.get(_PLAIN)))


def from_summaries(summaries: Mapping[str, SiteSummary]) -> dict[str, float | None]:
    """What a site reached in the test, by reported model, as numbers by name; no case is told apart in them."""
    numbers: dict[str, float | None] = {}
    for model, summary in summaries.items():
        prefix = f"test.{model}"
        numbers[f"{prefix}.cases"] = summary.cases
        numbers[f"{prefix}.unit"] = _UNITS.index(summary.unit)
        numbers |= _scores(f"{prefix}.mean", summary.mean, summary.undefined)
        for name, found in summary.classes.items():
            numbers |= _scores(f"{prefix}.class.{name}", found.mean, found.undefined)
    return numbers


def to_summaries(numbers: Numbers, classes: tuple[str, ...]) -> dict[str, SiteSummary]:
    """The summaries in numbers; the inverse of `from_summaries`."""
    models = dict.fromkeys(name.split(".")[1] for name in numbers)
    return {model: _summary(numbers, f"test.{model}", classes) for model in models}


def _summary(numbers: Numbers, prefix: str, classes: tuple[str, ...]) -> SiteSummary:
    mean, undefined = _read(numbers, f"{prefix}.mean")
    return SiteSummary(
        cases=int(numbers[f"{prefix}.cases"] or 0),
        unit=_UNITS[int(numbers[f"{prefix}.unit"] or 0)],
        mean=mean,
        classes={name: ClassSummary(*_read(numbers, f"{prefix}.class.{name}")) for name in classes},
        undefined=undefined,
    )


def _score_names(prefix: str, classes: tuple[str, ...]) -> list[str]:
    groups = [f"{prefix}.mean", *(f"{prefix}.class.{name}" for name in classes)]
    measures = [f"{group}.{part}" for group in groups for m in MEASURES for part in (m, f"undefined_{m}")]
    return [f"{prefix}.cases", f"{prefix}.unit", *measures]


def _scores(prefix: str, mean: ClassScores, undefined: Mapping[str, int]) -> dict[str, float | None]:
    values: dict[str, float | None] = {f"{prefix}.{m}": getattr(mean, m) for m in MEASURES}
    return values | {f"{prefix}.undefined_{m}": undefined[m] for m in MEASURES}


def _read(numbers: Numbers, prefix: str) -> tuple[ClassScores, dict[str, int]]:
    scores = ClassScores(**{m: numbers[f"{prefix}.{m}"] for m in MEASURES})
    return scores, {m: int(numbers[f"{prefix}.undefined_{m}"] or 0) for m in MEASURES}
