"""The approvals of a site's operator, and the gate that checks every outgoing message against them.

All of this is stored and decided in the site's own folder: `approved/` contains the manifests that the operator has read and accepted,
`pending/` those that a coordinator offered and nobody has approved yet, and `studies/<id>/` the site's state in a study.
"""

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from torch import Tensor

from pfedsam.core import tensors
from pfedsam.core.errors import PfedsamError, RunError, StoreError, UpdateError
from pfedsam.core.tensors import NamedTensors
from pfedsam.federation.bounds import change_norm
from pfedsam.federation.data_summary import to_site_summary
from pfedsam.federation.ledger import Ledger
from pfedsam.federation.manifest import (
    WITHOUT_PARAMETERS,
    StudyManifest,
    parse_manifest,
    read_manifest,
    write_manifest,
)
from pfedsam.federation.messages import STUDY_ID, Reply, Request, reply_from_wire, reply_to_wire
from pfedsam.federation.request_history import NotDueError, RequestHistory, state_of
from pfedsam.federation.small_numbers import check_small_numbers
from pfedsam.federation.tasks import in_words
from pfedsam.federation.update import TensorSpec, check, decode

MAX_PENDING: Final = 20
"""The largest number of pending manifests that are stored, so that a coordinator cannot fill a site's disk."""
MISSED_ROUNDS: Final = 8
"""The change of this many rounds is allowed at once when a site joins late or returns. `max_change` is the largest change that AdamW can
make; a mean over sites changes by a tenth of it or less in a round, so that this is enough for about a hundred missed rounds."""
_RECEIVED: Final = "received.safetensors"
_FINAL: Final = "final.safetensors"
_HOW_TO_APPROVE: Final = (
    "the requested study is not approved at this site. Read its manifest and, if you agree, approve it with "
    "`pfedsam site approve`."
)


class RefusedError(RunError):
    """The site refuses a request; `word` is the refusal code (a key of `messages.REFUSALS`) that is sent to the coordinator."""

    def __init__(self, word: str, message: str) -> None:
        super().__init__(word, message)  # all arguments, so that a worker process can send it
        self.word = word

    def __str__(self) -> str:
        return str(self.args[1])


