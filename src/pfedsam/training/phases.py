"""One phase of a client round: trains some of the parameters with the others fixed, on labels and, optionally, by distillation.

This module does not read or write files and does not choose devices. A phase is described by a `PhaseSpec`; the method determines the
phases of a round (`pfedsam.federation.methods`).
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from pydantic import Field
from torch import Tensor, nn

from pfedsam.core.errors import OptionError
from pfedsam.core.options import Options
from pfedsam.core.tensors import NamedTensors
from pfedsam.model.components.routing import Routing
from pfedsam.model.partition import Kind
from pfedsam.model.segmenter import Segmenter
from pfedsam.training.distillation import DistillationOptions, distillation_loss
from pfedsam.training.losses import ALL_ANNOTATED, LabelForm, LossName, segmentation_loss
from pfedsam.training.optimizer import pack, unpack
from pfedsam.training.site_data import Batch

Model = Literal["shared", "personal"]


class OptimizerOptions(Options):
    """AdamW and its schedule."""

    learning_rate: float = Field(
        default=1e-3,
        gt=0,
        description="Peak learning rate. It is constant until no site gains (training.patience) and then decreases with a cosine; with an "
        "empty patience it decreases over all rounds. A higher one, such as 4e-3, is better for a training of about 100 steps "
        "(docs/decisions/0020).",
    )
    warm_up: float = Field(
        default=0.2,
        ge=0,
        le=1,
        description="Number of rounds in which the learning rate increases (warm-up), as a fraction of training.patience, or of "
        "training.rounds if patience is empty. Without warm-up the first steps may give empty masks, from which thin structures "
        "recover late (docs/decisions/0008).",
    )
    final_fraction: float = Field(
        default=0.1, ge=0, le=1, description="Learning rate in the last round, as a fraction of the peak."
    )
    weight_decay: float = Field(default=0.01, ge=0, description="AdamW's weight decay.")
    clip: float = Field(default=1.0, gt=0, description="Largest norm of the gradient of a step.")
    pretrained_fraction: float = Field(
        default=0.1,
        gt=0,
        le=1,
        description="Learning rate of SAM's own weights, if they are trained (fedsam, fedmsa, fedper, fedrep), as a fraction of the "
        "learning rate: 1e-4 with the default peak, as in FedFMS.",
    )
    keep_state: bool = Field(
        default=True, description="Whether AdamW's moments are kept from round to round instead of being reset."
    )


@dataclass(frozen=True)
class PhaseSpec:
    """The trained parameters and the losses of a phase."""

    name: str
    """Lower-case letters and underscores, and different from the names of the other phases of a round: batches are drawn from it, and the
    optimiser's state and the losses are stored under it. A final phase of the same name continues the state of the phase in the rounds."""
    trains: tuple[Kind, ...]
    """Kinds of parameters that change; the others are fixed."""
    supervised: tuple[Model, ...]
    """The models whose segmentation loss is minimised."""
    taught: Model | None = None
    """The model that also learns from the other one's logits."""
    shared_from: Literal["received", "own"] = "own"
    """Which shared parameters are in place: those received in this round, or those the round has trained so far."""
    steps: int = 1
    halves: Literal["coupled", "decoupled"] | None = None
    """Each of two supervised models learns from one half of the batch, the shared one from the first. coupled: the personal model's half
    trains both parts; decoupled: the local part alone. None: every model learns from the whole batch."""
    taught_steps: Literal["first", "all"] = "all"
    """With halves, the steps in which the taught model learns from the other. first: the first step of the phase, in which both models
    learn from the first half of the batch."""
    shared_share: float = 1.0
    """Share of the images of a batch, the first ones, from which the shared model learns where both models are supervised; at least one."""
    fine_tunes_after: str | None = None
    """For local fine-tuning: the phase of the rounds with whose AdamW state it begins. The learning rate decreases within the phase."""
    proximal: float = 0.0
    """mu: adds mu / 2 times the squared distance to the shared values that were received (Li et al., 2020, eq. 2)."""

    def __post_init__(self) -> None:
        """Check the name, and that the phase trains something.

        Raises:
            OptionError: the name has other characters than lower-case letters and underscores, a kind of parameters or a model is unknown
                or none is given, the phase has no step, or a model that is taught or learns from a part of a batch is not supervised.
        """
        if not re.fullmatch("[a-z_]+", self.name):
            raise OptionError(
                f"A phase is called {self.name!r}; use lower-case letters and underscores only, as in fine_tuning."
            )
        self._refuse_others("trains", self.trains, ("shared", "local"))
        self._refuse_others("supervised", self.supervised, get_args(Model))
        self._refuse_unsupervised()
        if self.steps < 1:
            raise OptionError(f"The phase {self.name} has {self.steps} steps; give 1 or more, or leave the phase out.")

    def _refuse_unsupervised(self) -> None:
        """Refuse a model that is taught, and a batch that is divided between two models, if they are not supervised: it has no effect.

        Raises:
            OptionError: the taught model, or one of two models, is not supervised.
        """
        if self.taught is not None and self.taught not in self.supervised:
            raise OptionError(
                f"The phase {self.name} has taught={self.taught!r}; give one of its supervised models, "
                f"{' or '.join(map(repr, self.supervised))}, or None."
            )
        if (self.halves or self.shared_share < 1) and len(set(self.supervised)) < len(get_args(Model)):
            raise OptionError(
                f"The phase {self.name} divides a batch between two models (halves, shared_share), but supervises "
                f"{self.supervised!r}; give both models as supervised, or leave halves and shared_share out."
            )

    def _refuse_others(self, field: str, given: object, allowed: tuple[str, ...]) -> None:
        """Refuse a field of the phase that is not a tuple of one or more of the allowed names.

        Raises:
            OptionError: it is not.
        """
        if not isinstance(given, tuple) or not given or not all(one in allowed for one in given):
            known = ", ".join(map(repr, allowed))
            raise OptionError(f"The phase {self.name} has {field}={given!r}; give one or more of {known} in a tuple.")


