"""Request and reply: what coordinator and sites say to each other on every wire.

A reply has room for an update, for numbers under agreed names, and for one word of refusal from a closed list. There is no
field for text, so that no name, path or message from a site's data can travel in one.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, get_args

from pfedsam.core.errors import UpdateError
from pfedsam.federation.manifest import Task

REFUSALS: Final = {
    "not-approved": "its operator has not approved this study",
    "other-configuration": "its operator approved another configuration",
    "other-backbone": "its backbone has another hash",
    "other-tensors": "its model has other shared tensors",
    "bad-request": "it could not read the request",
    "bad-broadcast": "the shared parameters were not of the agreed form, or jumped too far",
    "wrong-round": "the round is not one that follows its own state",
    "left": "its operator has taken it out of the study",
    "data": "its data has a problem",
    "storage": "its disk refused a write or holds a damaged state",
    "memory": "it ran out of memory",
    "withheld": "its own filter refused to send the reply",
    "failed": "it failed",
}
"""Why a site did not do what it was asked; the word travels, the sentence is the coordinator's."""

_TASKS: Final = get_args(Task)
MAX_ROUND: Final = 1_000_000
_MAX_METRICS: Final = 100_000
_MAX_HEAD_BYTES: Final = 8 * 2**20
"""Of a head with so many metrics and the longest names."""
_MAX_NUMBER: Final = 1e300


def in_words(task: Task, round_: int, rounds: int | None) -> str:
    """A request of a study of so many rounds, where that is known, for people: they count from 1, messages and files from 0."""
    if task not in ("train", "validate"):
        return task
    return f"{task} at the end" if rounds is not None and round_ >= rounds else f"{task} of round {round_ + 1}"


@dataclass(frozen=True)
class Request:
    """What a coordinator asks of a site."""

    task: Task
    study: str
    digest: str
    """Of the manifest, so that every single round is checked against what was approved."""
    round: int
    manifest: bytes = b""
    """The whole manifest; with `join` only."""
    shared: bytes = b""
    """The shared parameters, as `core.tensors.to_bytes`."""


@dataclass(frozen=True)
class Reply:
    """What a site answers."""

    task: Task
    study: str
    round: int
    scalar_metrics: Mapping[str, float | None] = field(default_factory=dict)
    update: bytes = b""
    """An encoded update; with `train` only."""
    refused: str | None = None
    """A key of `REFUSALS`."""


def request_to_wire(request: Request) -> dict[str, bytes]:
    """A request as named bytes."""
    head = {"task": request.task, "study": request.study, "digest": request.digest, "round": request.round}
    return {"head": _json(head), "manifest": request.manifest, "shared": request.shared}


def request_from_wire(wire: Mapping[str, Any]) -> Request:
    """The request in named bytes.

    Raises:
        UpdateError: it does not have the agreed form.
    """
    head = _parse(wire, {"head", "manifest", "shared"}, {"task", "study", "digest", "round"})
    if not (isinstance(head["study"], str) and isinstance(head["digest"], str)):
        raise UpdateError("a request names its study and its manifest by text.")
    return Request(
        head["task"], head["study"], head["digest"], head["round"], bytes(wire["manifest"]), bytes(wire["shared"])
    )


def reply_to_wire(reply: Reply) -> dict[str, bytes]:
    """A reply as named bytes; equal replies give equal bytes."""
    head = {
        "task": reply.task,
        "study": reply.study,
        "round": reply.round,
        "refused": reply.refused,
        "scalar_metrics": dict(reply.scalar_metrics),
    }
    return {"head": _json(head), "update": reply.update}


def reply_from_wire(wire: Mapping[str, Any]) -> Reply:
    """The reply in named bytes; nothing in it is trusted.

    Raises:
        UpdateError: it does not have the agreed form; the message repeats nothing of what was sent.
    """
    head = _parse(wire, {"head", "update"}, {"task", "study", "round", "refused", "scalar_metrics"})
    metrics, refused = head["scalar_metrics"], head["refused"]
    if refused is not None and (not isinstance(refused, str) or refused not in REFUSALS):
        raise UpdateError("a reply refuses by a word that is not on the list.")
    if not isinstance(head["study"], str):
        raise UpdateError("a reply names its study by text.")
    if not isinstance(metrics, dict) or len(metrics) > _MAX_METRICS or not all(map(_is_number, metrics.values())):
        raise UpdateError("a reply holds other than finite numbers by name.")
    return Reply(head["task"], head["study"], head["round"], metrics, bytes(wire["update"]), refused)


def _parse(wire: Mapping[str, Any], keys: set[str], fields: set[str]) -> dict[str, Any]:
    if set(wire) != keys or not all(isinstance(value, bytes | bytearray) for value in wire.values()):
        raise UpdateError("a message does not have the agreed parts.")
    if len(wire["head"]) > _MAX_HEAD_BYTES:
        raise UpdateError(f"a message's head has more than {_MAX_HEAD_BYTES} bytes.")
    try:
        head = json.loads(wire["head"])
    except (ValueError, RecursionError) as error:
        raise UpdateError("a message's head is not JSON.") from error
    if not isinstance(head, dict) or set(head) != fields:
        raise UpdateError("a message's head does not have the agreed fields.")
    if head["task"] not in _TASKS or type(head["round"]) is not int or not 0 <= head["round"] <= MAX_ROUND:
        raise UpdateError("a message is of no known task, or of no round.")
    return head


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, allow_nan=False).encode()


def _is_number(value: object) -> bool:
    """Whether a value is undefined or a number that a float holds; an integer of hundreds of digits is none."""
    return value is None or (type(value) in (int, float) and -_MAX_NUMBER <= value <= _MAX_NUMBER)  # type: ignore[operator]
