"""The server's side of a round: a state goes in, the next state comes out."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pfedsam.core import tensors
from pfedsam.core.tensors import NamedTensors
from pfedsam.federation.aggregation import AggregationResult, combine
from pfedsam.federation.bounds import NO_LIMITS, Limits
from pfedsam.federation.update import Update, UpdateSpec


@dataclass(frozen=True)
class ServerState:
    """All that the server knows between two rounds."""

    round: int
    """The round that the sites train next; the first is 0."""
    shared: NamedTensors

    def to_bytes(self) -> bytes:
        """The shared parameters as the message that every site gets; empty where a method shares nothing."""
        return tensors.to_bytes(self.shared) if self.shared else b""


def aggregate(
    state: ServerState,
    updates: Iterable[Update],
    spec: UpdateSpec,
    registered: Mapping[str, int],
    limits: Limits = NO_LIMITS,
) -> tuple[ServerState, AggregationResult]:
    """The state after a round, and which sites were averaged or refused.

    Args:
        state: the state that was broadcast; it is not changed.
        updates: what the sites sent, in any order.
        spec: the shared tensors of the run.
        registered: the number of training cases of each site, as known when the run started.
        limits: on what one site's update may do.

    Raises:
        RunError: no update was accepted; the state to go on with is the one that was given.
    """
    result = combine(updates, spec, round=state.round, registered=registered, received=state.shared, limits=limits)
    return ServerState(state.round + 1, result.tensors), result
