"""Which options have an effect under the method of a run and the form of its rounds; one that was set and has none is refused.

Nothing is declared for this. What the training of a method uses is what its functions read: they are called with options that take
notes. What it uses of the model's options is what its `adapt` lets pass.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any, Final, TypeVar, cast, get_args, get_origin

from pydantic import BaseModel

from pfedsam.core.errors import OptionError
from pfedsam.core.options import Options
from pfedsam.experiment.build import build_method
from pfedsam.experiment.options import RunOptions
from pfedsam.federation.methods import METHODS
from pfedsam.federation.methods.base import Method
from pfedsam.model.build import components_of
from pfedsam.model.options import ModelOptions
from pfedsam.training.options import TrainingOptions

_BY_TRAINING: Final = ("rounds", "steps_per_round", "batch_size", "loss")
"""Keys of `training` that every method uses, by the loop and the client round."""
_BY_A_TEACHER: Final = (
    "distillation.weight",
    "distillation.temperature",
    "distillation.confidence_weighting",
    "distillation.missing_classes",
)
"""Keys of `training` that a phase uses in which one model teaches the other."""
_FORMS: Final = ("phases", "distillation.direction")
"""Keys of `training` that decide which others are used; each is one of a few words."""
_OPTIMIZER, _PRETRAINED_RATE = "optimizer.", "optimizer.pretrained_fraction"
_MOST_NAMED: Final = 6

O = TypeVar("O", bound=Options)  # noqa: E741


class _Reading:
    """Stands for options; notes the path of every value that is read."""

    def __init__(self, options: Options, read: set[str], above: str = "") -> None:
        self._options, self._read, self._above = options, read, above

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - as the options
        value, path = getattr(self._options, name), f"{self._above}{name}"
        if isinstance(value, Options):
            return _Reading(value, self._read, f"{path}.")
        self._read.add(path)
        return value


def unused(options: RunOptions) -> dict[str, str]:
    """Every key that was set and has no effect in this run, and the sentence that says so and what would use it."""
    return {
        key: f"{key} has no effect with {_in_words(options)}; {_who_uses(key, options)}"
        for key in _set_keys(options)
        if not _uses(key, options)
    }


def refuse_unused(options: RunOptions, name: str) -> None:
    """Let options pass only if every key that was set has an effect.

    Args:
        options: of a run.
        name: of the file, for messages.

    Raises:
        OptionError: naming every key that has none, and what would use it.
    """
    found = unused(options)
    if found:
        lines = "".join(f"\n  {line}." for line in found.values())
        raise OptionError(
            f"{name} sets {len(found)} option(s) without effect; leave them out or change the method:{lines}"
        )


def without_unused(options: RunOptions) -> RunOptions:
    """The same run without the keys that have no effect in it; they have their defaults then."""
    keys = unused(options)
    if not keys:
        return options
    content = options.model_dump(exclude_unset=True)
    for key in keys:
        remove(content, key)
    return RunOptions.model_validate(content)


def refuse_unused_by_all(runs: Sequence[RunOptions], name: str, keys: Sequence[str] | None = None) -> None:
    """Let the options of a comparison pass only if every key that was set has an effect in one run at least.

    Args:
        runs: of different methods.
        name: of the file, for messages.
        keys: the paths of the keys, or of groups of them, that are looked at; None for all.

    Raises:
        OptionError: naming every key that has none.
    """
    each = [unused(options) for options in runs]
    everywhere = [key for key in each[0] if all(key in found for found in each)] if each else []
    everywhere = [key for key in everywhere if keys is None or is_below(key, keys)]
    if everywhere:
        lines = "".join(f"\n  {key}: {_who_uses(key, runs[0])}." for key in everywhere)
        raise OptionError(f"{name} sets {len(everywhere)} option(s) that no method of the comparison uses:{lines}")


def is_below(key: str, paths: Iterable[str]) -> bool:
    """Whether a key is at one of these paths, or in the group of keys that is there."""
    return any(key == path or key.startswith(f"{path}.") for path in paths)


def remove(content: dict[str, Any], key: str) -> None:
    """Take the value at a dotted path of keys out of `content`; a group that is empty then stays."""
    *parents, last = key.split(".")
    for parent in parents:
        content = content[parent]
    del content[last]


def _set_keys(options: RunOptions) -> Iterator[str]:
    """The paths of the keys that were set, of the parts whose options may be without effect."""
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


def _uses(key: str, options: RunOptions) -> bool:
    """Whether the key, with the value that it has, makes a difference in this run."""
    part, _, path = key.partition(".")
    if part == "method_options":
        return path.partition(".")[0] == options.method
    method = build_method(options)
    if part == "training":
        return path in _used_training(method, options.training, options.model)
    return _changes_model(method, options.model, path)


@lru_cache(maxsize=256)
def _used_training(method: Method, training: TrainingOptions, model: ModelOptions) -> frozenset[str]:
    """The paths of the training's options that have an effect under a method."""
    read: set[str] = set(_BY_TRAINING)
    noting = cast(TrainingOptions, _Reading(training, read))
    phases = (*method.phases_of(noting, 0), *method.round_phases(noting), *method.final(noting))
    if any(phase.taught for phase in phases):
        read.update(_BY_A_TEACHER)
    optimizer = {f"{_OPTIMIZER}{name}" for name in type(training.optimizer).model_fields}
    adapted = method.adapt(model)
    of_the_backbone = {group for part in components_of(adapted) if part.pretrained for group in part.groups}
    if not of_the_backbone & set(method.placement(adapted)):
        optimizer.discard(_PRETRAINED_RATE)
    return frozenset(read | optimizer)


