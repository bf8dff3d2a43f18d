"""A federated method decides on the components of the model, which of them are shared, the phases of a client round, and the server's step.

All else (the round loop, messages, checks of updates, evaluation) is the same for all methods. A new method is one file with one
`Method`, one line in the registry and one test file; its own options are a class in that file.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from pfedsam.core.errors import OptionError
from pfedsam.core.options import Options
from pfedsam.federation.roster import EVERY_SITE, Roster
from pfedsam.federation.server import ServerStep, WeightedMean
from pfedsam.model.build import present
from pfedsam.model.options import ModelOptions
from pfedsam.model.partition import Kind, Placement
from pfedsam.model.unet import UNetOptions
from pfedsam.training.options import TrainingOptions
from pfedsam.training.phases import PhaseSpec


class NoOptions(Options):
    """Empty options, for methods that have none of their own."""


@dataclass(frozen=True)
class Method:
    """The description of a federated method."""

    name: str
    summary: str
    """One line: what the method does, and its source."""
    adapt: Callable[[ModelOptions], ModelOptions]
    """The model's options as this method needs them."""
    placement: Callable[[ModelOptions], Placement]
    """Which components of that model are shared and which are local; the shared ones are sent and averaged."""
    phases: Callable[[TrainingOptions], tuple[PhaseSpec, ...]]
    """The phases of a client round, in order."""
    final: Callable[[TrainingOptions], tuple[PhaseSpec, ...]]
    """The phases after the last aggregation; nothing is sent after them."""
    warmup: Callable[[TrainingOptions], tuple[PhaseSpec, ...]] | None = None
    """The phases of the first `training.shared_warmup_rounds` rounds, with as many steps as other rounds; None if all rounds are alike."""
    server: ServerStep = field(default_factory=WeightedMean)
    """How the server computes the next shared parameters from the accepted updates."""
    own: Options = field(default_factory=NoOptions)
    """The method's own options; `method_options.<name>` in a configuration."""
    configure: Callable[[Any], "Method"] | None = None
    """Makes the method from its own options, an instance of the class of `own`; None if it has none."""
    roster: Roster = EVERY_SITE
    """The sites for each task. A roster with a pool has all training images in one place, which gives an upper bound without privacy."""

    def phases_of(self, options: TrainingOptions, round_: int) -> tuple[PhaseSpec, ...]:
        """The phases of round `round_`, counted from 0."""
        if self.warmup and round_ < options.shared_warmup_rounds:
            return self.warmup(options)
        return self.phases(options)

    def round_phases(self, options: TrainingOptions) -> tuple[PhaseSpec, ...]:
        """All phases that occur in rounds, without those after the last aggregation."""
        first = self.warmup(options) if self.warmup and options.shared_warmup_rounds else ()
        return (*first, *self.phases(options))

    def _check_steps(self, options: TrainingOptions) -> None:
        """Refuse rounds of another length than the configuration states, which the progress shows and a site's operator approves.

        Raises:
            OptionError: the steps of the phases of a round do not add up to `training.steps_per_round`.
        """
        for source, function in (("phases", self.phases), ("warmup", self.warmup or self.phases)):
            steps = sum(phase.steps for phase in function(options))
            if steps != options.steps_per_round:
                raise OptionError(
                    f"The function {source!r} of the method {self.name} gives phases with {steps} steps together, and a round has "
                    f"{options.steps_per_round} (training.steps_per_round): give a phase its number as steps=, or divide it."
                )

    def check_phases(self, options: TrainingOptions) -> None:
        """Refuse phases that cannot be run one after the other, which would otherwise be found after rounds of training.

        Raises:
            OptionError: a function gives something else than a tuple of phases, or a round has no phase or another number of steps than
                `training.steps_per_round`; or a phase continues the optimiser state of another one that no round has, or that trains other
                kinds of parameters.
        """
        for source, function in (("phases", self.phases), ("final", self.final), ("warmup", self.warmup or no_phases)):
            found: object = function(options)
            if not isinstance(found, tuple) or not all(isinstance(one, PhaseSpec) for one in found):
                raise OptionError(
                    f"The function {source!r} of the method {self.name} gives {_kind(found)}; it has to give a tuple of phases, such as "
                    "(phase,) with one, or () with none."
                )
        if not self.phases(options):
            raise OptionError(f"The method {self.name} has no phase in a round: its function 'phases' gives ().")
        self._check_steps(options)
        in_rounds = {phase.name: phase for phase in self.phases(options)}
        for phase in (*self.round_phases(options), *self.final(options)):
            before = in_rounds.get(phase.fine_tunes_after or phase.name)
            if phase.fine_tunes_after and before is None:
                raise OptionError(
                    f"The phase {phase.name} of the method {self.name} begins with the optimiser state of {phase.fine_tunes_after!r}, "
                    f"and the phases of a round are {', '.join(in_rounds)}. Give one of these as fine_tunes_after."
                )
            if before and set(before.trains) != set(phase.trains):
                raise OptionError(
                    f"The phase {phase.name} of the method {self.name} continues the optimiser state of {before.name!r}, a phase of a "
                    f"round, which trains {before.trains!r}, and trains {phase.trains!r}. Let both train the same, or give it another name."
                )


