"""What a federated method decides: the parts of the model, where each part lives, the phases of a client round, and the server's step.

Everything else (the loop, messages, checks of updates, evaluation) is the same for all methods. A new method is one file with one
`Method`, one line in the registry and one test file; options of its own are a class in that file.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from pfedsam.core.options import Options
from pfedsam.federation.roster import EVERY_SITE, Roster
from pfedsam.federation.server import ServerStep, WeightedMean
from pfedsam.model.build import present
from pfedsam.model.options import ModelOptions
from pfedsam.model.partition import Kind, Placement
from pfedsam.training.options import TrainingOptions
from pfedsam.training.phases import PhaseSpec


class NoOptions(Options):
    """For methods without options of their own."""


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
    warmup: Callable[[TrainingOptions], tuple[PhaseSpec, ...]] | None = None
    """The phases of the first `training.shared_warmup_rounds` rounds, of as many steps as the others; None where all rounds are alike."""
    server: ServerStep = field(default_factory=WeightedMean)
    """How the server makes the next shared parameters of the accepted updates."""
    own: Options = field(default_factory=NoOptions)
    """The method's own options, `method_options.<name>` in a configuration."""
    configure: Callable[[Any], "Method"] | None = None
    """The method with other options of its own, an instance of the class of `own`; None where it has none."""
    roster: Roster = EVERY_SITE
    """Who does what; one with a pool has all training images in one place: the upper bound that privacy forbids."""

    def phases_of(self, options: TrainingOptions, round_: int) -> tuple[PhaseSpec, ...]:
        """The phases of round `round_`, counted from 0."""
        if self.warmup and round_ < options.shared_warmup_rounds:
            return self.warmup(options)
        return self.phases(options)

    def round_phases(self, options: TrainingOptions) -> tuple[PhaseSpec, ...]:
        """Every phase that a round may have; none of those after the last aggregation."""
        first = self.warmup(options) if self.warmup and options.shared_warmup_rounds else ()
        return (*first, *self.phases(options))


HEAD = ("class_tokens", "output_layers")
"""The segmentation head; every method has to train it, or its output layers at least."""


def plain(options: ModelOptions) -> ModelOptions:
    """The model as configured, less all that pfedsam or its ablations add to it; one set of output layers, shared."""
    return options.without_additions()


def place(options: ModelOptions, *, shared: Iterable[str] = (), local: Iterable[str] = ()) -> Placement:
    """The placement of these components, less those that the options switch off or freeze."""
    there = present(options) - ({"output_layers"} if options.output_layers == "frozen" else set())
    placed: dict[str, Kind] = {component: "shared" for component in shared if component in there}
    return placed | {component: "local" for component in local if component in there}


def no_phases(_: TrainingOptions) -> tuple[PhaseSpec, ...]:
    """For methods that end with the last aggregation."""
    return ()


def shared_training(options: TrainingOptions) -> tuple[PhaseSpec, ...]:
    """One phase on the shared parameters; for methods in which nothing is personal."""
    return (PhaseSpec("global", ("shared",), ("shared",), steps=options.steps_per_round),)


def joint_training(options: TrainingOptions) -> tuple[PhaseSpec, ...]:
    """One phase in which shared and local parameters are trained together, in the personal model."""
    return (PhaseSpec("joint", ("shared", "local"), ("personal",), steps=options.steps_per_round),)


def local_training(options: TrainingOptions) -> tuple[PhaseSpec, ...]:
    """One phase in which a site trains everything it has by itself."""
    return (PhaseSpec("local", ("local",), ("personal",), steps=options.steps_per_round),)


def local_end(options: TrainingOptions) -> tuple[PhaseSpec, ...]:
    """The steps that personal methods spend after the last aggregation: what is local, with the final shared parameters."""
    if not options.final_steps:
        return ()
    return (PhaseSpec("local", ("local",), ("personal",), steps=options.final_steps),)


def split_steps(options: TrainingOptions) -> tuple[int, int]:
    """Steps of the global and of the local phase of a round; each gets one at least."""
    global_steps = min(max(1, round(options.global_share * options.steps_per_round)), options.steps_per_round - 1)
    return global_steps, options.steps_per_round - global_steps
