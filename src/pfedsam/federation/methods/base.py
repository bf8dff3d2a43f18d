"""What a federated method decides: the parts of the model, where each part lives, and the phases of a client round.

Everything else (the loop, messages, aggregation, evaluation) is the same for all methods. A new method is one file with one
`Method`, one line in the registry and one test file.
"""

from collections.abc import Callable
from dataclasses import dataclass

from pfedsam.model.partition import Placement
from pfedsam.model.personal import ModelOptions
from pfedsam.training.options import TrainingOptions
from pfedsam.training.phases import PhaseSpec


@dataclass(frozen=True)
class Method:
    """A federated method, as data."""

    name: str
    summary: str
    """One line: what it does and where it comes from."""
    adapt: Callable[[ModelOptions], ModelOptions]
    """The model's options as this method needs them."""
    placement: Callable[[ModelOptions], Placement]
    """Where each component of that model lives; what is `shared` here is what travels."""
    phases: Callable[[TrainingOptions], tuple[PhaseSpec, ...]]
    """The phases of a client round, in order."""
    final: Callable[[TrainingOptions], tuple[PhaseSpec, ...]]
    """The phases after the last aggregation; nothing is sent after them."""
    pooled: bool = False
    """All sites' images in one place: the upper bound that privacy forbids."""


def no_phases(_: TrainingOptions) -> tuple[PhaseSpec, ...]:
    """For methods that end with the last aggregation."""
    return ()


def local_training(options: TrainingOptions) -> tuple[PhaseSpec, ...]:
    """One phase in which a site trains everything it has by itself."""
    return (PhaseSpec("local", ("local",), ("personal",), steps=options.steps_per_round),)


def local_end(options: TrainingOptions) -> tuple[PhaseSpec, ...]:
    """The steps that personal methods spend after the last aggregation, spent alone."""
    if not options.final_steps:
        return ()
    return (PhaseSpec("local", ("local",), ("personal",), steps=options.final_steps),)