class SitePolicy:
    """The approvals in a site's folder, and the checks of incoming requests."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def study_folder(self, study: str) -> Path:
        """The folder of a study at the site; it is made if it does not exist."""
        path = self.folder / "studies" / study
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        return path

    def approve(self, manifest: StudyManifest) -> None:
        """Approve that the site takes part in the study that this manifest describes."""
        self._write("approved", manifest)
        (self.folder / "pending" / f"{manifest.study}.json").unlink(missing_ok=True)

    def withdraw(self, study: str) -> bool:
        """Withdraw an approval; return whether there was one. The site's state in the study stays in its folder."""
        path = self.folder / "approved" / f"{study}.json"
        if not path.exists():
            return False
        path.rename(path.with_suffix(".withdrawn"))
        return True

    def approved(self, study: str) -> StudyManifest | None:
        """The approved manifest of a study, or None; other files in the folder `approved/` are not read."""
        path = self.folder / "approved" / f"{study}.json"
        return read_manifest(path) if STUDY_ID.fullmatch(study) and path.exists() else None

    def manifests(self, kind: str = "approved") -> list[StudyManifest]:
        """The manifests that are `approved` or `pending`."""
        return [read_manifest(path) for path in sorted((self.folder / kind).glob("*.json"))]

    def joined(self) -> dict[str, StudyManifest]:
        """The manifests by study that the operator has approved, also if the approval is withdrawn now; they do not admit requests."""
        folder = self.folder / "approved"
        withdrawn, approved = sorted(folder.glob("*.withdrawn")), sorted(folder.glob("*.json"))
        return {manifest.study: manifest for manifest in map(read_manifest, [*withdrawn, *approved])}

    def rounds(self, study: str) -> int | None:
        """The number of rounds of a study, for messages; None if the study is not approved or its manifest cannot be read."""
        with suppress(PfedsamError):
            manifest = self.approved(study)
            return manifest.rounds if manifest else None
        return None

    def admit(self, request: Request) -> StudyManifest:
        """The approved manifest of a request's study.

        Raises:
            RefusedError: the study is not approved, or the request refers to another manifest than the approved one.
        """
        manifest = self.approved(request.study)
        if manifest is None:
            withdrawn = self.folder / "approved" / f"{request.study}.withdrawn"
            left = bool(STUDY_ID.fullmatch(request.study)) and withdrawn.exists()
            self._keep_offer(request)
            raise RefusedError("left" if left else "not-approved", _HOW_TO_APPROVE)
        if request.digest != manifest.digest:
            raise RefusedError(_what_differs(manifest, request), self._differences(manifest, request))
        return manifest

    def accept_broadcast(self, manifest: StudyManifest, request: Request, initial: NamedTensors) -> dict[str, Tensor]:
        """The shared parameters of a request, after all checks.

        Args:
            manifest: the study's manifest.
            request: the request that brings them.
            initial: the study's initial shared parameters, built by the site itself.

        Raises:
            RefusedError: the request is not due, names, shapes, types or values are not as agreed, or the values changed more than training
                can change them.
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
        """The earlier reply to exactly this request, or None."""
        return self.history(request.study).reply(request)

    def keep_reply(self, request: Request, reply: Reply) -> None:
        """Store the reply to an accepted request, in case the coordinator repeats the request."""
        self.history(request.study).keep(request, reply)

    def history(self, study: str) -> RequestHistory:
        """The coordinator's earlier requests to this site in a study."""
        return RequestHistory(self.study_folder(study))

    def _check_jump(
        self,
        manifest: StudyManifest,
        request: Request,
        shared: NamedTensors,
        initial: NamedTensors,
        rounds_trained: int,
    ) -> None:
        """Check that the shared parameters changed no more than training can change them, since the site's last round and since the start.

        Between two rounds that the site trains they may change by `max_change` (L2 norm); after missed rounds by that times the number of
        missed rounds, but at most `MISSED_ROUNDS` times. From the initial values they may differ by `max_change` times the number of rounds
        that the site has taken part in plus `MISSED_ROUNDS`.

        Raises:
            RefusedError: they changed more.
        """
        before, trained = self._trained_last(manifest.study, initial)
        missed = max(1, state_of(request, manifest) - trained)
        for start, factor in (
            (before, min(missed, MISSED_ROUNDS)),
            (initial, max(rounds_trained, trained) + MISSED_ROUNDS),
        ):
            moved, allowed = change_norm(start, shared), manifest.max_change * factor
            if not moved <= allowed:
                raise RefusedError(
                    "bad-broadcast",
                    f"the shared parameters received for {in_words(request.task, request.round, manifest.rounds)} differ by {moved:.3g} "
                    f"from those that this site {'trained last' if start is before else 'began with'}; training can change them by at most "
                    f"{allowed:.3g}. This may be an attempt to reconstruct training data from gradients: ask the coordinator "
                    "before you continue.",
                )

    def final(self, study: str) -> NamedTensors:
        """The final shared parameters of a study, with which the site was tested; empty if the method shares none."""
        return self._stored(study, _FINAL)[0]

    def received(self, study: str) -> NamedTensors:
        """The shared parameters that the site received for its last training round."""
        return self._stored(study, _RECEIVED)[0]

    def _trained_last(self, study: str, initial: NamedTensors) -> tuple[NamedTensors, int]:
        """The shared parameters that the site trained last, and their round; before the first round the initial ones and 0.

        Raises:
            StoreError: the site has trained, and its copy of these parameters is missing or damaged.
        """
        values, round_ = self._stored(study, _RECEIVED)
        if not values and (self.study_folder(study) / "state.json").exists():
            raise StoreError(
                f"{_RECEIVED} is missing although this site has trained in the study: without it the change of the shared parameters "
                "cannot be checked. Restore the file from a backup; without a backup, leave the study, or remove the folder "
                f"{study!r} to start again."
            )
        return values or initial, round_

    def _stored(self, study: str, file: str) -> tuple[NamedTensors, int]:
        """Shared parameters that were stored for a study, and the round of the request that brought them; none and 0 without the file."""
        path = self.study_folder(study) / file
        if not path.exists():
            return {}, 0
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
            return  # what was offered is not a manifest

    def _differences(self, manifest: StudyManifest, request: Request) -> str:
        what = "its digest"
        if request.manifest:
            offered = parse_manifest(request.manifest)
            what = ", ".join(manifest.differences(offered)[:8]) or what
        return f"the coordinator's study differs from the one that was approved at this site, in: {what}."


