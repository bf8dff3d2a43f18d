"""Finds options that have no effect with the method of a run and the form of its rounds; such options are refused if they are set.

Methods need not declare the options that they use. The used options of the training are those that the method's functions read: they are
called with an object that records every access. An option of the model is used if it changes the result of the method's `adapt`.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeVar, cast, get_args, get_origin

from pydantic import BaseModel

from pfedsam.core.errors import OptionError
from pfedsam.core.options import Options
from pfedsam.core.text import some_of
from pfedsam.experiment.build import build_method
from pfedsam.experiment.options import RunOptions
from pfedsam.federation.methods import METHODS
from pfedsam.federation.methods.base import Method
from pfedsam.model.build import declared_by
from pfedsam.model.options import ModelOptions
from pfedsam.training.options import TrainingOptions

_BY_TRAINING: Final = ("rounds", "patience", "steps_per_round", "batch_size", "loss")
"""Keys of `training` that the round loop or the client round uses for every method."""
_BY_A_TEACHER: Final = (
    "distillation.weight",
    "distillation.temperature",
    "distillation.confidence_weighting",
    "distillation.missing_classes",
)
"""Keys of `training` that are used only in phases in which one model teaches the other."""
_FORMS: Final = ("phases", "distillation.direction")
"""Keys of `training` that decide which others are used; each has a few allowed values."""
_OPTIMIZER, _PRETRAINED_RATE = "optimizer.", "optimizer.pretrained_fraction"
_MOST_NAMED: Final = 6

O = TypeVar("O", bound=Options)  # noqa: E741


class _Reading:
    """Replaces an options object and records the path of every value that is read."""

    def __init__(self, options: Options, read: set[str], above: str = "") -> None:
        self._options, self._read, self._above = options, read, above

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - as the options
        value, path = getattr(self._options, name), f"{self._above}{name}"
        if isinstance(value, Options):
            return _Reading(value, self._read, f"{path}.")
        self._read.add(path)
        return value

    def model_copy(self, *, update: Mapping[str, Any] | None = None) -> "_Reading":
        """A copy with other values; every value that is read from it is recorded too."""
        return _Reading(self._options.model_copy(update=update), self._read, self._above)


def unused(options: RunOptions) -> dict[str, str]:
    """Key that was set but has no effect in this run -> a sentence for the user with the methods that would use it."""
    method = build_method(options)
    trained = _used_training(method, options.training, options.model)
    return {
        key: f"{key} has no effect with {_in_words(options)}; {_who_uses(key, options)}"
        for key in _set_keys(options)
        if not _uses(key, options, method, trained)
    }


def refuse_unused(options: RunOptions, name: str) -> None:
    """Refuse options if a key that was set has no effect.

    Args:
        options: the options of a run.
        name: the name of the file, for error messages.

    Raises:
        OptionError: a key has no effect; the message names every such key and the methods that would use it.
    """
    found = unused(options)
    if found:
        lines = "".join(f"\n  {line}." for line in found.values())
        raise OptionError(
            f"{name} sets {len(found)} option(s) without effect; leave them out or change the method:{lines}"
        )


def without_unused(options: RunOptions) -> RunOptions:
    """The same run with the defaults for all keys that have no effect in it."""
    keys = unused(options)
    if not keys:
        return options
    content = options.model_dump(exclude_unset=True)
    for key in keys:
        remove(content, key)
    return RunOptions.model_validate(content)


def refuse_unused_by_all(runs: Sequence[RunOptions], name: str, keys: Sequence[str] | None = None) -> None:
    """Refuse the options of a comparison if a key that was set has no effect in any run.

    Args:
        runs: the options of the runs, one for each method.
        name: the name of the file, for error messages.
        keys: the paths of the keys, or of groups of keys, to be checked; None for all.

    Raises:
        OptionError: a key has no effect; the message names every such key.
    """
    everywhere = [key for key in _unused_by_all(runs) if keys is None or is_below(key, keys)]
    if everywhere:
        lines = "".join(f"\n  {key}: {_who_uses(key, runs[0])}." for key in everywhere)
        raise OptionError(f"{name} sets {len(everywhere)} option(s) that no method of the comparison uses:{lines}")


def _unused_by_all(runs: Sequence[RunOptions]) -> list[str]:
    """The keys that were set and have no effect in any of the runs."""
    first, *others = [unused(options) for options in runs] or [{}]
    return [key for key in first if all(key in found for found in others)]


def is_below(key: str, paths: Iterable[str]) -> bool:
    """Whether a key is one of these paths, or in a group of keys at one of them."""
    return any(key == path or key.startswith(f"{path}.") for path in paths)


def remove(content: dict[str, Any], key: str) -> None:
    """Remove the value at a dotted path of keys from `content`; a group that becomes empty is kept."""
    *parents, last = key.split(".")
    for parent in parents:
        content = content[parent]
    del content[last]


def _set_keys(options: RunOptions) -> Iterator[str]:
    """The paths of the keys that were set, in the parts of the configuration whose options may have no effect."""
    for part in ("training", "method_options", "model"):
        if part in options.model_fields_set:
            yield from _set_below(getattr(options, part), f"{part}.")


def _set_below(options: BaseModel, above: str) -> Iterator[str]:
    for name in type(options).model_fields:
        if name in options.model_fields_set:
            value = getattr(options, name)
            if isinstance(value, BaseModel):
                yield from _set_below(value, f"{above}{name}.")
            else:
                yield f"{above}{name}"


def _uses(key: str, options: RunOptions, method: Method, trained: Collection[str]) -> bool:
    """Whether the key with its value has an effect in this run, whose method uses the paths `trained` of the training options."""
    part, _, path = key.partition(".")
    if part == "method_options":
        return path.partition(".")[0] == options.method
    if part == "training":
        return path in trained
    return _changes_model(method, options.model, path)


def _used_training(method: Method, training: TrainingOptions, model: ModelOptions) -> frozenset[str]:
    """The paths of the training options that have an effect with a method."""
    read: set[str] = set(_BY_TRAINING)
    noting = cast(TrainingOptions, _Reading(training, read))
    phases = (*method.phases_of(noting, 0), *method.round_phases(noting), *method.final(noting))
    if any(phase.taught for phase in phases):
        read.update(_BY_A_TEACHER)
    optimizer = {f"{_OPTIMIZER}{name}" for name in type(training.optimizer).model_fields}
    adapted = method.adapt(model)
    of_the_backbone = {group for part in declared_by(adapted) if part.pretrained for group in part.groups}
    if not of_the_backbone & set(method.placement(adapted)):
        optimizer.discard(_PRETRAINED_RATE)
    return frozenset(read | optimizer)


def _changes_model(method: Method, model: ModelOptions, path: str) -> bool:
    """Whether the method's model would differ with the key's default value; true also for a key that has its default value."""
    plain = _with_default(model, path)
    return plain == model or method.adapt(plain) != method.adapt(model)


def _with_default(options: O, path: str) -> O:
    """The options with the default value at a dotted path."""
    name, _, rest = path.partition(".")
    field = type(options).model_fields[name]
    value = _with_default(getattr(options, name), rest) if rest else field.get_default(call_default_factory=True)
    return options.model_copy(update={name: value})


def _with(options: TrainingOptions, path: str, value: str) -> TrainingOptions:
    """The options with another form of rounds."""
    name, _, rest = path.partition(".")
    inner = getattr(options, name).model_copy(update={rest: value}) if rest else value
    return options.model_copy(update={name: inner})


def _who_uses(key: str, options: RunOptions) -> str:
    """The end of a sentence that names what would use the key: this method with another form of rounds, or other methods."""
    part, _, path = key.partition(".")
    if part == "method_options":
        return f"only the method {path.partition('.')[0]} uses it"
    users = [_user(name, path, options, model=part == "model") for name in (options.method, *METHODS)]
    named = list(dict.fromkeys(user for user in users if user))
    return f"used by {some_of(named, _MOST_NAMED)}" if named else "nothing uses it"


def _user(name: str, path: str, options: RunOptions, *, model: bool) -> str | None:
    """The method's name, with the form of rounds in which it uses a path; None if it never uses it."""
    method = METHODS[name]
    if model:
        return name if _changes_model(method, options.model, path) else None
    method.check_phases(options.training)
    if path in _used_training(method, options.training, options.model):
        return name
    for form in _FORMS:
        for value in _choices(form):
            if path in _used_training(method, _with(options.training, form, value), options.model):
                return f"{name} with training.{form}={value}"
    return None


def _choices(form: str) -> tuple[str, ...]:
    """The values that a form of rounds can have."""
    kind: Any = TrainingOptions
    for name in form.split("."):
        kind = kind.model_fields[name].annotation
    return get_args(kind) if get_origin(kind) else ()


def _in_words(options: RunOptions) -> str:
    """A run's method, and the form of its rounds if the method has several forms."""
    read = _used_training(build_method(options), options.training, options.model)
    forms = [f"training.phases={options.training.phases}"] if "phases" in read else []
    forms += (
        [f"training.distillation.direction={options.training.distillation.direction}"]
        if "distillation.direction" in read
        else []
    )
    return ", ".join([f"method={options.method}", *forms])
