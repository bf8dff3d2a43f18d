"""Request and reply: the messages between coordinator and sites, for every transport.

A reply can contain an update, numbers under agreed names, and one refusal code from a fixed list. It has no field for free
text, so that no name, path or message from a site's data can be sent in a reply.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, get_args

from pfedsam.core.errors import UpdateError
from pfedsam.federation.tasks import Task

REFUSALS: Final = {
    "not-approved": "its operator has not approved this study",
    "other-configuration": "its operator approved another configuration",
    "other-backbone": "its backbone has another hash",
    "other-tensors": "its model has other shared tensors",
    "not-listed": "the study that its operator approved does not list this task",
    "bad-request": "it could not read the request",
    "bad-broadcast": "the shared parameters did not have the agreed form, or had changed too much",
    "wrong-round": "the round does not follow the site's own state",
    "left": "its operator has withdrawn it from the study",
    "data": "there is a problem with its data",
    "storage": "it could not write to its disk, or its stored state is damaged",
    "memory": "it ran out of memory",
    "withheld": "its own gate did not release the reply",
    "failed": "an unexpected error occurred; see the site's log",
}
"""Why a site refused a request: the code that is sent -> the text that the coordinator shows."""

STUDY_ID: Final = re.compile(r"[0-9a-f]{16}")
"""The form of a study's id. A site writes the id into its ledger and uses it in paths, so that no other text may take its place."""
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_TASKS: Final = get_args(Task)
MAX_ROUND: Final = 1_000_000
_MAX_METRICS: Final = 100_000
_MAX_HEAD_BYTES: Final = 8 * 2**20
"""Enough for a head with `_MAX_METRICS` metrics that have the longest names."""
_MAX_NUMBER: Final = 1e300


@dataclass(frozen=True)
class Request:
    """The coordinator's request to a site."""

    task: Task
    study: str
    digest: str
    """The digest of the manifest, so that every round is checked against the approved study."""
    round: int
    manifest: bytes = b""
    """The whole manifest; only with the task `join`."""
    shared: bytes = b""
    """The shared parameters, as `core.tensors.to_bytes`; none with the tasks of `manifest.WITHOUT_PARAMETERS`."""
    ends: int | None = None
    """The number of rounds after which the study ends; None if that is the number in the manifest, or not known yet."""


@dataclass(frozen=True)
class Reply:
    """A site's reply."""

    task: Task
    study: str
    round: int
    scalar_metrics: Mapping[str, float | None] = field(default_factory=dict)
    update: bytes = b""
    """An encoded update; only with the task `train`."""
    refused: str | None = None
    """A key of `REFUSALS`."""


def request_to_wire(request: Request) -> dict[str, bytes]:
    """A request as named bytes."""
    head = {
        "task": request.task,
        "study": request.study,
        "digest": request.digest,
        "round": request.round,
        "ends": request.ends,
    }
    return {"head": _json(head), "manifest": request.manifest, "shared": request.shared}


def request_from_wire(wire: Mapping[str, Any]) -> Request:
    """The request in named bytes.

    Raises:
        UpdateError: the bytes do not have the agreed form.
    """
    head = _parse(wire, {"head", "manifest", "shared"}, {"task", "study", "digest", "round", "ends"})
    if not (_has_form(STUDY_ID, head["study"]) and _has_form(_DIGEST, head["digest"])):
        raise UpdateError("the study and the manifest's digest in a request must be 16 and 64 hexadecimal digits.")
    ends = head["ends"]
    if ends is not None and not (_is_round(ends) and ends > 0):
        raise UpdateError("the number of rounds in a request is not valid.")
    return Request(
        head["task"],
        head["study"],
        head["digest"],
        head["round"],
        bytes(wire["manifest"]),
        bytes(wire["shared"]),
        ends,
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
    """The reply in named bytes, all of which is checked.

    Raises:
        UpdateError: the bytes do not have the agreed form. The error message repeats none of their content.
    """
    head = _parse(wire, {"head", "update"}, {"task", "study", "round", "refused", "scalar_metrics"})
    metrics, refused = head["scalar_metrics"], head["refused"]
    if refused is not None and (not isinstance(refused, str) or refused not in REFUSALS):
        raise UpdateError("the refusal code in a reply is not on the list.")
    # The study is empty if the site's gate withheld a reply that it could not read.
    if head["study"] != "" and not _has_form(STUDY_ID, head["study"]):
        raise UpdateError("the study in a reply must be 16 hexadecimal digits.")
    if not _are_metrics(metrics):
        raise UpdateError("the scalar metrics in a reply must be finite numbers by name.")
    return Reply(head["task"], head["study"], head["round"], metrics, bytes(wire["update"]), refused)


def _parse(wire: Mapping[str, Any], keys: set[str], fields: set[str]) -> dict[str, Any]:
    if set(wire) != keys or not all(isinstance(value, bytes | bytearray) for value in wire.values()):
        raise UpdateError("a message does not have the agreed parts.")
    if len(wire["head"]) > _MAX_HEAD_BYTES:
        raise UpdateError(f"a message's head has more than {_MAX_HEAD_BYTES} bytes.")
    head = _head(wire["head"], fields)
    if head["task"] not in _TASKS or not _is_round(head["round"]):
        raise UpdateError("the task or the round of a message is not valid.")
    return head


def _head(data: bytes, fields: set[str]) -> dict[str, Any]:
    """The head of a message, with exactly these fields; their values are still to be checked.

    Raises:
        UpdateError: it is something else.
    """
    try:
        head = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UpdateError("a message's head is not JSON.") from error
    if not isinstance(head, dict) or set(head) != fields:
        raise UpdateError("a message's head does not have the agreed fields.")
    return head


def _has_form(form: re.Pattern[str], value: object) -> bool:
    return isinstance(value, str) and form.fullmatch(value) is not None


def _is_round(value: object) -> bool:
    return type(value) is int and 0 <= value <= MAX_ROUND


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, allow_nan=False).encode()


def _are_metrics(value: object) -> bool:
    """Whether a value is a table of at most `_MAX_METRICS` numbers by name."""
    return isinstance(value, dict) and len(value) <= _MAX_METRICS and all(map(_is_number, value.values()))


def _is_number(value: object) -> bool:
    """Whether a value is None or a number that fits a float; an integer of hundreds of digits does not."""
    return value is None or (type(value) in (int, float) and -_MAX_NUMBER <= value <= _MAX_NUMBER)  # type: ignore[operator]