class Gate:
    """The only way out of a site: it withholds what the approved manifest does not list, and enters every message in the ledger."""

    def __init__(self, folder: Path, site: str) -> None:
        """Make the gate of a site.

        Args:
            folder: the site's folder.
            site: the site's name.
        """
        self.site, self.policy, self.ledger = site, SitePolicy(folder), Ledger(folder / "ledger.jsonl")

    def release(self, wire: Mapping[str, object]) -> dict[str, bytes]:
        """The message that may leave: the given one, or a refusal code instead. The ledger has an entry for it before this returns.

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
        """Return the reply if the manifest allows every part of it.

        Raises:
            UpdateError: the manifest does not allow a part of the reply.
        """
        if reply.refused:
            _check_refusal(reply)
            return reply
        if manifest is None:
            raise UpdateError("the study is not approved at this site.")
        _check_metrics(reply, manifest, self.site)
        expected = reply.task == "train" and bool(manifest.tensors)
        if bool(reply.update) != expected:
            raise UpdateError(f"a reply to {reply.task} must {'' if expected else 'not '}contain an update.")
        if reply.update:
            self._check_update(reply, manifest)
        return reply

    def _check_update(self, reply: Reply, manifest: StudyManifest) -> None:
        spec = manifest.spec
        received = self.policy.received(manifest.study)
        if set(received) != set(spec.tensors):
            raise UpdateError("the site has no stored shared parameters from which this update was trained.")
        update = decode(reply.update, spec, received)
        check(update, spec, round=reply.round, registered={self.site: update.cases})
        if update.cases < manifest.min_cases:
            raise UpdateError(f"the update's weight is below the {manifest.min_cases} cases that the study allows.")
        moved = change_norm(received, update.tensors)
        if not moved <= manifest.max_change:
            raise UpdateError(
                f"the update changes the shared parameters by {moved:.3g}; the manifest allows {manifest.max_change:.3g}."
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
        content = out if original is None else _bytes_in(original)
        carried = manifest if reply.update else None
        self.ledger.append(
            study=reply.study,
            task=reply.task,
            round=reply.round,
            sent=sent,
            sha256=message_hash(content),
            total_bytes=sum(len(value) for value in content.values()),
            by_component=carried.component_bytes() if carried else {},
            names=sorted(carried.tensors) if carried else (),
            scalar_metrics=sorted(reply.scalar_metrics),
            note=note,
        )


def _bytes_in(wire: Mapping[str, object]) -> dict[str, bytes]:
    """The parts of a message that are bytes; a message that is withheld may hold anything."""
    return {name: value for name, value in wire.items() if isinstance(value, bytes)}


def _check_refusal(reply: Reply) -> None:
    """Check that a refusal contains only its code.

    Raises:
        UpdateError: it does.
    """
    if reply.update or reply.scalar_metrics:
        raise UpdateError("a refusal must contain nothing but its code.")


def _check_metrics(reply: Reply, manifest: StudyManifest, site: str) -> None:
    """Check that the manifest lists every scalar metric of a reply, that none is based on too few cases, and that a data summary is sound.

    Raises:
        UpdateError: one is not allowed.
    """
    listed = manifest.scalar_metrics.get(reply.task, ())
    extra = set(reply.scalar_metrics) - set(listed)
    if extra:
        raise UpdateError(
            f"the reply contains {len(extra)} scalar metric(s) that the manifest does not list for {reply.task}."
        )
    check_small_numbers(reply.scalar_metrics, manifest.min_cases)
    if reply.task == "summarize":
        to_site_summary(reply.scalar_metrics, listed, site=site, min_cases=manifest.min_cases)


def read_broadcast(manifest: StudyManifest, request: Request) -> dict[str, Tensor]:
    """The shared parameters of a request, with the agreed names, shapes, types and finite values; empty if study or task need none.

    Raises:
        RefusedError: they do not have the agreed form.
    """
    spec = manifest.spec
    if not spec.tensors or request.task in WITHOUT_PARAMETERS:
        return {}
    try:
        # The size of the tensors without a codec, plus room for names and shapes.
        largest = sum(tensor.bytes for tensor in spec.tensors.values()) + 1024 * (len(spec.tensors) + 1)
        shared, _ = tensors.from_bytes(request.shared, max_bytes=largest)
    except StoreError as error:
        raise RefusedError("bad-broadcast", f"the shared parameters cannot be read: {error}") from error
    problem = _form_problem(shared, manifest)
    if problem:
        raise RefusedError("bad-broadcast", problem)
    return dict(shared)


def message_hash(wire: Mapping[str, bytes]) -> str:
    """SHA-256 (hexadecimal) of the parts of a message, in the order of their names."""
    return hashlib.sha256(b"".join(wire[name] for name in sorted(wire))).hexdigest()


def _form_problem(shared: NamedTensors, manifest: StudyManifest) -> str | None:
    """What is wrong with the form of received shared parameters; None if nothing is wrong."""
    spec = manifest.spec.tensors
    if set(shared) != set(spec):
        missing, extra = sorted(set(spec) - set(shared)), len(set(shared) - set(spec))
        return f"the coordinator sent {extra} tensor(s) that the study does not share, and did not send {missing[:3]}."
    for name, expected in spec.items():
        tensor = shared[name]
        if TensorSpec.of(tensor) != expected:
            return f"the coordinator sent {name} with another shape or type than {expected}."
        if not bool(tensor.isfinite().all()):
            return f"the coordinator sent {name} with values that are not finite."
    return None


def _what_differs(approved: StudyManifest, request: Request) -> str:
    """The refusal code for the difference between a request's manifest and the approved one.

    Raises:
        RefusedError: the request does not contain a manifest.
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
    """Task, study and round of a message that is withheld; placeholders if they cannot be read."""
    try:
        head = reply_from_wire({"head": wire.get("head"), "update": b""})
    except UpdateError:
        return "join", "", 0
    return head.task, head.study, head.round
