"""The ledger: a site's own account of every message that left it, or was held back.

JSON lines, each with the hash of the line before it, so that a line that was changed, put in or taken out shows (not where the last
ones are cut off). It is readable by its owner alone and never sent. Each line is on the disk before its message may leave.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, Final

from pfedsam.core.errors import StoreError
from pfedsam.core.lock import in_turn

START: Final = "0" * 64
"""What stands for the hash before the first line."""
_TAIL: Final = 4 * 2**20
"""More than one line can be long."""


class Ledger:
    """An append-only file; one site, all its studies."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(
        self,
        *,
        study: str,
        task: str,
        round: int,
        sent: bool,
        sha256: str,
        total_bytes: int,
        by_component: Mapping[str, int],
        names: Sequence[str],
        scalar_metrics: Sequence[str],
        note: str = "",
    ) -> None:
        """Write one line, durably; when it cannot be written, nothing may be sent.

        Args:
            study: identity of the study.
            task: what the message answers.
            round: of the study.
            sent: False for a message that was held back.
            sha256: over the message's bytes.
            total_bytes: of the whole message.
            by_component: bytes of the shared values by part of the model.
            names: of the shared tensors in it.
            scalar_metrics: names of the scalars in it.
            note: why it was held back, or the word of refusal that was sent.

        Raises:
            StoreError: the line could not be written, or the file is damaged.
        """
        body = {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "study": study,
            "task": task,
            "round": round,
            "sent": sent,
            "bytes": total_bytes,
            "by_component": dict(by_component),
            "tensors": list(names),
            "scalar_metrics": list(scalar_metrics),
            "note": note,
            "sha256": sha256,
        }
        try:
            with in_turn(self.path.with_name(f".{self.path.name}.lock")), self._open() as file:
                line = {**body, "before": _last_hash(file)}
                file.write(_dump({**line, "hash": _hash(line)}) + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise StoreError(
                f"the ledger cannot be written: {error.strerror}. Nothing is sent without it; make space."
            ) from error

    def _open(self) -> BinaryIO:
        return os.fdopen(os.open(self.path, os.O_CREAT | os.O_RDWR | os.O_APPEND, 0o600), "r+b")

    def read(self) -> list[dict[str, Any]]:
        """Every line, verified; none where there is no file.

        Raises:
            StoreError: naming the first line that does not follow from the one before it.
        """
        try:
            data = _whole(self.path.read_bytes()) if self.path.exists() else b""
        except OSError as error:
            raise StoreError(f"the ledger cannot be read: {error.strerror}.") from error
        lines, before = [], START
        for number, text in enumerate(data.splitlines(), start=1):
            line = _load(text, number)
            claimed = line.pop("hash", None)
            if line.get("before") != before or claimed != _hash(line):
                raise StoreError(f"line {number} of the ledger was changed, or a line before it removed or put in.")
            before = claimed
            lines.append(line)
        return lines


def _last_hash(file: BinaryIO) -> str:
    """The hash of the last whole line; half a line, of a process that was killed before it could send, is cut off."""
    start = max(0, file.seek(0, os.SEEK_END) - _TAIL)
    file.seek(start)
    data = file.read()
    whole = _whole(data)
    if len(whole) < len(data):
        file.truncate(start + len(whole))
    lines = whole.splitlines()
    return str(_load(lines[-1], 0).get("hash")) if lines else START


def _whole(data: bytes) -> bytes:
    return data[: data.rfind(b"\n") + 1]


def _load(text: bytes, number: int) -> dict[str, Any]:
    try:
        line = json.loads(text)
    except ValueError as error:
        raise StoreError(f"line {number} of the ledger is not whole.") from error
    if not isinstance(line, dict):
        raise StoreError(f"line {number} of the ledger is not a line of a ledger.")
    return line


def _dump(line: Mapping[str, Any]) -> bytes:
    return json.dumps(line, sort_keys=True, separators=(",", ":")).encode()


def _hash(line: Mapping[str, Any]) -> str:
    return hashlib.sha256(_dump(line)).hexdigest()
