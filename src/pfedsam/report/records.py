"""The event log of a run, `records.jsonl` (JSON Lines). Each line is written to disk before the run continues.

These are the kinds of records, with their guaranteed fields:

    round       round, site, phase ("coupled", "global", "joint", "local"), loss, ...
    validation  round, site, model ("personal", "shared"), dice
    kept        round, site, from_round: the site uses the model of an earlier round (`evaluation.max_drop`)
    plain       round, site: the site uses the shared model, which is clearly better than its personal one (`evaluation.choose_model`)
    aggregate   round, accepted [site], rejected {site: reason}, up_bytes {site: bytes}
                [, scaled {site: factor}: updates that were scaled down because they were much larger than those of the other sites]
    rollback    round, to_round: the shared parameters were reset to those of an earlier round; only in studies over several machines
    absent      round, task, sites {site: reason}: the sites that did not do a task; only in studies over several machines
    experts     round, site, block, usage [share of the tokens of each expert]
    timing      seconds, and the name of what was timed

Rounds are counted from 0, but from 1 in the texts of reasons, which are shown to users. All records except `timing` depend only on the
configuration and the seed, so that two runs can be compared line by line. Therefore no other record may contain a
time, a date, a path or the name of a machine.
"""

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from math import inf
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeAlias

from pfedsam.core.atomic import write_bytes
from pfedsam.core.errors import RunError, StoreError
from pfedsam.core.files import is_at

Record: TypeAlias = dict[str, Any]
"""One line of the event log: `kind`, and the fields of this kind."""

_START: Final = "0" * 16
"""The link of the first line's predecessor."""
_SEALED: Final = re.compile(rb',"link":"([0-9a-f]{16})"}\Z')
"""The end of a line: its link, a digest of the line and of the link before it."""
_REMEDY: Final = (
    "Models and their scores do not depend on this file, but curves and sums of bytes in the report do. Restore the file from a copy; "
    "if there is none, run again in a new folder."
)
KINDS: Final = ("round", "validation", "kept", "plain", "aggregate", "rollback", "absent", "experts", "timing")


class RecordWriter:
    """Appends records to a file; an incomplete last line of a run that was killed is removed on opening."""

    def __init__(self, path: Path) -> None:
        """Open the file, which is created if it does not exist.

        Raises:
            StoreError: the file cannot be opened.
        """
        self.path = path
        try:
            self._file = path.open("ab")
            whole = _whole_lines(path.read_bytes())
            self._file.truncate(len(whole))
            self._count, self._link = _last(whole.splitlines())
        except OSError as error:
            raise StoreError(
                f"{path.name} cannot be opened: {error.strerror}. Make the run folder writable."
            ) from error

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one record, and return when it is written to disk.

        Raises:
            RunError: the kind is unknown, or JSON cannot express a value (NaN and infinity are not allowed).
            StoreError: the record could not be written, or the file was removed.
        """
        if not is_at(self._file, self.path):
            raise StoreError(
                f"{self.path.name} was removed or replaced while the run was working, alone or with the folder {self.path.parent.name!r}. "
                "Restore the folder from a copy and resume the run; if there is no copy, run again in a new folder."
            )
        line = self._line(record)
        try:
            self._file.write(line)
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            with contextlib.suppress(OSError):  # it tries again to write what is in its buffer
                self._file.close()
            raise StoreError(
                f"{self.path.name} cannot be written: {error.strerror}. Make space and resume the run."
            ) from error

    @property
    def mark(self) -> str:
        """The number of records and a digest of their content, for `check_mark`."""
        return f"{self._count}:{self._link}"

    def _line(self, record: Mapping[str, Any]) -> bytes:
        """The next line of the file, which continues the chain of digests.

        Raises:
            RunError: the record is not valid.
        """
        kind = record.get("kind")
        if kind not in KINDS:
            raise RunError(f"a record of kind {kind!r} is not known; the kinds are {', '.join(KINDS)}.")
        try:
            text = json.dumps(record, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        except (TypeError, ValueError) as error:
            raise RunError(f"the {kind} record of site {record.get('site')!r} is not JSON: {error}.") from error
        plain = text.encode("utf-8")
        self._count, self._link = self._count + 1, _next_link(self._link, plain)
        return _sealed_line(plain, self._link)

    def truncate_after(self, round_: int) -> None:
        """Remove all records of rounds later than this one, for a run that is resumed after it.

        The file is replaced in one step, so that an interruption leaves either the old records or the new ones.

        Raises:
            StoreError: the file could not be replaced.
        """
        # Records without a round are kept.
        kept = [record for _, record in _parsed(self.path) if record.get("round", -inf) <= round_]
        self._file.close()
        self._count, self._link = 0, _START
        write_bytes(self.path, b"".join(map(self._line, kept)))
        self._file = self.path.open("ab")

    def close(self) -> None:
        """Close the file; all records have been written already."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def last_validation(records: Iterable[Record]) -> int | None:
    """The last round after which sites were validated; None if there was no validation."""
    return max((row["round"] for row in records if row["kind"] == "validation"), default=None)