def _changes_model(method: Method, model: ModelOptions, path: str) -> bool:
    """Whether the method's model would be another one with the key's default; a key that has its default says nothing wrong."""
    plain = _with_default(model, path)
    return plain == model or method.adapt(plain) != method.adapt(model)


def _with_default(options: O, path: str) -> O:
    """The options with the default at a dotted path."""
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
    """What would use the key: this method with another form of rounds, or other methods, as a sentence's end."""
    part, _, path = key.partition(".")
    if part == "method_options":
        return f"only the method {path.partition('.')[0]} uses it"
    users = [_user(name, path, options, model=part == "model") for name in (options.method, *METHODS)]
    named = list(dict.fromkeys(user for user in users if user))
    more = f" and {len(named) - _MOST_NAMED} more" if len(named) > _MOST_NAMED else ""
    return f"used by {', '.join(named[:_MOST_NAMED])}{more}" if named else "nothing uses it"


def _user(name: str, path: str, options: RunOptions, *, model: bool) -> str | None:
    """The method of this name, with the form of rounds in which it uses a path; None where there is none."""
    method = METHODS[name]
    if model:
        return name if _changes_model(method, options.model, path) else None
    if path in _used_training(method, options.training, options.model):
        return name
    for form in _FORMS:
        for value in _choices(form):
            if path in _used_training(method, _with(options.training, form, value), options.model):
                return f"{name} with training.{form}={value}"
    return None


def _choices(form: str) -> tuple[str, ...]:
    """The words that a form of rounds can have."""
    kind: Any = TrainingOptions
    for name in form.split("."):
        kind = kind.model_fields[name].annotation
    return get_args(kind) if get_origin(kind) else ()


def _in_words(options: RunOptions) -> str:
    """A run's method, and the form of its rounds where it has several."""
    read = _used_training(build_method(options), options.training, options.model)
    forms = [f"training.phases={options.training.phases}"] if "phases" in read else []
    forms += (
        [f"training.distillation.direction={options.training.distillation.direction}"]
        if "distillation.direction" in read
        else []
    )
    return ", ".join([f"method={options.method}", *forms])
