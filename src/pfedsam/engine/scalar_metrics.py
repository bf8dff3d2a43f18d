"""The scalar metrics of a reply: the names that exist in a study, and the conversion between them and reports or scores.

The list of names is derived from the configuration alone; a name that is not on the list cannot be sent.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import chain, product
from typing import Final

from pfedsam.core.errors import UpdateError
from pfedsam.core.small_numbers import OFF
from pfedsam.engine.model_selection import Validation, allowed_drop, models_of
from pfedsam.engine.site_session import RoundReport
from pfedsam.evaluation.scores import MEASURES, ClassScores
from pfedsam.evaluation.small_numbers import withhold
from pfedsam.evaluation.summary import ClassSummary, Occurrence, SiteSummary, SummaryUnit, SummaryVolumeUnit, Units
from pfedsam.experiment.build import BuiltModel, build_method
from pfedsam.experiment.options import RunOptions
from pfedsam.federation.data_summary import summary_names
from pfedsam.federation.messages import MAX_ROUND
from pfedsam.federation.small_numbers import is_count
from pfedsam.federation.tasks import Task
from pfedsam.federation.update import MAX_CASES
from pfedsam.training.losses import LabelForm
from pfedsam.training.phases import Model, PhaseSpec

ScalarMetrics = Mapping[str, float | None]
_LOSSES: Final = ("total", "segmentation", "distillation", "balance", "proximal")
_KEPT: Final = "kept_round"
_PLAIN: Final = "uses_shared"
_ROUNDING: Final = 1e-6
_LARGEST_DISTANCE: Final = 1e9
_LARGEST_VOLUME: Final = 1e10
"""In ml, mm2 or pixels; the largest volume that is read has fewer voxels."""
_LARGEST_LOSS: Final = 1e38
_UNITS: Final[tuple[SummaryUnit, ...]] = ("mm", "px", "mixed")
_VOLUME_UNITS: Final[tuple[SummaryVolumeUnit, ...]] = ("ml", "mm2", "px", "mixed")
_WHOLE_NUMBERS: Final = {
    _KEPT: MAX_ROUND,
    _PLAIN: 1,
    "unit": len(_UNITS) - 1,
    "volume_unit": len(_VOLUME_UNITS) - 1,
}
"""The largest value of metrics with whole numbers: a round, 0 or 1 for no or yes, or the index of a unit in the lists above."""
_ANNOTATES: Final = "annotates."
_COUNTS: Final = tuple(field.name for field in fields(Occurrence))
_COUNTS_OF_CASES: Final = frozenset({*_COUNTS, *(f"undefined_{measure}" for measure in MEASURES)})
_ALWAYS_THERE: Final = frozenset({"cases", "unit", *(f"undefined_{measure}" for measure in MEASURES)})
_SHARES: Final = frozenset({"dice", "iou", "nsd", "lesion_recall"})
_DISTANCES: Final = frozenset({"hd95", "assd"})


def allowed_metrics(options: RunOptions, built: BuiltModel) -> dict[Task, tuple[str, ...]]:
    """The names of the metrics that the reply to each task may contain; a task without an entry is not part of the study."""
    method, training = build_method(options), options.training
    models, tested = models_of(options, built), models_of(options, built, both=options.evaluation.test_shared)
    classes = options.data.label_map().names
    usage = [f"usage.{block}.{e}" for block, experts in built.model.routers().items() for e in range(experts)]
    of_the_data: dict[Task, tuple[str, ...]] = {}
    if options.communication.data_summary:
        of_the_data["summarize"] = summary_names(classes)
    return {
        "join": ("cases", *(f"{_ANNOTATES}{name}" for name in classes)),
        **of_the_data,
        "train": (*_loss_names(method.round_phases(training)), *usage),
        "validate": (*(f"dice.{model}" for model in models), *_selection_names(options, built)),
        "finalize": (*_loss_names(method.final(training)), *usage),
        "test": tuple(chain.from_iterable(_score_names(f"test.{model}", classes) for model in tested)),
    }


def _loss_names(phases: Iterable[PhaseSpec]) -> list[str]:
    """The metrics of the losses of these phases; a phase that is repeated has one set of them."""
    return list(dict.fromkeys(f"loss.{phase.name}.{part}" for phase in phases for part in _LOSSES))


def _selection_names(options: RunOptions, built: BuiltModel) -> list[str]:
    """The metrics about the model that a site uses after a validation; none if the site can use only one model."""
    if allowed_drop(options, built) is None:
        return []
    return [_KEPT, _PLAIN] if built.partition.shared else [_KEPT]


def from_registration(
    cases: int, classes: Sequence[str], form: LabelForm, names: Sequence[str]
) -> dict[str, float | None]:
    """The metrics of a site that joins: its weight in the average, and for each class 1 if the site annotates it, else 0.

    Only allowed names are included; a study of an older version allows fewer.
    """
    annotated = form.annotated or (True,) * len(classes)
    said = {f"{_ANNOTATES}{name}": float(there) for name, there in zip(classes, annotated, strict=True)}
    return {name: value for name, value in {"cases": cases, **said}.items() if name in names}


def to_missing(scalar_metrics: ScalarMetrics, classes: Sequence[str]) -> frozenset[str]:
    """The classes that a site does not annotate, from its metrics when it joined; a site of an older version annotates all classes."""
    return frozenset(name for name in classes if scalar_metrics.get(f"{_ANNOTATES}{name}") == 0)


@dataclass(frozen=True)
class _Range:
    """The values that a metric may have."""

    low: float
    high: float
    whole: bool = False
    """Whether it is a whole number."""

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high and (not self.whole or value == int(value))

    def __str__(self) -> str:
        return f"{'whole numbers' if self.whole else 'values'} from {self.low:g} to {self.high:g}"


def check_values(scalar_metrics: ScalarMetrics, min_cases: int = OFF) -> None:
    """Refuse values that a site cannot have measured; the allowed range of a metric follows from its name.

    Args:
        scalar_metrics: the metrics of a reply, with names that the manifest lists.
        min_cases: the study's `min_cases`; above 1, a site may withhold counts.

    Raises:
        UpdateError: a value is not allowed; the message names the metric and its allowed values.
    """
    for name, value in scalar_metrics.items():
        allowed = _allowed_range(name)
        if not (_may_be_undefined(name, min_cases) if value is None else value in allowed):
            raise UpdateError(f"its reply gives {name} a value that it cannot have; allowed are {allowed}.")
    for name, value in scalar_metrics.items():
        if value is not None and value > _most_cases(name, scalar_metrics):
            raise UpdateError(f"its reply gives {name} a value above its number of test cases.")


def _may_be_undefined(name: str, min_cases: int) -> bool:
    """Whether a metric may be None: measures may be undefined, and a study may allow sites to withhold counts."""
    last = name.split(".")[-1]
    return last not in _ALWAYS_THERE or (min_cases > OFF and is_count(name) and name != last)


def _most_cases(name: str, scalar_metrics: ScalarMetrics) -> float:
    """The largest value of a count of cases of one class, which is the model's number of test cases; infinite for other metrics."""
    parts = name.split(".")
    if ".class." not in name or parts[-1] not in _COUNTS_OF_CASES:
        return math.inf
    return scalar_metrics.get(".".join([*parts[:2], "cases"])) or 0