@dataclass(frozen=True)
class PhaseResult:
    """The results of a phase besides the changed parameters."""

    losses: dict[str, float]
    """Mean over the steps: `total`, `segmentation`, `distillation`, `balance`, `proximal`."""
    optimizer: dict[str, Tensor]
    """AdamW's state, packed."""
    examples: dict[str, frozenset[int]]
    """Numbers of the training examples over which each loss is a mean; a loss over no example, such as `proximal`, is absent."""


def run_phase(
    model: Segmenter,
    batches: Iterable[Batch],
    spec: PhaseSpec,
    *,
    names: tuple[str, ...],
    learning_rates: Sequence[float],
    optimizer_state: NamedTensors,
    options: OptimizerOptions,
    distillation: DistillationOptions,
    balance: float,
    anchors: NamedTensors | None = None,
    local: Collection[str] = (),
    form: LabelForm = ALL_ANNOTATED,
    loss: LossName = "dice_ce",
) -> PhaseResult:
    """Train the parameters called `names`, in place.

    Args:
        model: the model with all its parameters assigned.
        batches: one batch for each step of the phase.
        spec: the losses of the phase.
        names: names of the parameters that are trained.
        learning_rates: learning rate of each step.
        optimizer_state: packed state of the optimiser from this phase in the last round; empty in the first round.
        options: options of AdamW.
        distillation: temperature, weight and confidence weighting.
        balance: weight of the experts' load-balancing term.
        anchors: targets of the proximal term, if the phase has one, by the names of the trained parameters.
        local: the local ones of the names; needed only for decoupled halves.
        form: the meaning of the labels, and the classes that they contain.
        loss: the segmentation loss.
    """
    trained = _only_trainable(model, names)
    optimizer = _optimizer(model, trained, optimizer_state, options)
    parts_of_step = _parts_of_step(trained, spec, local)
    objective = _Objective(model, spec, distillation, balance, parts_of_step[0], form, loss)
    rows = []
    for step, (batch, rate) in enumerate(zip(batches, learning_rates, strict=True)):
        for group in optimizer.param_groups:
            group["lr"] = group["fraction"] * rate
        optimizer.zero_grad()
        parts = objective.backward(batch, step)
        if spec.proximal and anchors:
            _pull_to_anchors(parts, trained, anchors, spec.proximal)
        for part in parts_of_step:
            torch.nn.utils.clip_grad_norm_(part, options.clip)
        optimizer.step()
        rows.append({name: part.item() for name, part in parts.items()})
    model.requires_grad_(False)
    examples = {name: frozenset(numbers) for name, numbers in objective.examples.items()}
    return PhaseResult(_means(rows), pack(optimizer, trained) if options.keep_state else {}, examples)


