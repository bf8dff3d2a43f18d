"""What a site's operator has approved, and the gate that holds every outgoing message to it.

Everything here lies in the site's own folder and is decided there: `approved/` holds the manifests that the operator has
read and accepted, `pending/` what a coordinator offered and nobody approved yet, `studies/<id>/` what the site keeps.
"""

import hashlib
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from torch import Tensor

from pfedsam.core import tensors
from pfedsam.core.errors import PfedsamError, RunError, StoreError, UpdateError
from pfedsam.core.tensors import NamedTensors
from pfedsam.federation.bounds import change_norm
from pfedsam.federation.ledger import Ledger
from pfedsam.federation.manifest import StudyManifest, parse_manifest, read_manifest, write_manifest
from pfedsam.federation.messages import Reply, Request, in_words, reply_from_wire, reply_to_wire
from pfedsam.federation.request_history import NotDueError, RequestHistory, state_of
from pfedsam.federation.small_numbers import check_small_numbers
from pfedsam.federation.update import check, decode

MAX_PENDING: Final = 20
"""Offers that are kept unread; a coordinator must not be able to fill a site's disk."""
MISSED_ROUNDS: Final = 8
"""Rounds whose movement is allowed for at once, when a site joins late or comes back. `max_change` is what AdamW can do at most; a mean
over sites moves by a tenth of it or less in a round, so that this makes room for about a hundred missed rounds."""
_RECEIVED: Final = "received.safetensors"
_FINAL: Final = "final.safetensors"
_STUDY: Final = re.compile(r"[0-9a-f]{16}")
"""A study's id, as in a manifest; what a coordinator says instead of one must not become part of a path."""
_HOW_TO_APPROVE: Final = (
    "the study that is asked for is not approved here. Read it and, if you agree, approve it: `pfedsam site approve`."
)


class RefusedError(RunError):
    """The site does not do what it was asked; `word` is the key of `messages.REFUSALS` that the coordinator is told."""

    def __init__(self, word: str, message: str) -> None:
        super().__init__(message)
        self.word = word


