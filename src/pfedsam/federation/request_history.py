"""What a coordinator has asked of a site in one study: each round is trained once, and nothing is asked more often than approved.

A coordinator that was restarted repeats its last request. It gets the reply that it got before, byte for byte, and only that: the same
round with other shared parameters is refused. The history lies in the study's folder at the site; a request is entered once it has
been found sound and before any of it is computed.

A request is about a *state* of the shared parameters: state r is what round r trains, and validation after round r scores state r + 1.
States never go back, and once a state has been trained, finalized or tested with, the other requests about it must bring the same.
"""

import hashlib
from pathlib import Path
from typing import Any, Final

import torch
from pydantic import Field, ValidationError

from pfedsam.core import sealed, tensors
from pfedsam.core.errors import RunError, StoreError
from pfedsam.core.options import Options
from pfedsam.federation.manifest import StudyManifest, Task
from pfedsam.federation.messages import Reply, Request, reply_from_wire, reply_to_wire

_HISTORY: Final = "requests.json"
_REPLIES: Final = "replies"
_REMEDY: Final = (
    "Without it nobody can tell what was asked of this site in the study before: restore the file, or leave the study "
    "(`pfedsam site approve --withdraw`)."
)


class NotDueError(RunError):
    """The request is not due: of a round that the manifest does not have, asked before, or of a state that was left behind."""


class _Entries(Options):
    """Digest of the shared parameters by round, by task."""

    asked: dict[Task, dict[int, str]] = Field(default_factory=dict)


class RequestHistory:
    """The requests of one study that a site has accepted, and its last reply to each kind of them."""

    def __init__(self, folder: Path) -> None:
        """The history in the study's folder at the site.

        Raises:
            StoreError: its file is damaged, or missing although requests were answered.
        """
        self._folder, self._path = folder, folder / _HISTORY
        self._asked = self._load()

    @property
    def rounds_trained(self) -> int:
        """How many rounds the site has taken part in."""
        return len(self._asked.get("train", {}))

    def check(self, request: Request, manifest: StudyManifest) -> None:
        """Let a request pass that is due, or that repeats the last one of its task.

        Raises:
            NotDueError: it is neither; the message says why.
        """
        self._check_schedule(request, manifest)
        before = self._asked.get(request.task, {})
        if request.round in before:
            if before[request.round] != shared_digest(request):
                raise NotDueError(f"{_said(request)} was asked before, with other shared parameters.")
            if request.round != max(before):
                raise NotDueError(f"{_said(request)} is one that this site has left behind.")
            return
        state = state_of(request, manifest)
        newest = max((self._state(task, r, manifest) for task, found in self._asked.items() for r in found), default=0)
        if state < newest:
            raise NotDueError(f"{_said(request)} comes after a request about a later state of the shared parameters.")
        fixed = self._fixed(state, manifest)
        if fixed is not None and fixed != shared_digest(request):
            raise NotDueError(f"{_said(request)} brings other shared parameters than that state has.")

    def enter(self, request: Request) -> None:
        """Keep that a request was accepted.

        Raises:
            StoreError: it could not be written; then nothing may be computed.
        """
        found = self._asked.setdefault(request.task, {})
        if found.get(request.round) != shared_digest(request):
            found[request.round] = shared_digest(request)
            sealed.write_json(
                self._path, {"asked": {t: {str(r): d for r, d in f.items()} for t, f in self._asked.items()}}
            )

    def reply(self, request: Request) -> Reply | None:
        """The reply that this very request got before; None where it got none yet.

        Raises:
            StoreError: the stored reply is damaged.
        """
        path = self._folder / _REPLIES / f"{request.task}.safetensors"
        if not path.exists():
            return None
        parts, metadata = tensors.load(path)
        if metadata != _identity(request):
            return None
        return reply_from_wire({name: value.numpy().tobytes() for name, value in parts.items()})

    def keep(self, request: Request, reply: Reply) -> None:
        """Keep the reply to a request, in the place of the one to the request before it.

        Raises:
            StoreError: it could not be written.
        """
        wire = reply_to_wire(reply)
        (self._folder / _REPLIES).mkdir(exist_ok=True, mode=0o700)
        parts = {
            name: torch.frombuffer(bytearray(value), dtype=torch.uint8) if value else torch.empty(0, dtype=torch.uint8)
            for name, value in wire.items()
        }
        tensors.save(self._folder / _REPLIES / f"{request.task}.safetensors", parts, _identity(request))

    def _check_schedule(self, request: Request, manifest: StudyManifest) -> None:
        rounds = manifest.rounds
        if request.task == "train":
            due = request.round < rounds
        elif request.task == "validate":
            every = _validate_every(manifest)
            due = every > 0 and (
                request.round in (rounds - 1, rounds) or (request.round < rounds and (request.round + 1) % every == 0)
            )
        else:
            due = request.round == rounds
        if not due:
            raise NotDueError(f"{_said(request)} is not one that the approved manifest has; it has {rounds} round(s).")

    def _fixed(self, state: int, manifest: StudyManifest) -> str | None:
        """The digest of a state that something was computed from which cannot be repeated; None where there is none yet."""
        for task, found in self._asked.items():
            for round_, digest in found.items():
                # A coordinator that dies after validation and before its commit may average anew, from other replies.
                repeatable = task == "validate" and round_ < manifest.rounds
                if not repeatable and self._state(task, round_, manifest) == state:
                    return digest
        return None

    def _state(self, task: Task, round_: int, manifest: StudyManifest) -> int:
        return state_of(Request(task, "", "", round_), manifest)

    def _load(self) -> dict[Task, dict[int, str]]:
        if not self._path.exists() and not (self._folder / _REPLIES).exists():
            return {}  # before the first request; replies are kept only to requests that were entered
        content = sealed.read_json(self._path, _REMEDY)
        try:
            return dict(_Entries.model_validate(content).asked)
        except ValidationError as error:
            raise StoreError(f"{_HISTORY} is damaged: it is no history of requests. {_REMEDY}") from error


def state_of(request: Request, manifest: StudyManifest) -> int:
    """The state of the shared parameters that a request is about: how many rounds were averaged into it."""
    if request.task == "validate":
        return min(request.round + 1, manifest.rounds)
    return request.round


def shared_digest(request: Request) -> str:
    """SHA-256 (hex) of the shared parameters in a request, as they were sent."""
    return hashlib.sha256(request.shared).hexdigest()


def _validate_every(manifest: StudyManifest) -> int:
    evaluation: Any = manifest.configuration.get("evaluation")
    every = evaluation.get("validate_every", 1) if isinstance(evaluation, dict) else 1
    return every if type(every) is int else 1


def _identity(request: Request) -> dict[str, str]:
    return {"round": str(request.round), "manifest": request.digest, "shared": shared_digest(request)}


def _said(request: Request) -> str:
    return (
        f"{request.task} of round {request.round + 1}"
        if request.task == "train"
        else f"{request.task} after round {request.round}"
    )
