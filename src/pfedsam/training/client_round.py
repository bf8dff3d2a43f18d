"""A client round at one site: a function from the received shared parameters and the site's state to the trained ones and a new state.

The given model holds the parameters during the training only; no result depends on its earlier values.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import torch
from torch import Tensor

from pfedsam.core.errors import OptionError
from pfedsam.core.tensors import NamedTensors
from pfedsam.data.examples import Example
from pfedsam.model.components.routing import Routing
from pfedsam.model.partition import Partition, assign
from pfedsam.model.segmenter import Segmenter
from pfedsam.training.options import TrainingOptions
from pfedsam.training.phases import PhaseSpec, run_phase
from pfedsam.training.schedule import fine_tuning_rates, learning_rate
from pfedsam.training.site_data import SiteData

_IMAGES_FOR_USAGE: Final = 8


@dataclass(frozen=True)
class ClientState:
    """The state that a site keeps from round to round; it never leaves the site."""

    local: NamedTensors
    optimizer: NamedTensors = field(default_factory=dict)
    """AdamW's state of each phase, under `<phase>:<parameter>:<entry>`."""


@dataclass(frozen=True)
class ClientResult:
    """The outcome of a client round."""

    shared: NamedTensors
    """The shared parameters as trained by the site, which its update contains."""
    state: ClientState
    losses: dict[str, dict[str, float]]
    """Mean losses by phase."""
    cases: dict[str, dict[str, int]]
    """The number of different cases over which each of these losses is a mean, by phase; a loss over no case is absent."""


def client_round(
    model: Segmenter,
    partition: Partition,
    data: SiteData,
    phases: Sequence[PhaseSpec],
    *,
    shared: NamedTensors,
    state: ClientState,
    round_: int,
    options: TrainingOptions,
    balance: float,
    ends: int | None = None,
) -> ClientResult:
    """Run the phases of one round at one site.

    Args:
        model: an instance of the federation's model; its trained parameters are overwritten.
        partition: the partition of that model.
        data: the training data of the site.
        phases: the phases in order.
        shared: the shared parameters that were received in this round.
        state: the state of the site after its last round.
        round_: number of the round, which determines the batches and the learning rate.
        options: options of the training.
        balance: weight of the experts' load-balancing term.
        ends: the number of rounds after which the study ends, as far as it is known; None for `training.rounds`.

    Raises:
        OptionError: two of the phases have the same name.
    """
    _refuse_equal_names(phases)
    received = own = dict(shared)
    local = dict(state.local)
    optimizer: dict[str, Tensor] = {}
    losses, cases = {}, {}
    for phase in phases:
        assign(model, received if phase.shared_from == "received" else own, partition.shared)
        assign(model, local, partition.local)
        names = partition.names(*phase.trains)
        result = run_phase(
            model,
            data.draw(model, round_=round_, phase=phase.name, batch_size=options.batch_size, steps=phase.steps),
            phase,
            names=names,
            learning_rates=_learning_rates(options, phase, round_, ends),
            optimizer_state=_of_phase(state.optimizer, phase.fine_tunes_after or phase.name),
            options=options.optimizer,
            distillation=options.distillation,
            balance=balance,
            anchors=_anchors(model, names, received) if phase.proximal else None,
            local=partition.local,
            form=data.form,
            loss=options.loss,
        )
        if "shared" in phase.trains:
            own = partition.select(model, "shared")
        local = partition.select(model, "local")
        optimizer |= {f"{phase.name}:{key}": value for key, value in result.optimizer.items()}
        losses[phase.name] = result.losses
        cases[phase.name] = {name: len({data.examples[i].case.id for i in of}) for name, of in result.examples.items()}
    return ClientResult(own, ClientState(local, optimizer), losses, cases)


def _refuse_equal_names(phases: Sequence[PhaseSpec]) -> None:
    """Refuse phases of one name, which would train on the same batches and overwrite each other's optimiser state and losses.

    Raises:
        OptionError: there are two.
    """
    names = [phase.name for phase in phases]
    if len(set(names)) < len(names):
        raise OptionError(
            f"The phases of a round are {', '.join(names)}: give each phase of a method a name of its own."
        )


@torch.no_grad()
def expert_usage(model: Segmenter, data: SiteData, *, least_cases: int = 1) -> dict[str, list[float]]:
    """For each adapted block the share of tokens sent to each expert, over the unchanged views of a site's first images.

    Args:
        model: with the site's parameters.
        data: its training data.
        least_cases: the smallest number of cases whose images are used, if the site has so many; above 1, one image of each case is used.
    """
    totals: dict[str, Tensor] = {}
    for example in _first_images(data, least_cases):
        routings: dict[str, Routing] = {}
        tokens = data.cache.tokens(example.pixels, model.prefix)[None]
        model.from_prefix(tokens, personal=True, routings=routings)
        for block, routing in routings.items():
            totals[block] = totals.get(block, torch.zeros(1)) + routing.usage().cpu()
    return {block: (total / total.sum()).tolist() for block, total in totals.items()}


def _first_images(data: SiteData, least_cases: int) -> list[Example]:
    if least_cases == 1:
        return list(data.examples[:_IMAGES_FOR_USAGE])
    first: dict[str, Example] = {}
    for example in data.examples:
        first.setdefault(example.case.id, example)
        if len(first) >= max(_IMAGES_FOR_USAGE, least_cases):
            break
    return list(first.values())


def _anchors(model: Segmenter, names: tuple[str, ...], received: NamedTensors) -> dict[str, Tensor]:
    """The targets of a proximal term: the received value, of the same shape, of each shared parameter and of its personal copy."""
    origins = model.origins()
    found = {name: received[origins.get(name, name)] for name in names if origins.get(name, name) in received}
    return {name: value.to(model.device) for name, value in found.items()}


def _learning_rates(options: TrainingOptions, phase: PhaseSpec, round_: int, ends: int | None) -> list[float]:
    """The learning rate of each step of a phase."""
    if phase.fine_tunes_after:
        return fine_tuning_rates(options.optimizer, phase.steps)
    return [learning_rate(options, round_, ends)] * phase.steps


def _of_phase(optimizer: NamedTensors, phase: str) -> dict[str, Tensor]:
    """The part of the optimiser's state, in the same shapes, that belongs to a phase."""
    return {key.split(":", 1)[1]: value for key, value in optimizer.items() if key.split(":", 1)[0] == phase}