class SitePolicy:
    """The approvals in a site's folder, and the checks on what comes in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def study_folder(self, study: str) -> Path:
        """Where the site keeps a study; made if it is not there."""
        path = self.folder / "studies" / study
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        return path

    def approve(self, manifest: StudyManifest) -> None:
        """Let the site take part in a study, exactly as its manifest says."""
        self._write("approved", manifest)
        (self.folder / "pending" / f"{manifest.study}.json").unlink(missing_ok=True)

    def withdraw(self, study: str) -> bool:
        """Take the approval back; True where there was one. What the site has learnt stays in its folder."""
        path = self.folder / "approved" / f"{study}.json"
        if not path.exists():
            return False
        path.rename(path.with_suffix(".withdrawn"))
        return True

    def approved(self, study: str) -> StudyManifest | None:
        """The approved manifest of a study; whatever else lies among the approvals is none of its concern."""
        path = self.folder / "approved" / f"{study}.json"
        return read_manifest(path) if _STUDY.fullmatch(study) and path.exists() else None

    def manifests(self, kind: str = "approved") -> list[StudyManifest]:
        """The manifests that are `approved` or `pending`."""
        return [read_manifest(path) for path in sorted((self.folder / kind).glob("*.json"))]

    def rounds(self, study: str) -> int | None:
        """How many rounds a study has, as texts want to know; None where it is not approved or its manifest cannot be read."""
        with suppress(PfedsamError):
            manifest = self.approved(study)
            return manifest.rounds if manifest else None
        return None

    def admit(self, request: Request) -> StudyManifest:
        """The approved manifest that a request is made under.

        Raises:
            RefusedError: the study is not approved, or the request is not of the manifest that was.
        """
        manifest = self.approved(request.study)
        if manifest is None:
            withdrawn = self.folder / "approved" / f"{request.study}.withdrawn"
            left = bool(_STUDY.fullmatch(request.study)) and withdrawn.exists()
            self._keep_offer(request)
            raise RefusedError("left" if left else "not-approved", _HOW_TO_APPROVE)
        if request.digest != manifest.digest:
            raise RefusedError(_what_differs(manifest, request), self._differences(manifest, request))
        return manifest

    def accept_broadcast(self, manifest: StudyManifest, request: Request, initial: NamedTensors) -> dict[str, Tensor]:
        """The shared parameters of a request, once they are found to be what this round may bring.

        Args:
            manifest: of the study.
            request: the one that came in.
            initial: the shared parameters that the study starts from, as the site itself builds them.

        Raises:
            RefusedError: the request is not due, names, shapes, types or values are not as agreed, or moved further than training can
                move them.
        """
        history = self.history(manifest.study)
        try:
            history.check(request, manifest)
        except NotDueError as error:
            raise RefusedError("wrong-round", str(error)) from error
        shared = read_broadcast(manifest, request)
        if shared:
            self._check_jump(manifest, request, shared, initial, history.rounds_trained)
            kept = {"train": _RECEIVED, "test": _FINAL}.get(request.task)
            if kept:
                tensors.save(self.study_folder(manifest.study) / kept, shared, {"round": str(request.round)})
        history.enter(request)
        return shared

    def reply_before(self, request: Request) -> Reply | None:
        """The reply that this very request got before; None where it got none yet."""
        return self.history(request.study).reply(request)

    def keep_reply(self, request: Request, reply: Reply) -> None:
        """Keep the reply to an accepted request, for a coordinator that asks once more."""
        self.history(request.study).keep(request, reply)

    def history(self, study: str) -> RequestHistory:
        """What the coordinator has asked of this site in a study."""
        return RequestHistory(self.study_folder(study))

    def _check_jump(
        self,
        manifest: StudyManifest,
        request: Request,
        shared: NamedTensors,
        initial: NamedTensors,
        rounds_trained: int,
    ) -> None:
        """Hold shared parameters to what training can have done to those that the site itself trained last, and built first.

        Between two rounds that the site trains they may move by `max_change`, after rounds that it missed by at most `MISSED_ROUNDS`
        times that, however many the request says they were. From the initial ones they may be `max_change` away for each round that
        the site has taken part in, and `MISSED_ROUNDS` more.

        Raises:
            RefusedError: they moved further.
        """
        before, trained = self._received(self.study_folder(manifest.study) / _RECEIVED, initial)
        missed = max(1, state_of(request, manifest) - trained)
        for start, factor in (
            (before, min(missed, MISSED_ROUNDS)),
            (initial, max(rounds_trained, trained) + MISSED_ROUNDS),
        ):
            moved, allowed = change_norm(start, shared), manifest.max_change * factor
            if not moved <= allowed:
                raise RefusedError(
                    "bad-broadcast",
                    f"the shared parameters that came for {in_words(request.task, request.round, manifest.rounds)} are {moved:.3g} away "
                    f"from those that this site {'trained last' if start is before else 'began with'}; training moves them by at most "
                    f"{allowed:.3g}. Someone may be trying to read training data out of gradients: ask the coordinator before you go on.",
                )

    def final(self, study: str) -> NamedTensors:
        """The shared parameters that a study ended with at this site, which were tested; none where a method shares none."""
        path = self.study_folder(study) / _FINAL
        return tensors.load(path, unsealed=("round",))[0] if path.exists() else {}

    def received(self, study: str) -> NamedTensors:
        """The shared parameters that the site trained last."""
        path = self.study_folder(study) / _RECEIVED
        return tensors.load(path, unsealed=("round",))[0] if path.exists() else {}

    def _received(self, path: Path, initial: NamedTensors) -> tuple[NamedTensors, int]:
        if not path.exists():
            if path.with_name("state.json").exists():
                raise StoreError(
                    f"{path.name} is missing although this site has trained in the study: without it no jump of the shared parameters "
                    "could be seen. Bring it back from a copy; without one, leave the study, or remove the folder "
                    f"{path.parent.name!r} to begin anew."
                )
            return initial, 0
        values, metadata = tensors.load(path, unsealed=("round",))
        return values, int(metadata["round"])

    def _write(self, kind: str, manifest: StudyManifest) -> None:
        folder = self.folder / kind
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_manifest(folder / f"{manifest.study}.json", manifest)

    def _keep_offer(self, request: Request) -> None:
        if not request.manifest or len(list((self.folder / "pending").glob("*.json"))) >= MAX_PENDING:
            return
        try:
            self._write("pending", parse_manifest(request.manifest))
        except RunError:
            return  # an offer that is no manifest is not worth keeping

    def _differences(self, manifest: StudyManifest, request: Request) -> str:
        what = "its digest"
        if request.manifest:
            offered = parse_manifest(request.manifest)
            what = ", ".join(manifest.differences(offered)[:8]) or what
        return f"the coordinator's study is not the one that was approved here; different: {what}."


class Gate:
    """The one way out of a site: what the approved manifest does not list stays inside, and every message is in the ledger."""

    def __init__(self, folder: Path, site: str) -> None:
        """The gate of the site called `site`, whose folder is `folder`."""
        self.site, self.policy, self.ledger = site, SitePolicy(folder), Ledger(folder / "ledger.jsonl")

    def release(self, wire: Mapping[str, object]) -> dict[str, bytes]:
        """What may leave of a message: all of it, or a word of refusal instead; written to the ledger before.

        Raises:
            StoreError: the ledger cannot be written; then nothing may be sent.
        """
        try:
            reply = reply_from_wire(wire)
            manifest = None if reply.refused else self.policy.approved(reply.study)
            checked = self._check(reply, manifest)
        except PfedsamError as error:
            task, study, round_ = _described(wire)
            held = reply_to_wire(Reply(task, study, round_, refused="withheld"))  # type: ignore[arg-type]
            self._write(held, Reply(task, study, round_), None, sent=False, note=str(error), original=wire)  # type: ignore[arg-type]
            return held
        out = reply_to_wire(checked)
        self._write(out, checked, manifest, sent=True, note=checked.refused or "")
        return out

    def _check(self, reply: Reply, manifest: StudyManifest | None) -> Reply:
        """The reply, if the manifest allows each part of it.

        Raises:
            UpdateError: it does not.
        """
        if reply.refused:
            if reply.update or reply.scalar_metrics:
                raise UpdateError("a refusal carries something besides its word.")
            return reply
        if manifest is None:
            raise UpdateError("the study is not approved at this site.")
        extra = set(reply.scalar_metrics) - set(manifest.scalar_metrics.get(reply.task, ()))
        if extra:
            raise UpdateError(
                f"the reply holds {len(extra)} number(s) that the manifest does not list for {reply.task}."
            )
        check_small_numbers(reply.scalar_metrics, manifest.min_cases)
        if bool(reply.update) != (reply.task == "train" and bool(manifest.tensors)):
            raise UpdateError(f"a reply to {reply.task} must {'not ' if reply.update else ''}hold an update.")
        if reply.update:
            self._check_update(reply, manifest)
        return reply

    def _check_update(self, reply: Reply, manifest: StudyManifest) -> None:
        spec = manifest.spec
        received = self.policy.received(manifest.study)
        if set(received) != set(spec.tensors):
            raise UpdateError("an update without shared parameters that it was trained from.")
        update = decode(reply.update, spec, received)
        check(update, spec, round=reply.round, registered={self.site: update.cases})
        if update.cases < manifest.min_cases:
            raise UpdateError(f"the update's weight is below the {manifest.min_cases} cases that the study allows.")
        moved = change_norm(received, update.tensors)
        if not moved <= manifest.max_change:
            raise UpdateError(
                f"the update moved the shared parameters by {moved:.3g}; allowed are {manifest.max_change:.3g}."
            )

    def _write(
        self,
        out: Mapping[str, bytes],
        reply: Reply,
        manifest: StudyManifest | None,
        *,
        sent: bool,
        note: str,
        original: Mapping[str, object] | None = None,
    ) -> None:
        content = out if original is None else {k: v for k, v in original.items() if isinstance(v, bytes)}
        carries = manifest is not None and bool(reply.update)
        self.ledger.append(
            study=reply.study,
            task=reply.task,
            round=reply.round,
            sent=sent,
            sha256=message_hash(content),
            total_bytes=sum(len(value) for value in content.values()),
            by_component=manifest.component_bytes() if manifest and carries else {},
            names=sorted(manifest.tensors) if manifest and carries else (),
            scalar_metrics=sorted(reply.scalar_metrics),
            note=note,
        )


def read_broadcast(manifest: StudyManifest, request: Request) -> dict[str, Tensor]:
    """The shared parameters of a request, of the agreed names, shapes and types and all finite; none where the study shares nothing.

    Raises:
        RefusedError: they are not of the agreed form.
    """
    spec = manifest.spec
    if not spec.tensors:
        return {}
    try:
        # As the tensors are, whatever codec writes the updates, and what names and shapes take.
        largest = sum(tensor.bytes for tensor in spec.tensors.values()) + 1024 * (len(spec.tensors) + 1)
        shared, _ = tensors.from_bytes(request.shared, max_bytes=largest)
    except StoreError as error:
        raise RefusedError("bad-broadcast", f"the shared parameters cannot be read: {error}") from error
    problem = _form_problem(shared, manifest)
    if problem:
        raise RefusedError("bad-broadcast", problem)
    return dict(shared)


def message_hash(wire: Mapping[str, bytes]) -> str:
    """SHA-256 (hex) over the parts of a message, in the order of their names."""
    return hashlib.sha256(b"".join(wire[name] for name in sorted(wire))).hexdigest()


def _form_problem(shared: NamedTensors, manifest: StudyManifest) -> str | None:
    """What is wrong with the form of shared parameters that came in; None where nothing is."""
    spec = manifest.spec.tensors
    if set(shared) != set(spec):
        missing, extra = sorted(set(spec) - set(shared)), len(set(shared) - set(spec))
        return f"the coordinator sent {extra} tensor(s) that the study does not share and left out {missing[:3]}."
    for name, expected in spec.items():
        tensor = shared[name]
        if tuple(tensor.shape) != expected.shape or tensor.dtype != expected.dtype:
            return f"the coordinator sent {name} in another form than {expected}."
        if not bool(tensor.isfinite().all()):
            return f"the coordinator sent {name} with values that are not finite."
    return None


def _what_differs(approved: StudyManifest, request: Request) -> str:
    """The word for how the request's manifest differs from the approved one.

    Raises:
        RefusedError: it is not a manifest.
    """
    if not request.manifest:
        return "other-configuration"
    try:
        fields = {path.split(".")[0] for path in approved.differences(parse_manifest(request.manifest))}
    except RunError as error:
        raise RefusedError("bad-request", str(error)) from error
    if "backbone" in fields:
        return "other-backbone"
    return "other-tensors" if "tensors" in fields else "other-configuration"


def _described(wire: Mapping[str, object]) -> tuple[str, str, int]:
    """Task, study and round of a message that is held back; placeholders where even they cannot be read."""
    try:
        head = reply_from_wire({"head": wire.get("head"), "update": b""})
    except UpdateError:
        return "join", "", 0
    return head.task, head.study, head.round
