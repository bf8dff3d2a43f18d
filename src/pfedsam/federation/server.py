"""The server's part of a round: the method's server step computes the next state from the present state and the accepted updates."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from torch import Tensor

from pfedsam.core import tensors
from pfedsam.core.errors import RunError
from pfedsam.core.tensors import NamedTensors
from pfedsam.federation.aggregation import (
    ALL_ANNOTATED,
    AggregationResult,
    Annotations,
    Row,
    TooFewUpdatesError,
    accept,
    combine_by_class,
    mean_of,
    weighted_mean,
)
from pfedsam.federation.bounds import NO_LIMITS, Limits
from pfedsam.federation.update import TensorSpec, Update, UpdateSpec


@dataclass(frozen=True)
class ServerState:
    """The complete state of the server between two rounds."""

    round: int
    """The round that the sites train next, counted from 0."""
    shared: NamedTensors
    memory: NamedTensors = field(default_factory=dict)
    """Tensors that the method's server step keeps between rounds, such as moments; saved with the shared parameters, never sent.

    A tensor that belongs to one shared parameter has its shape, and its name or `<kind>:<name>`.
    """

    def to_bytes(self) -> bytes:
        """The shared parameters as the message that is sent to every site; empty if the method shares nothing."""
        return tensors.to_bytes(self.shared) if self.shared else b""


class ServerStep(Protocol):
    """How a method combines the updates of a round."""

    @property
    def least_updates(self) -> int:
        """The smallest number of updates that this step needs."""

    def init(self, shared: NamedTensors) -> ServerState:
        """The state before the first round, with these initial shared parameters."""

    def apply(self, state: ServerState, updates: Sequence[Update]) -> ServerState:
        """The state after a round.

        Args:
            state: a copy of the state that was broadcast.
            updates: the accepted updates, at least `least_updates`, sorted by site.
        """

    def combine(self, values: Tensor, weights: Sequence[float]) -> Tensor:
        """What this step makes of the values of several sites, without its memory.

        It is used for the parameters of a class that some sites do not annotate; `apply` then gets the result from every site.

        Args:
            values: the values that the sites sent, float64 of shape [n, ...], at least `least_updates` of them.
            weights: the weights of the sites.

        Returns:
            The combined values, of shape [...].
        """

    def largest_change(self, of_a_site: float, values: int) -> float:
        """The largest L2 norm by which one round may change the shared tensors.

        Args:
            of_a_site: the largest L2 norm by which one site may change them.
            values: the number of values in the shared tensors.
        """


@dataclass(frozen=True)
class WeightedMean:
    """FedAvg's server step (McMahan et al., 2017): the mean of the sites' parameters, weighted by their training cases."""

    @property
    def least_updates(self) -> int:
        """One update is enough."""
        return 1

    def init(self, shared: NamedTensors) -> ServerState:
        """The state contains only the shared parameters."""
        return ServerState(0, shared)

    def apply(self, state: ServerState, updates: Sequence[Update]) -> ServerState:
        """The mean of the updates replaces the shared parameters."""
        return replace(state, round=state.round + 1, shared=weighted_mean(updates))

    def combine(self, values: Tensor, weights: Sequence[float]) -> Tensor:
        """The weighted mean."""
        return mean_of(values, weights)

    def largest_change(self, of_a_site: float, values: int) -> float:
        """The bound of one site, because the change of a mean is at most the largest change of the averaged parameters."""
        return of_a_site


def initial_state(step: ServerStep, shared: NamedTensors, spec: UpdateSpec) -> ServerState:
    """The state before the first round, with these initial shared parameters.

    Raises:
        RunError: the server step gave a state that no site can train from.
    """
    state = step.init(shared)
    if problem := _problem(state, 0, spec):
        raise RunError(
            f"The server step {type(step).__name__} of the method gave {problem} for the beginning. Correct its `init`, and start again."
        )
    return state


def aggregate(
    state: ServerState,
    updates: Iterable[Update],
    spec: UpdateSpec,
    registered: Mapping[str, int],
    step: ServerStep,
    limits: Limits = NO_LIMITS,
    annotations: Annotations = ALL_ANNOTATED,
) -> tuple[ServerState, AggregationResult]:
    """The state after a round, and which updates were accepted or rejected.

    Args:
        state: the state that was broadcast; it is not changed.
        updates: the updates of the sites, in any order.
        spec: the shared tensors of the run.
        registered: the number of training cases of each site, as known when the run started.
        step: the method's server step.
        limits: bounds on a site's update.
        annotations: which parameters belong to single classes, and which classes each site does not annotate.

    Raises:
        TooFewUpdatesError: fewer updates were accepted than the server step needs; `state` stays valid.
        RunError: a registered number of training cases is not allowed, or the server step gave a state that no site can train from.
    """
    result = accept(updates, spec, round=state.round, registered=registered, received=state.shared, limits=limits)
    if len(result.updates) < step.least_updates:
        raise TooFewUpdatesError(state.round, result, step.least_updates)
    by_class = combine_by_class(
        result.updates, annotations, state.shared, step.combine, max_share=limits.max_share, least=step.least_updates
    )
    kept = annotations.kept_rows(result.accepted, least=step.least_updates)
    after = step.apply(_copy(state), by_class)
    if problem := _problem(after, state.round + 1, spec):
        raise RunError(
            f"The server step {type(step).__name__} of the method gave {problem} for round {state.round + 1}. The state before this round "
            "is kept: correct the step, and continue."
        )
    return _with_kept_rows(after, state, kept), result


def _copy(state: ServerState) -> ServerState:
    """A copy of a state with tensors of its own, so that a server step that changes them in place does not change the state itself."""

    def copies(named: NamedTensors) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in named.items()}

    return replace(state, shared=copies(state.shared), memory=copies(state.memory))


def _problem(after: object, round_: int, spec: UpdateSpec) -> str | None:
    """What is wrong with the state before round `round_` that a server step gave; None if sites can train from it."""
    if not isinstance(after, ServerState):
        return f"a {type(after).__name__} and not a ServerState"
    if after.round != round_:
        return f"a state whose round is {after.round} and not {round_}"
    for what, named in (("shared", after.shared), ("memory", after.memory)):
        if not isinstance(named, Mapping):
            return f"a state whose {what} is a {type(named).__name__} and not a mapping from names to tensors"
    for name, value in after.memory.items():
        if not isinstance(value, Tensor):
            return f"a memory whose {name!r} is a {type(value).__name__} and not a tensor"
    return _problem_of_shared(after.shared, spec)


def _problem_of_shared(shared: NamedTensors, spec: UpdateSpec) -> str | None:
    """What is wrong with the shared tensors that a server step gave, in any shapes; None if they match the specification."""
    if shared.keys() != spec.tensors.keys():
        missing = sorted(spec.tensors.keys() - shared.keys())[:3]
        extra = sorted(shared.keys() - spec.tensors.keys())[:3]
        return f"other tensors than the shared ones (missing: {missing}, unexpected: {extra})"
    for name, expected in spec.tensors.items():
        tensor: object = shared[name]
        if not isinstance(tensor, Tensor):
            return f"{name} as a {type(tensor).__name__} and not as a tensor"
        if (given := TensorSpec.of(tensor)) != expected:
            return f"{name} as {given} and not as {expected}"
        if not bool(tensor.isfinite().all()):
            return f"{name} with values that are not finite"
    return None


def _with_kept_rows(after: ServerState, before: ServerState, rows: Mapping[str, Sequence[Row]]) -> ServerState:
    """The state after a round, with these rows of the shared tensors, and their memory, as they were before the round.

    A server step with a memory, such as FedAdam's moments, would move the rows although no update changes them.
    """

    def keep(new: NamedTensors, old: NamedTensors) -> dict[str, Tensor]:
        kept = dict(new)
        for name, value in old.items():
            parameter, there = name.rpartition(":")[2], new.get(name)
            if parameter in rows and there is not None and value.shape == there.shape == before.shared[parameter].shape:
                kept[name] = there.clone()
                for row in rows[parameter]:
                    kept[name][row] = value[row]
        return kept

    return replace(after, shared=keep(after.shared, before.shared), memory=keep(after.memory, before.memory))
