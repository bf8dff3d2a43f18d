"""The requests of a coordinator to a site in one study, so that each round is trained once and none goes beyond the approved schedule.

A coordinator that was restarted repeats its last request. It gets the earlier reply again, byte for byte; a request for the same
round with other shared parameters is refused. The history is stored in the study's folder at the site. A request is entered after all
checks and before anything is computed for it.

A request refers to a *state* of the shared parameters: round r trains state r, and validation after round r scores state r + 1.
The state never decreases, and once a state was used for training, finalizing or testing, later requests for it must bring the same values.
A request for the summary of the data refers to no state. It always has round 0, so that every such request of a study is the same one and
gets the same reply, whatever has changed in the site's files since.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import torch
from pydantic import Field, ValidationError

from pfedsam.core import sealed, tensors
from pfedsam.core.errors import RunError, StoreError
from pfedsam.core.options import Options
from pfedsam.federation.manifest import WITHOUT_PARAMETERS, StudyManifest
from pfedsam.federation.messages import Reply, Request, reply_from_wire, reply_to_wire
from pfedsam.federation.tasks import Task

_HISTORY: Final = "requests.json"
_REPLIES: Final = "replies"
_REMEDY: Final = (
    "Without it the earlier requests of this study are unknown: restore the file from a backup, or leave the study "
    "(`pfedsam site approve --withdraw`)."
)


class NotDueError(RunError):
    """The request is not due: its round is not in the manifest's schedule, or it repeats or precedes what the site has done already."""


class _Entries(Options):
    """What was requested."""

    asked: dict[Task, dict[int, str]] = Field(default_factory=dict)
    """Task -> round -> digest of the shared parameters in the request."""
    ends: int | None = Field(default=None, ge=1)
    """The number of rounds after which the study ends, once a request has stated that this is before the manifest's last round."""


