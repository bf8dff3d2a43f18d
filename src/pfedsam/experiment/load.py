"""Reads and writes configuration files; all mistakes in a file are reported at once, each with the path of its key."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from pfedsam.core import atomic, sealed
from pfedsam.core.errors import OptionError
from pfedsam.core.yaml_files import parse_yaml, read_mapping
from pfedsam.experiment.effect import refuse_unused, remove, unused
from pfedsam.experiment.options import RunOptions
from pfedsam.experiment.renamed import RENAMED
from pfedsam.model.backbones.checkpoint import backbone_file

_SENTENCES: Final = {
    "too_short": "give at least {min_length} value(s)",
    "too_long": "give at most {max_length} value(s)",
    "tuple_type": "give a list in square brackets",
    "list_type": "give a list in square brackets",
    "model_type": "give keys with values",
    "path_type": "give a path as text",
}
"""Type of a mistake -> what to write instead; for other types pydantic's own message is clear."""


def load_options(path: Path | str, overrides: Sequence[str] = ()) -> RunOptions:
    """The options of one run in a YAML file.

    Args:
        path: path of the file; folders in it, and a backbone beside it, are relative to it.
        overrides: texts of the form `key.path=value` with the value in YAML; they take precedence over the file.

    Raises:
        OptionError: the file has mistakes; the message names every unknown key and every wrong value, or every key without effect
            under the chosen method.
    """
    path = Path(path)
    options = read_options(path, overrides)
    refuse_unused(options, source(path, overrides))
    return options


def read_options(path: Path, overrides: Sequence[str] = ()) -> RunOptions:
    """The options in a YAML file, like `load_options`, but keys without effect under the method in the file are accepted.

    Raises:
        OptionError: the file has mistakes; the message names every unknown key and every wrong value.
    """
    options = _options_of(read_mapping(path), path, overrides)
    # Not in the configuration of a run: a site that joined later is not named there by the sites before it.
    known, lost = options.data.sites, options.data.volume.spacing_unknown
    if unknown := [site for site in lost if site not in known]:
        raise OptionError(
            f"{source(path, overrides)}: data.volume.spacing_unknown names {', '.join(unknown)}; the sites are {', '.join(known)}"
        )
    return options


def _options_of(content: dict[str, Any], path: Path, overrides: Sequence[str]) -> RunOptions:
    """The options in the content of a file, as `read_options`.

    Raises:
        OptionError: the content has mistakes.
    """
    override(content, overrides)
    _resolve_paths(content, path.resolve().parent)
    name = source(path, overrides)
    options = validate(RunOptions, content, name)
    try:
        options.data.check_labels()
    except OptionError as error:
        raise OptionError(f"{name}: {error}") from error
    return options


def with_overrides(options: RunOptions, overrides: Sequence[str]) -> RunOptions:
    """Options with other values of some keys, given as in `load_options`.

    Raises:
        OptionError: a key is unknown, or a value is wrong.
    """
    if not overrides:
        return options
    content = options.model_dump(mode="json")
    override(content, overrides)
    return validate(RunOptions, content, "--set")


def source(path: Path, overrides: Sequence[str]) -> str:
    """The source of options, as text for error messages."""
    return f"{path.name} with --set" if overrides else path.name


T = TypeVar("T", bound=BaseModel)


def validate(kind: type[T], content: Mapping[str, Any], name: str) -> T:
    """Check the content of a file, and return it as an object of an options class.

    Args:
        kind: the options class.
        content: the keys and values of the file.
        name: name of the file, for messages.

    Raises:
        OptionError: the content has mistakes; the message names every unknown key and every wrong value.
    """
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        lines = [_explain(kind, dict(one)) for one in error.errors()]
        raise OptionError(
            f"{name} has {len(lines)} mistake(s):\n" + "\n".join(f"  {line}" for line in lines)
        ) from error


def dump_options(options: RunOptions) -> str:
    """The resolved configuration as YAML, without the keys that have no effect in this run; keys of `model` with their defaults stay."""
    content = options.model_dump(mode="json")
    for key in unused(RunOptions.model_validate(options.model_dump())):
        remove(content, key)
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def write_config(path: Path, options: RunOptions) -> None:
    """Write a run's configuration with its digest, for `read_config`.

    Raises:
        StoreError: the file could not be written.
    """
    atomic.write_text(path, sealed.seal_text(dump_options(options)))


def read_config(path: Path, overrides: Sequence[str] = ()) -> RunOptions:
    """The configuration that a run was started with, with overrides as in `read_options`.

    Raises:
        StoreError: the file is damaged or missing.
        OptionError: the file is not a configuration of this version.
    """
    sealed.check_text(
        path,
        "It is the configuration with which the run was started and which fits its parameters: restore it from a backup, or start again "
        "with the original YAML file and a new folder.",
    )
    content = read_mapping(path)
    _refuse_version_0_1(content, path)
    return _options_of(content, path, overrides)


def _refuse_version_0_1(content: Mapping[str, Any], path: Path) -> None:
    """Refuse the configuration that version 0.1 wrote into a run's folder; it held every key, also those that are renamed now.

    Raises:
        OptionError: it is one.
    """
    old = [f"{key} ({name.path} now)" for key, name in RENAMED.items() if holds(content, key)]
    if old:
        raise OptionError(
            f"The folder {path.parent.name!r} holds a run of version 0.1 of pFedSAM, whose models this version does not read. Use version "
            "0.1 for what was trained there, or start a new run in a new folder from your own YAML file. In that file, these options of "
            f"the old run have new names: {', '.join(old)}."
        )


