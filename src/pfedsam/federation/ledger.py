"""The ledger: a site's own log of every message that left the site or was withheld.

The ledger consists of JSON lines. Each has a seal: an HMAC over the line and the seal of the line before, under a key that the site makes
and keeps (`ledger.key`). Without the key nobody can change, insert or delete a line without being noticed. The number of lines and the last
seal are also stored in a second file (`ledger.head.json`), so that deleted lines at the end are noticed; `pfedsam site start` prints both,
so that the operator can note them elsewhere. Only the owner can read these files, and they are never sent. Each line is written to disk
before its message may leave. If the ledger is damaged, nothing leaves until the operator has acknowledged the damage.

Lines of version 0.1 have a plain hash instead of a seal. They are accepted only at the beginning of the file.
"""

import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple

from pfedsam.core import atomic, sealed
from pfedsam.core.errors import StoreError
from pfedsam.core.lock import in_turn

START: Final = "0" * 64
"""The value used as the previous seal of the first line."""
_HASH, _SEAL = "hash", "seal"
_REMEDY: Final = (
    "Nothing is sent until you have found the cause and acknowledge it with `pfedsam site ledger FOLDER --acknowledge`: the present ledger "
    "is then put aside, and a new one begins with a line that records this."
)


class Head(NamedTuple):
    """The length of a ledger and its last seal."""

    lines: int
    seal: str
    """The seal of the last line."""