def validations_in(records: Iterable[Record]) -> dict[int, dict[str, float]]:
    """Dice of each site by the round after which it was validated, of the better one of its models."""
    found: dict[int, dict[str, float]] = {}
    for row in records:
        if row["kind"] == "validation" and row["dice"] is not None:
            scores = found.setdefault(row["round"], {})
            scores[row["site"]] = max(row["dice"], scores.get(row["site"], 0.0))
    return found


def sites_with_the_shared_model(records: Sequence[Record]) -> frozenset[str]:
    """The sites that used the shared model after their last validation, because it was clearly better there than the personal one."""
    last = {row["site"]: row["round"] for row in records if row["kind"] == "validation"}
    return frozenset(row["site"] for row in records if row["kind"] == "plain" and row["round"] == last.get(row["site"]))


def read_records(path: Path) -> list[Record]:
    """All records of a run, in the order in which they were written; an incomplete last line is left out.

    Raises:
        StoreError: the file cannot be read, or a complete line is not a record.
    """
    return [record for _, record in _parsed(path)]


def check_mark(path: Path, mark: str) -> None:
    """Refuse a file that does not begin with the records that existed when a round was committed (`RecordWriter.mark`).

    Raises:
        StoreError: records are missing or were changed.
    """
    count, _, link = mark.partition(":")
    links = [link for link, _ in _parsed(path)]
    found = links[int(count) - 1] if 0 < int(count) <= len(links) else _START
    if found != link:
        raise StoreError(
            f"{path.name} has {len(links)} record(s), but not the first {count} as they were when the last round was committed: the file "
            f"was cut or changed. {_REMEDY}"
        )


def _last(lines: Sequence[bytes]) -> tuple[int, str]:
    """The number of lines, and the link of the last line."""
    link = _START
    for line in lines:
        found = _SEALED.search(line)
        link = found[1].decode() if found else _next_link(link, line)
    return len(lines), link


def _next_link(before: str, plain: bytes) -> str:
    return hashlib.sha256(before.encode() + plain).hexdigest()[:16]


def _sealed_line(plain: bytes, link: str) -> bytes:
    return plain[:-1] + f',"link":"{link}"}}\n'.encode()


def _parsed(path: Path) -> list[tuple[str, Record]]:
    """The records in the file, each with the link of its line.

    Lines of version 0.1 have no link; such lines are only allowed before all others.

    Raises:
        StoreError: the file cannot be read, a line is not a record, or it is not the one that was written there.
    """
    try:
        lines = _whole_lines(path.read_bytes()).splitlines()
    except FileNotFoundError as error:
        raise StoreError(f"{path.name} is missing. {_REMEDY}") from error
    except OSError as error:
        raise StoreError(f"{path.name} cannot be read: {error.strerror}. Is this the folder of a run?") from error
    parsed, link, sealed = [], _START, False
    for number, line in enumerate(lines, start=1):
        record, found = _parse(line, number, path), _SEALED.search(line)
        link = _next_link(link, line[: found.start()] + b"}" if found else line)
        sealed = sealed or found is not None
        if sealed and record.pop("link", None) != link:
            raise StoreError(f"{path.name} is damaged at line {number}, or a line before it was removed. {_REMEDY}")
        parsed.append((link, record))
    return parsed


def _whole_lines(data: bytes) -> bytes:
    """The content up to the last newline; a last line without a newline was not completed."""
    return data[: data.rfind(b"\n") + 1]


def _parse(line: bytes, number: int, path: Path) -> Record:
    """The record in a complete line; lines are numbered from 1.

    Raises:
        StoreError: the line is not a record.
    """
    try:
        record = json.loads(line)
    except ValueError as error:
        raise StoreError(f"{path.name} is damaged: line {number}, {line[:60]!r}, is not JSON. {_REMEDY}") from error
    if not isinstance(record, dict) or record.get("kind") not in KINDS:
        raise StoreError(
            f"{path.name} holds {line[:60]!r}, which is not a record of a kind that this version knows "
            f"({', '.join(KINDS)}). Read it with the version that wrote it."
        )
    return record