def _means(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each loss over the steps that have it; empty without steps."""
    found: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row.items():
            found.setdefault(name, []).append(value)
    return {name: sum(values) / len(values) for name, values in found.items()}


def _pull_to_anchors(
    parts: dict[str, Tensor], trained: dict[str, nn.Parameter], anchors: NamedTensors, strength: float
) -> None:
    """Add the gradient of the proximal term to the parameters', and the term, of shape `[]`, to the parts of the loss."""
    parts["proximal"] = _distance(trained, anchors)
    pull = strength / 2 * parts["proximal"]
    pull.backward()
    parts["total"] = parts["total"] + pull


def _parts_of_step(
    trained: dict[str, nn.Parameter], spec: PhaseSpec, local: Collection[str]
) -> list[list[nn.Parameter]]:
    """Groups of parameters whose gradients are clipped by a common norm; decoupled halves have two groups, shared parameters first."""
    if spec.halves != "decoupled":
        return [list(trained.values())]
    return [[p for name, p in trained.items() if (name in local) == wanted] for wanted in (False, True)]


def _only_trainable(model: Segmenter, names: tuple[str, ...]) -> dict[str, nn.Parameter]:
    model.requires_grad_(False)
    trained = {name: model.get_parameter(name) for name in names}
    for parameter in trained.values():
        parameter.requires_grad_()
    return trained


def _optimizer(
    model: Segmenter,
    trained: dict[str, nn.Parameter],
    state: NamedTensors,
    options: OptimizerOptions,
) -> torch.optim.AdamW:
    """The optimiser of a phase, with its state of the last round unless it is reset in every round."""
    groups = _groups(model, trained, options.pretrained_fraction)
    # The fused implementation takes a fifth of the time of the default one for hundreds of small tensors.
    optimizer = torch.optim.AdamW(groups, weight_decay=options.weight_decay, fused=True)
    if options.keep_state:
        unpack(optimizer, trained, state)
    return optimizer


def _groups(model: Segmenter, trained: dict[str, nn.Parameter], fraction: float) -> list[dict[str, Any]]:
    """The parameter groups of the optimiser by their fraction of the learning rate: added parameters, and the backbone's own parameters."""
    own = model.pretrained()
    added = {"params": [p for name, p in trained.items() if name not in own], "fraction": 1.0}
    pretrained = {"params": [p for name, p in trained.items() if name in own], "fraction": fraction}
    return [group for group in (added, pretrained) if group["params"]]


def _distance(trained: dict[str, nn.Parameter], anchors: NamedTensors) -> Tensor:
    """The squared distance (shape `[]`) of the trained parameters from their anchors; parameters without an anchor are not counted."""
    return torch.stack([(trained[name] - anchor).square().sum() for name, anchor in anchors.items()]).sum()


def _add(parts: dict[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Add the parts of another loss, scalars of shape `[]`, without their graph."""
    for name, part in found.items():
        parts[name] = parts[name] + part.detach() if name in parts else part.detach()


@contextmanager
def _fixed(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Within the context these trained parameters get no gradient."""
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_()


class _Objective:
    """The loss of a phase; if the teacher does not change, its logits are kept per image and view."""

    def __init__(
        self,
        model: Segmenter,
        spec: PhaseSpec,
        distillation: DistillationOptions,
        balance: float,
        shared: Sequence[nn.Parameter] = (),
        form: LabelForm = ALL_ANNOTATED,
        loss: LossName = "dice_ce",
    ) -> None:
        self.model, self.spec, self.distillation, self.balance = model, spec, distillation, balance
        self.form, self.loss = form, loss
        self._shared = shared
        """The trained shared parameters, which are fixed in the local half of a decoupled step."""
        self._teacher_is_fixed = spec.trains == ("local",) and spec.taught == "personal"
        """Whether the teacher does not change: the shared model, while only local parameters are trained."""
        self._teacher_logits: dict[tuple[int, int], Tensor] = {}
        self.examples: dict[str, set[int]] = {}
        """Part of the loss -> numbers of the examples over which it was computed so far."""

    def backward(self, batch: Batch, step: int = 0) -> dict[str, Tensor]:
        """Add the gradient of the loss to the parameters'; returns the parts of the loss, scalars of shape `[]`, and their sum `total`.

        The models are processed one after the other, each with its backward pass, so that only the activations of one model are in memory.

        Args:
            batch: the images of the step.
            step: the number of the step within the phase, counted from 0.
        """
        if self.spec.halves:
            return self._halves(batch, step)
        if self.spec.shared_share < 1:
            # The shared model learns from the first images, which should not always be of the same kind.
            batch = _rotated(batch, step)
        taught = self.spec.taught
        teacher: Tensor | None = None
        if taught and _other(taught) not in self.spec.supervised:
            teacher = self._fixed_logits(batch) if self._teacher_is_fixed else self._other_logits(batch, taught)
        # If both models are supervised, the teacher is the other model in its current state, which is processed first.
        parts: dict[str, Tensor] = {}
        for which in self._order:
            logits, found = self._pass(self._images_of(batch, which), which, teacher)
            found["total"].backward()
            teacher = logits.detach() if teacher is None else teacher
            _add(parts, found)
        return parts

    @property
    def _order(self) -> list[Model]:
        """The supervised models, the taught one last."""
        return sorted(self.spec.supervised, key=lambda which: which == self.spec.taught)

    def _images_of(self, batch: Batch, which: Model) -> Batch:
        """The images from which a model learns: all, or the first ones for the shared model beside the personal one."""
        if which == "personal" or len(self.spec.supervised) == 1:
            return batch
        return _part(batch, 0, max(1, round(self.spec.shared_share * len(batch.keys))))

    def _halves(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """Like `backward`, with one half of the batch for each model; for an odd number, the shared model gets one image more.

        If a model is taught in the first step alone, both models learn from the first half there, and the teacher's logits need no forward
        pass of their own.
        """
        middle = len(batch.keys) - len(batch.keys) // 2
        first, second = _part(batch, 0, middle), _part(batch, middle, len(batch.keys))
        taught = self.spec.taught
        together = taught is not None and self.spec.taught_steps == "first" and step == 0
        parts: dict[str, Tensor] = {}
        teacher: Tensor | None = None
        for which in self._order:
            half = first if together or which == "shared" else second
            if which == taught and self.spec.taught_steps == "all":
                teacher = self._other_logits(half, which)
            with _fixed(self._shared if self.spec.halves == "decoupled" and which == "personal" else ()):
                logits, found = self._pass(half, which, teacher)
                found["total"].backward()
            if together:
                teacher = logits.detach()
            _add(parts, found)
        return parts

    @torch.no_grad()
    def _other_logits(self, batch: Batch, which: Model) -> Tensor:
        """The logits `[B, C, h, w]` of the other model than `which`, in its current state."""
        return self.model.from_prefix(batch.tokens, personal=_other(which) == "personal")

    def _pass(self, batch: Batch, which: Model, teacher: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        """A model's logits `[B, C, h, w]` and parts of the loss; with two models, the mean of their segmentation losses is minimised.

        The distillation is over the images for which the teacher's logits are given, the first ones of the batch.
        """
        routings: dict[str, Routing] = {}
        logits = self.model.from_prefix(batch.tokens, personal=which == "personal", routings=routings)
        supervised = segmentation_loss(logits, batch.labels, self.form, self.loss)
        parts = {"segmentation": supervised / len(self.spec.supervised)}
        total = parts["segmentation"]
        if which == self.spec.taught and teacher is not None:
            both = min(len(teacher), len(logits))
            parts["distillation"] = distillation_loss(
                logits[:both], teacher[:both], batch.labels[:both], self.distillation, self.form
            )
            total = total + self.distillation.weight * parts["distillation"]
        if routings and "local" in self.spec.trains:
            parts["balance"] = torch.stack([routing.balance_loss() for routing in routings.values()]).mean()
            total = total + self.balance * parts["balance"]
        for name in ("total", *parts):
            keys = batch.keys[: len(teacher)] if name == "distillation" and teacher is not None else batch.keys
            self.examples.setdefault(name, set()).update(example for example, _ in keys)
        return logits, {"total": total, **parts}

    @torch.no_grad()
    def _fixed_logits(self, batch: Batch) -> Tensor:
        """The teacher's logits `[B, C, h, w]`, computed once per image and view of the phase."""
        teacher = _other(self.spec.taught)
        for i, key in enumerate(batch.keys):
            if key not in self._teacher_logits:
                tokens = batch.tokens[i : i + 1]
                self._teacher_logits[key] = self.model.from_prefix(tokens, personal=teacher == "personal")[0]
        return torch.stack([self._teacher_logits[key] for key in batch.keys])


def _part(batch: Batch, start: int, end: int) -> Batch:
    """The images of a batch from `start` to before `end`."""
    return Batch(batch.tokens[start:end], batch.labels[start:end], batch.keys[start:end])


def _rotated(batch: Batch, by: int) -> Batch:
    """The images of a batch in another order: those from number `by` (counted around) first."""
    start = by % len(batch.keys)
    keys = (*batch.keys[start:], *batch.keys[:start])
    return Batch(batch.tokens.roll(-start, dims=0), batch.labels.roll(-start, dims=0), keys)


def _other(model: Model | None) -> Model:
    return "shared" if model == "personal" else "personal"