class Ledger:
    """The append-only ledger of one site for all its studies."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._key_path = path.with_name(f"{path.stem}.key")
        self._head_path = path.with_name(f"{path.stem}.head.json")

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
        """Write one line to disk; if this fails, nothing may be sent.

        Args:
            study: the study's id.
            task: the task to which the message replies.
            round: the study's round.
            sent: False for a message that was withheld.
            sha256: the hash of the message's bytes.
            total_bytes: the size of the whole message.
            by_component: component of the model -> bytes of its shared parameters.
            names: the names of the shared tensors in the message.
            scalar_metrics: the names of the scalar metrics in the message.
            note: why the message was withheld, or the refusal code that was sent.

        Raises:
            StoreError: the line could not be written, or the ledger is damaged.
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
        with self._turn():
            self._append(body, self._verified()[1])

    def read(self) -> list[dict[str, Any]]:
        """All lines, after verification; empty if the site has never replied to a message.

        Raises:
            StoreError: the ledger is damaged; the message says where, and what to do.
        """
        return self._verified()[0]

    def head(self) -> Head:
        """The number of lines and the seal of the last line, after verification.

        Raises:
            StoreError: the ledger is damaged.
        """
        return self._verified()[1]

    def acknowledge(self) -> Path | None:
        """Put a damaged ledger aside and begin a new one, whose first line records the damage; None if the ledger is not damaged.

        Raises:
            StoreError: a file could not be written.
        """
        with self._turn():
            try:
                self._verified()
                return None
            except StoreError as error:
                problem = str(error).removesuffix(_REMEDY).strip()
            data = self.path.read_bytes() if self.path.exists() else b""
            now = datetime.now(UTC)
            aside = self.path.with_name(f"{self.path.stem}.broken-{now:%Y%m%dT%H%M%S%f}{self.path.suffix}")
            atomic.write_bytes(aside, data)
            atomic.write_bytes(self.path, b"")
            self._begin(Head(0, START))
            line = {"study": "", "task": "acknowledged", "round": 0, "sent": False, "bytes": 0, "by_component": {}}
            line |= {"tensors": [], "scalar_metrics": [], "note": f"{problem} Put aside as {aside.name}."}
            line |= {"sha256": hashlib.sha256(data).hexdigest(), "time": now.isoformat(timespec="seconds")}
            self._append(line, Head(0, START))
        return aside

    @contextmanager
    def _turn(self) -> Iterator[None]:
        try:
            with in_turn(self.path.with_name(f".{self.path.name}.lock")):
                yield
        except OSError as error:
            raise StoreError(
                f"the ledger cannot be written: {error.strerror}. Nothing is sent without it; free some disk space."
            ) from error

    def _append(self, body: Mapping[str, Any], head: Head) -> None:
        """Append a line to the verified ones, and then update the head."""
        if not (self._key_path.exists() and self._head_path.exists()):
            self._begin(head)
        line = {**body, "before": head.seal}
        seal = _seal(line, self._key())
        descriptor = os.open(self.path, os.O_CREAT | os.O_RDWR, 0o600)
        with os.fdopen(descriptor, "r+b") as file:
            file.seek(_end_of_whole(file))
            file.truncate()  # an incomplete line of a process that was killed before it could send
            file.write(_dump({**line, _SEAL: seal}) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self._write_head(Head(head.lines + 1, seal), self._key())

    def _verified(self) -> tuple[list[dict[str, Any]], Head]:
        """The lines and the head, verified.

        Raises:
            StoreError: the ledger cannot be read, or is damaged.
        """
        # The head is read first: a running site writes a line, and then the head that counts it.
        expected = self._read_head()
        lines, seals = self._chain(self._data())
        if expected.lines > len(lines):
            raise StoreError(
                f"the ledger has {len(lines)} line(s), but had {expected.lines}: lines at its end were deleted. {_REMEDY}"
            )
        if expected.lines and seals[expected.lines - 1] != expected.seal:
            raise StoreError(
                f"line {expected.lines} of the ledger does not have the seal that its head contains. {_REMEDY}"
            )
        return lines, Head(len(lines), seals[-1] if seals else START)

    def _data(self) -> bytes:
        """The whole lines of the file; empty if there is no file.

        Raises:
            StoreError: the file cannot be read.
        """
        try:
            return _whole(self.path.read_bytes()) if self.path.exists() else b""
        except OSError as error:
            raise StoreError(f"the ledger cannot be read: {error.strerror}.") from error

    def _chain(self, data: bytes) -> tuple[list[dict[str, Any]], list[str]]:
        """The lines with their seals, which are verified; a ledger of version 0.1 begins with lines that have a plain hash instead.

        Raises:
            StoreError: a line was changed, inserted or deleted.
        """
        lines: list[dict[str, Any]] = []
        seals = [START]
        old = True
        for number, text in enumerate(data.splitlines(), start=1):
            line = _load(text, number)
            old = old and _HASH in line
            claimed = line.pop(_HASH if old else _SEAL, None)
            right = hashlib.sha256(_dump(line)).hexdigest() if old else _seal(line, self._key())
            follows = line.get("before") == seals[-1]
            if not (follows and isinstance(claimed, str) and hmac.compare_digest(claimed, right)):
                raise StoreError(
                    f"line {number} of the ledger was changed, or a line before it was deleted or inserted. {_REMEDY}"
                )
            seals.append(right)
            lines.append(line)
        return lines, seals[1:]

    def _read_head(self) -> Head:
        """The stored head; that of an empty ledger for a site that has not sent anything, and for a ledger of version 0.1.

        Raises:
            StoreError: the head is damaged, or missing although there was a ledger.
        """
        begun = self._key_path.exists()
        if not self._head_path.exists():
            if begun or self._lost_lines():
                raise StoreError(f"the ledger or its head {self._head_path.name!r} was removed. {_REMEDY}")
            return Head(0, START)
        content = sealed.read_json(self._head_path, _REMEDY)
        lines, seal, own = (content.get(name) for name in ("lines", "seal", "own"))
        if type(lines) is not int or lines < 0 or not isinstance(seal, str):
            raise StoreError(f"the ledger's head {self._head_path.name!r} was changed. {_REMEDY}")
        if not begun and self._lost_lines():
            raise StoreError(f"the ledger and its key {self._key_path.name!r} were removed. {_REMEDY}")
        # Without a key, no line has a seal (`_chain`), and the head is that of `_begin`, whose process was killed before the key was there.
        if begun and own != _seal({"lines": lines, "seal": seal}, self._key()):
            raise StoreError(f"the ledger's head {self._head_path.name!r} was changed. {_REMEDY}")
        return Head(lines, seal)

    def _lost_lines(self) -> bool:
        """Whether there are no lines, although the site has received the shared parameters of a study."""
        return any(self.path.parent.glob("studies/*/received.safetensors")) and not self._data()

    def _begin(self, head: Head) -> None:
        """Make a new key for a ledger with this head.

        The head is written first: a key without a head means that the head was removed, also if this process is killed between the two.
        """
        key = secrets.token_bytes(32)
        self._write_head(head, key)
        atomic.write_text(self._key_path, key.hex())

    def _write_head(self, head: Head, key: bytes) -> None:
        content = {"lines": head.lines, "seal": head.seal}
        sealed.write_json(self._head_path, {**content, "own": _seal(content, key)})

    def _key(self) -> bytes:
        """The site's key.

        Raises:
            StoreError: it is missing or damaged.
        """
        try:
            return bytes.fromhex(self._key_path.read_text("ascii"))
        except (OSError, ValueError) as error:
            raise StoreError(f"the ledger's key {self._key_path.name!r} is missing or damaged. {_REMEDY}") from error


def _seal(content: Mapping[str, Any], key: bytes) -> str:
    """The seal of a line or of the head."""
    return hmac.new(key, _dump(content), hashlib.sha256).hexdigest()


def _end_of_whole(file: BinaryIO) -> int:
    return len(_whole(file.read()))


def _whole(data: bytes) -> bytes:
    return data[: data.rfind(b"\n") + 1]


def _load(text: bytes, number: int) -> dict[str, Any]:
    try:
        line = json.loads(text)
    except ValueError as error:
        raise StoreError(f"line {number} of the ledger is damaged: it is not JSON. {_REMEDY}") from error
    if not isinstance(line, dict):
        raise StoreError(f"line {number} of the ledger is damaged: it is not a JSON object. {_REMEDY}")
    return line


def _dump(line: Mapping[str, Any]) -> bytes:
    return json.dumps(line, sort_keys=True, separators=(",", ":")).encode()