def holds(content: Mapping[str, Any], key: str) -> bool:
    """Whether a configuration sets a key such as `training.rounds`, or a key below it."""
    *parents, last = key.split(".")
    for parent in parents:
        content = _mapping(content.get(parent))
    return last in content


class Key(NamedTuple):
    """A key of the configuration with its default and description, for `pfedsam options`."""

    path: str
    default: str
    """The default as YAML; empty if the key is required."""
    description: str


def all_keys(kind: type[BaseModel] = RunOptions, above: str = "") -> Iterator[Key]:
    """Every key of an options class, in the order of definition; a group of keys is itself listed as a key if it may be null."""
    for name, field in kind.model_fields.items():
        path, group = f"{above}{name}", _models(field.annotation)
        named = get_origin(field.annotation) is dict
        if not group or named or type(None) in get_args(field.annotation):
            yield Key(path, _default(field), (field.description or "") + _choices(field.annotation))
        for one in group:
            yield from all_keys(one, f"{path}.<name>." if named else f"{path}.")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return ""
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return "as below"
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("...\n").strip()


def _choices(annotation: Any) -> str:  # noqa: ANN401 - a type annotation
    return f" One of {', '.join(map(str, get_args(annotation)))}." if get_origin(annotation) is Literal else ""


def override(content: dict[str, Any], texts: Sequence[str]) -> None:
    """Put overrides of the form `key.path=value`, with the value in YAML, into `content`.

    Raises:
        OptionError: an override has another form, or a part of its path is a value without keys.
    """
    for text in texts:
        key, sign, value = text.partition("=")
        if not sign or not key:
            raise OptionError(f"--set {text!r} is not of the form key.path=value, such as training.rounds=20.")
        try:
            put(content, key, parse_yaml(value))
        except OptionError as error:
            raise OptionError(f"--set {text!r}: {error}") from error


def overridden(texts: Sequence[str]) -> dict[str, Any]:
    """The keys and values of overrides alone.

    Raises:
        OptionError: as for `override`.
    """
    content: dict[str, Any] = {}
    override(content, texts)
    return content


def put(content: dict[str, Any], key: str, value: object) -> None:
    """Put a value at a dotted path of keys.

    Raises:
        OptionError: a part of the path is a value without keys.
    """
    *parents, last = key.split(".")
    place = content
    for parent in parents:
        place = place.setdefault(parent, {})
        if not isinstance(place, dict):
            raise OptionError(f"{key!r} cannot be set: {parent!r} has a value and no further keys.")
    place[last] = value


def _resolve_paths(content: dict[str, Any], base: Path) -> None:
    """Make paths absolute, so that a written configuration can be read from any folder."""
    data, model, runtime = (_mapping(content.get(key)) for key in ("data", "model", "runtime"))
    sites, backbone = _mapping(data.get("sites")), model.get("backbone")
    folders = [(sites[name], "folder") if isinstance(sites[name], dict) else (sites, name) for name in sites]
    for holder, key in (*folders, (data, "split_folder"), (runtime, "cache_folder")):
        if isinstance(holder.get(key), str):
            holder[key] = str(base / holder[key])
    if isinstance(backbone, str) and (beside := backbone_file(backbone, base)):
        model["backbone"] = str(beside)


def _mapping(value: object) -> dict[Any, Any]:
    """The value if it is a mapping, else an empty one; a wrong type is reported later together with all other mistakes."""
    return value if isinstance(value, dict) else {}


def _explain(kind: type[BaseModel], error: Mapping[str, Any]) -> str:
    place = _place(error)
    path, given = ".".join(map(str, place)), error.get("input")
    sentence = _SENTENCES.get(error["type"])
    message = sentence.format(**error.get("ctx", {})) if sentence else str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        return f"{path}: {RENAMED.get(path) or _unknown_key(kind, place)}"
    if error["type"] == "missing":
        return f"{path}: is required"
    if place[-1:] == ("[key]",):
        above, name = ".".join(map(str, place[:-2])), place[-2]
        if error["type"] == "string_type":
            return f"{above}: the name {name!r} is read as a number or a date; put the name in quotes, as in '1'"
        return f"{above}: the name {name!r} is not allowed: {message}"
    if error["type"] == "list_type" and isinstance(given, int):
        return f"{path}: the ids must be a list, even if there is only one: write [{given}] (got {given!r})"
    if not path:  # the mistake concerns several keys together
        return message
    return f"{path}: {message} (got {given!r})"


def _place(error: Mapping[str, Any]) -> tuple[Any, ...]:
    """The path of keys to a mistake, without the tags that pydantic adds for the two forms of a site."""
    return tuple(part for part in error["loc"] if part not in ("[folder]", "[site]"))


def _unknown_key(kind: type[BaseModel], place: Sequence[Any]) -> str:
    """Which keys are allowed instead of the one at this place, and which of them is similar to it."""
    allowed = _allowed(kind, place[:-1])
    near = difflib.get_close_matches(str(place[-1]), allowed, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"unknown key; {hint}allowed: {', '.join(allowed)}"


def _allowed(model: type[BaseModel], path: Sequence[Any]) -> list[str]:
    """The keys that are allowed at a path below `model`."""
    for part in path:
        field = model.model_fields.get(str(part))
        if field is None:  # a name that the user gave, such as a site's
            continue
        found = _models(field.annotation)
        if not found:
            return []
        model = found[0]
    return list(model.model_fields)


def _models(annotation: Any) -> list[type[BaseModel]]:  # noqa: ANN401 - a type annotation
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for part in getattr(annotation, "__args__", ()) for m in _models(part)]