def _kind(found: object) -> str:
    """The type of a result in words, and of its first part that is no phase."""
    parts = [type(one).__name__ for one in found if not isinstance(one, PhaseSpec)] if isinstance(found, tuple) else []
    return f"a tuple with a {parts[0]}" if parts else f"a {type(found).__name__}"


HEAD = ("class_tokens", "output_layers")
"""The segmentation head; every method must train it, or at least its output layers."""


def plain(options: ModelOptions) -> ModelOptions:
    """The configured model without the components that pfedsam or its ablations add, with one shared set of output layers."""
    return options.without_additions()


def plain_unet(options: ModelOptions) -> ModelOptions:
    """A U-Net in place of SAM; of the configured options only its size and that of the images are used."""
    return ModelOptions(unet=options.unet or UNetOptions(), image_size=options.image_size)


def place(options: ModelOptions, *, shared: Iterable[str] = (), local: Iterable[str] = ()) -> Placement:
    """The placement of these components, without those that the options switch off or freeze."""
    there = present(options) - ({"output_layers"} if options.output_layers == "frozen" else set())
    placed: dict[str, Kind] = {component: "shared" for component in shared if component in there}
    return placed | {component: "local" for component in local if component in there}


def no_phases(_: TrainingOptions) -> tuple[PhaseSpec, ...]:
    """No phases, for methods that end with the last aggregation."""
    return ()


def shared_training(options: TrainingOptions) -> tuple[PhaseSpec, ...]:
    """One phase that trains the shared parameters, for methods without local parameters."""
    return (PhaseSpec("global", ("shared",), ("shared",), steps=options.steps_per_round),)


def joint_training(options: TrainingOptions) -> tuple[PhaseSpec, ...]:
    """One phase that trains shared and local parameters together in the personal model."""
    return (PhaseSpec("joint", ("shared", "local"), ("personal",), steps=options.steps_per_round),)


def local_training(options: TrainingOptions) -> tuple[PhaseSpec, ...]:
    """One phase that trains only local parameters."""
    return (PhaseSpec("local", ("local",), ("personal",), steps=options.steps_per_round),)


def local_end(options: TrainingOptions) -> tuple[PhaseSpec, ...]:
    """The phase of personal methods after the last aggregation: it trains the local parameters with the final shared parameters fixed."""
    if not options.final_steps:
        return ()
    return (PhaseSpec("local", ("local",), ("personal",), steps=options.final_steps),)


def fine_tuning(options: TrainingOptions, after: PhaseSpec) -> tuple[PhaseSpec, ...]:
    """The phase after the last aggregation in which each site trains its own copy of all parameters in the personal model, or none.

    Args:
        options: options of the training.
        after: the last phase of a round, whose optimiser state is continued.
    """
    rounds = options.fine_tuning_rounds
    if rounds is None:
        rounds = min(options.rounds, options.patience or options.rounds) // 2
    if not rounds:
        return ()
    steps = rounds * options.steps_per_round
    return (PhaseSpec("fine_tuning", after.trains, ("personal",), steps=steps, fine_tunes_after=after.name),)


def split_steps(options: TrainingOptions) -> tuple[int, int]:
    """The numbers of steps of the global and of the local phase of a round; each is at least one."""
    global_steps = min(max(1, round(options.global_share * options.steps_per_round)), options.steps_per_round - 1)
    return global_steps, options.steps_per_round - global_steps