class RequestHistory:
    """The requests of one study that a site has accepted, and its last reply for each task."""

    def __init__(self, folder: Path) -> None:
        """Read the history from the study's folder at the site.

        Raises:
            StoreError: the file is damaged, or missing although the site has replied to requests.
        """
        self._folder, self._path = folder, folder / _HISTORY
        entries = self._load()
        self._asked, self._ends = dict(entries.asked), entries.ends

    @property
    def rounds_trained(self) -> int:
        """The number of rounds that the site has trained."""
        return len(self._asked.get("train", {}))

    def check(self, request: Request, manifest: StudyManifest) -> None:
        """Check that a request is due, or repeats the last request of its task.

        Raises:
            NotDueError: the request is neither; the message says why.
        """
        if request.task in WITHOUT_PARAMETERS:
            if request.round or request.shared:
                raise NotDueError(f"a request to {request.task} has round 0 and brings no shared parameters.")
            return
        self._check_schedule(request, manifest)
        before = self._asked.get(request.task, {})
        if request.round in before:
            if before[request.round] != shared_digest(request):
                raise NotDueError(f"{_said(request)} was requested before, with other shared parameters.")
            if request.round != max(before):
                raise NotDueError(f"{_said(request)} is earlier than this site's last request of that kind.")
            return
        state = state_of(request, manifest)
        newest = max((self._state(task, r, manifest) for task, r, _ in self._with_parameters()), default=0)
        if state < newest:
            raise NotDueError(
                f"{_said(request)} needs an earlier state of the shared parameters than a previous request."
            )
        fixed = self._fixed(state, manifest)
        if fixed is not None and fixed != shared_digest(request):
            raise NotDueError(
                f"{_said(request)} brings shared parameters that differ from those of an earlier request for the same state."
            )

    def enter(self, request: Request) -> None:
        """Store that a request was accepted.

        Raises:
            StoreError: the entry could not be written; then nothing may be computed for the request.
        """
        found = self._asked.setdefault(request.task, {})
        if found.get(request.round) != shared_digest(request):
            found[request.round] = shared_digest(request)
            if request.task not in WITHOUT_PARAMETERS:  # in other requests the end was not checked
                self._ends = self._ends or request.ends
            asked = {task: {str(r): d for r, d in rounds.items()} for task, rounds in self._asked.items()}
            sealed.write_json(self._path, {"asked": asked, "ends": self._ends})

    def reply(self, request: Request) -> Reply | None:
        """The earlier reply to exactly this request, or None.

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
        """Store the reply to a request; it replaces the stored reply of the same task.

        Raises:
            StoreError: the reply could not be written.
        """
        wire = reply_to_wire(reply)
        (self._folder / _REPLIES).mkdir(exist_ok=True, mode=0o700)
        parts = {
            name: torch.frombuffer(bytearray(value), dtype=torch.uint8) if value else torch.empty(0, dtype=torch.uint8)
            for name, value in wire.items()
        }
        tensors.save(self._folder / _REPLIES / f"{request.task}.safetensors", parts, _identity(request))

    def _check_end(self, request: Request, manifest: StudyManifest) -> int:
        """The number of rounds after which the study ends, according to the request.

        Raises:
            NotDueError: an earlier request gave another number, or the approved manifest does not allow it.
        """
        ends = manifest.rounds if request.ends is None else request.ends
        if self._ends is not None and ends != self._ends:
            raise NotDueError(
                f"{_said(request)} ends the study after {ends} round(s); an earlier request said {self._ends}."
            )
        if request.ends is not None and not (request.round <= ends and may_end_after(ends, manifest)):
            raise NotDueError(
                f"{_said(request)} ends the study after {ends} round(s), which the approved manifest with {manifest.rounds} round(s) "
                f"does not allow{_of_patience(manifest)}."
            )
        return ends

    def _check_schedule(self, request: Request, manifest: StudyManifest) -> None:
        rounds = self._check_end(request, manifest)
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
            raise NotDueError(
                f"{_said(request)} is not in the schedule of the approved manifest, which has {manifest.rounds} round(s)."
            )

    def _fixed(self, state: int, manifest: StudyManifest) -> str | None:
        """The digest of a state's shared parameters if they can no longer change, because training or test has used them; else None."""
        for task, round_, digest in self._with_parameters():
            # A coordinator that dies after validation and before its commit may average again, from other replies.
            repeatable = task == "validate" and round_ < (self._ends or manifest.rounds)
            if not repeatable and self._state(task, round_, manifest) == state:
                return digest
        return None

    def _with_parameters(self) -> Iterator[tuple[Task, int, str]]:
        """Task, round and digest of each accepted request that brought shared parameters."""
        for task, found in self._asked.items():
            if task not in WITHOUT_PARAMETERS:
                yield from ((task, round_, digest) for round_, digest in found.items())

    def _state(self, task: Task, round_: int, manifest: StudyManifest) -> int:
        return state_of(Request(task, "", "", round_, ends=self._ends), manifest)

    def _load(self) -> _Entries:
        if not self._path.exists() and not (self._folder / _REPLIES).exists():
            return _Entries()  # before the first request; replies are stored only after the request was entered
        content = sealed.read_json(self._path, _REMEDY)
        try:
            return _Entries.model_validate(content)
        except ValidationError as error:
            raise StoreError(f"{_HISTORY} is damaged: it is not a history of requests. {_REMEDY}") from error


def state_of(request: Request, manifest: StudyManifest) -> int:
    """The state of the shared parameters that a request refers to: the number of rounds aggregated so far."""
    if request.task == "validate":
        return min(request.round + 1, request.ends or manifest.rounds)
    return request.round


def may_end_after(ends: int, manifest: StudyManifest) -> bool:
    """Whether the approved configuration lets the study end after so many rounds, which are fewer than those of the manifest.

    With `training.patience`, a study ends so many rounds after no site has gained for so many rounds, and the first score at a site counts
    as a gain. Every end that `training.schedule.end_of_training` determines is therefore after more than twice as many rounds.
    """
    patience = _patience(manifest)
    return patience is not None and 2 * patience < ends < manifest.rounds


def _patience(manifest: StudyManifest) -> int | None:
    training: Any = manifest.configuration.get("training")
    patience = training.get("patience") if isinstance(training, dict) else None
    return patience if type(patience) is int else None


def _of_patience(manifest: StudyManifest) -> str:
    """The part of a message about the earliest end of a study whose configuration has a patience."""
    patience = _patience(manifest)
    return "" if patience is None else f"; with a patience of {patience} it has more than {2 * patience} round(s)"


def shared_digest(request: Request) -> str:
    """SHA-256 (hexadecimal) of the bytes of the shared parameters in a request."""
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