def _allowed_range(name: str) -> _Range:
    """The values that a metric may have."""
    group, last = name.split(".")[0], name.split(".")[-1]
    if name.startswith(_ANNOTATES):
        return _Range(0, 1, whole=True)
    if is_count(name):
        return _Range(0, MAX_CASES, whole=True)
    if last in _WHOLE_NUMBERS:
        return _Range(0, _WHOLE_NUMBERS[last], whole=True)
    if group in ("dice", "usage") or last in _SHARES:
        return _Range(0, 1 + _ROUNDING)
    if last in _DISTANCES:
        return _Range(0, _LARGEST_DISTANCE)
    if last == "volume_difference":
        return _Range(-_LARGEST_VOLUME, _LARGEST_VOLUME)
    return _Range(-_LARGEST_LOSS, _LARGEST_LOSS)


def from_report(report: RoundReport, *, may_leave: bool = True) -> dict[str, float | None]:
    """A report as metrics by name; values that are not finite are None, and with `may_leave` false so are all values."""
    values: dict[str, float] = {}
    for phase, losses in report.losses.items():
        values |= {f"loss.{phase}.{part}": value for part, value in losses.items()}
    for block, shares in report.usage.items():
        values |= {f"usage.{block}.{expert}": share for expert, share in enumerate(shares)}
    return {name: value if may_leave and math.isfinite(value) else None for name, value in values.items()}


def to_report(scalar_metrics: ScalarMetrics, names: Sequence[str]) -> RoundReport:
    """The report in these metrics, in the order of the allowed names; the inverse of `from_report`."""
    losses: dict[str, dict[str, float]] = {}
    usage: dict[str, list[float]] = {}
    for name in names:
        value = scalar_metrics.get(name)
        if value is None:
            continue
        kind, group, entry = name.split(".")
        if kind == "loss":
            losses.setdefault(group, {})[entry] = value
        else:
            usage.setdefault(group, []).append(value)
    return RoundReport(losses, usage)


def from_validation(found: Validation, names: Sequence[str]) -> dict[str, float | None]:
    """A validation as metrics by name, restricted to the allowed names; a study of an older version allows fewer."""
    scalar_metrics = {f"dice.{model}": dice for model, dice in found.dice.items()}
    if found.kept is not None:
        scalar_metrics[_KEPT] = found.kept
    if found.uses == "shared":
        scalar_metrics[_PLAIN] = 1
    return {name: value for name, value in scalar_metrics.items() if name in names}


