"""The server's side of a round: a state goes in, the next state comes out. What happens between is the method's server step."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from pfedsam.core import tensors
from pfedsam.core.errors import RunError
from pfedsam.core.tensors import NamedTensors
from pfedsam.federation.aggregation import (
    ALL_ANNOTATED,
    AggregationResult,
    Annotations,
    accept,
    fill_not_annotated,
    weighted_mean,
)
from pfedsam.federation.bounds import NO_LIMITS, Limits
from pfedsam.federation.update import Update, UpdateSpec


@dataclass(frozen=True)
class ServerState:
    """All that the server knows between two rounds."""

    round: int
    """The round that the sites train next; the first is 0."""
    shared: NamedTensors
    memory: NamedTensors = field(default_factory=dict)
    """What the method's server step keeps from round to round, such as moments; saved with the shared parameters, never sent."""

    def to_bytes(self) -> bytes:
        """The shared parameters as the message that every site gets; empty where a method shares nothing."""
        return tensors.to_bytes(self.shared) if self.shared else b""


class ServerStep(Protocol):
    """How a method combines the updates of a round."""

    @property
    def least_updates(self) -> int:
        """How many updates a round needs for this step to work."""

    def init(self, shared: NamedTensors) -> ServerState:
        """The state before the first round, which starts from these shared parameters."""

    def apply(self, state: ServerState, updates: Sequence[Update]) -> ServerState:
        """The state after a round.

        Args:
            state: the one that was broadcast; it is not changed.
            updates: those that were accepted, at least `least_updates`, sorted by site.
        """

    def largest_change(self, of_a_site: float, values: int) -> float:
        """The largest L2 norm by which one round may change the shared tensors.

        Args:
            of_a_site: the same for the parameters of a single site.
            values: how many numbers the shared tensors hold.
        """


@dataclass(frozen=True)
class WeightedMean:
    """FedAvg's server step (McMahan et al., 2017): the mean of the sites' parameters, weighted by their training cases."""

    @property
    def least_updates(self) -> int:
        """One update is its own mean."""
        return 1

    def init(self, shared: NamedTensors) -> ServerState:
        """Nothing is kept but the shared parameters."""
        return ServerState(0, shared)

    def apply(self, state: ServerState, updates: Sequence[Update]) -> ServerState:
        """The mean takes the place of what was broadcast."""
        return replace(state, round=state.round + 1, shared=weighted_mean(updates))

    def largest_change(self, of_a_site: float, values: int) -> float:
        """A mean lies no further away than the furthest of what it is the mean of."""
        return of_a_site


def aggregate(
    state: ServerState,
    updates: Iterable[Update],
    spec: UpdateSpec,
    registered: Mapping[str, int],
    step: ServerStep,
    limits: Limits = NO_LIMITS,
    annotations: Annotations = ALL_ANNOTATED,
) -> tuple[ServerState, AggregationResult]:
    """The state after a round, and which sites' updates were accepted or refused.

    Args:
        state: the state that was broadcast; it is not changed.
        updates: what the sites sent, in any order.
        spec: the shared tensors of the run.
        registered: the number of training cases of each site, as known when the run started.
        step: of the method.
        limits: on what one site's update may do.
        annotations: which values belong to single classes, and which sites do not annotate which class.

    Raises:
        RunError: too few updates were accepted; the state to go on with is the one that was given.
    """
    result = accept(updates, spec, round=state.round, registered=registered, received=state.shared, limits=limits)
    if len(result.updates) < step.least_updates:
        raise RunError(
            f"round {state.round + 1} has {len(result.updates)} accepted update(s); the method's server step needs at least "
            f"{step.least_updates}. The shared parameters stay as they are; go on with the run when enough sites take part. "
            + " ".join(result.rejected.values())
        )
    return step.apply(state, fill_not_annotated(result.updates, annotations, state.shared)), result