def to_validation(scalar_metrics: ScalarMetrics, names: Sequence[str], round_: int = MAX_ROUND) -> Validation:
    """The validation in these metrics, in the order of the allowed names; the inverse of `from_validation`.

    Args:
        scalar_metrics: the metrics of a reply.
        names: the allowed names.
        round_: the round after which the validation took place.

    Raises:
        UpdateError: the site says that it uses the model of a later round.
    """
    dice = {
        name.removeprefix("dice."): scalar_metrics[name]
        for name in names
        if name in scalar_metrics and name.startswith("dice.")
    }
    kept = scalar_metrics.get(_KEPT)
    if kept is not None and kept > round_:
        raise UpdateError(f"its reply says that it uses the model of a round after {round_ + 1}, the present one.")
    uses: Model = "shared" if scalar_metrics.get(_PLAIN) else "personal"
    return Validation(dice, None if kept is None else max(0, int(kept)), uses)


def from_summaries(
    summaries: Mapping[str, SiteSummary], names: Sequence[str], min_cases: int = OFF
) -> dict[str, float | None]:
    """The test scores of a site by reported model, as metrics by name; they contain no value of a single case.

    Only allowed names are included; a study of an older version allows fewer. Values over fewer than `min_cases` cases are None.
    """
    found: dict[str, float | None] = {}
    for model, whole in summaries.items():
        summary = withhold(whole, min_cases)
        prefix = f"test.{model}"
        found[f"{prefix}.cases"] = summary.cases
        found[f"{prefix}.patients"] = summary.patients
        found[f"{prefix}.unit"] = _UNITS.index(summary.units.distance)
        found[f"{prefix}.volume_unit"] = _VOLUME_UNITS.index(summary.units.volume)
        found |= _scores(f"{prefix}.mean", summary.mean, summary.undefined)
        for name, one in summary.classes.items():
            found |= _scores(f"{prefix}.class.{name}", one.mean, one.undefined)
            counts = {} if one.occurrence is None else asdict(one.occurrence)
            found |= {f"{prefix}.class.{name}.{kind}": counts.get(kind) for kind in _COUNTS}
    return {name: value for name, value in found.items() if name in names}


def to_summaries(scalar_metrics: ScalarMetrics, classes: tuple[str, ...]) -> dict[str, SiteSummary]:
    """The summaries in these metrics; the inverse of `from_summaries`. Metrics that an older site does not send are None."""
    models = dict.fromkeys(name.split(".")[1] for name in scalar_metrics)
    return {model: _summary(scalar_metrics, f"test.{model}", classes) for model in models}


def _summary(scalar_metrics: ScalarMetrics, prefix: str, classes: tuple[str, ...]) -> SiteSummary:
    mean, undefined = _read(scalar_metrics, f"{prefix}.mean")
    volume = _count(scalar_metrics, f"{prefix}.volume_unit")
    return SiteSummary(
        cases=_count(scalar_metrics, f"{prefix}.cases"),
        patients=_count(scalar_metrics, f"{prefix}.patients"),
        units=Units(
            _UNITS[_count(scalar_metrics, f"{prefix}.unit") or 0],
            "mixed" if volume is None else _VOLUME_UNITS[volume],
        ),
        mean=mean,
        classes={name: _class_summary(scalar_metrics, f"{prefix}.class.{name}") for name in classes},
        undefined=undefined,
    )


def _class_summary(scalar_metrics: ScalarMetrics, prefix: str) -> ClassSummary:
    mean, undefined = _read(scalar_metrics, prefix)
    counts = {
        kind: _count(scalar_metrics, f"{prefix}.{kind}") for kind in _COUNTS if f"{prefix}.{kind}" in scalar_metrics
    }
    told = any(count is not None for count in counts.values())  # an older site does not send them
    return ClassSummary(mean, undefined, Occurrence(**{"not_annotated": 0, **counts}) if told else None)


def _score_names(prefix: str, classes: tuple[str, ...]) -> list[str]:
    """The names of the test scores of one model: of the model, of its mean, and of each class."""
    of_model = [f"{prefix}.{what}" for what in ("cases", "patients", "unit", "volume_unit")]
    by_class = [f"{prefix}.class.{name}" for name in classes]
    parts = [part for measure in MEASURES for part in (measure, f"undefined_{measure}")]
    measures = [f"{group}.{part}" for group, part in product([f"{prefix}.mean", *by_class], parts)]
    return [*of_model, *measures, *(f"{group}.{kind}" for group, kind in product(by_class, _COUNTS))]


def _scores(prefix: str, mean: ClassScores, undefined: Mapping[str, int | None]) -> dict[str, float | None]:
    values: dict[str, float | None] = {f"{prefix}.{m}": getattr(mean, m) for m in MEASURES}
    return values | {f"{prefix}.undefined_{m}": undefined[m] for m in MEASURES}


def _read(scalar_metrics: ScalarMetrics, prefix: str) -> tuple[ClassScores, dict[str, int | None]]:
    scores = ClassScores(**{m: scalar_metrics.get(f"{prefix}.{m}") for m in MEASURES})
    names = {m: f"{prefix}.undefined_{m}" for m in MEASURES}
    return scores, {m: _count(scalar_metrics, name) if name in scalar_metrics else 0 for m, name in names.items()}


def _count(scalar_metrics: ScalarMetrics, name: str) -> int | None:
    """An integer metric; None if it was not sent or is undefined."""
    value = scalar_metrics.get(name)
    return None if value is None else int(value)
