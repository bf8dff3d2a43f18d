"""The run's diary, `records.jsonl`: one JSON object a line, each line on the disk before the run goes on.

Kinds of records, with the fields that a reader may count on:

    round       round, site, phase ("coupled", "global", "joint", "local"), loss, ...
    validation  round, site, model ("personal", "shared"), dice
    kept        round, site, from_round: the site stays with an earlier shared model (`evaluation.max_drop`)
    plain       round, site: the site uses the shared model, which did better than its personal one (`evaluation.choose_model`)
    aggregate   round, accepted [site], rejected {site: reason}, up_bytes {site: bytes}
                [, scaled {site: factor}: changes that were too large beside the others']
    rollback    round, to_round: the shared parameters are again those after so many rounds; only over several machines
    absent      round, task, sites {site: reason}: who did not do what was asked; only over several machines
    experts     round, site, block, usage [share of the tokens, one an expert]
    timing      seconds, and what took them

Rounds are counted from 0; in the texts of reasons, which people read, from 1. Everything but `timing` depends only on the
configuration and the seed, so that two runs can be compared line by line (`deterministic_view`): no other record may hold a time, a
date, a path or the name of a machine.
"""

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

Record: TypeAlias = dict[str, Any]
"""One line: `kind`, and the kind's fields."""

_START: Final = "0" * 16
"""The link before the first line."""
_SEALED: Final = re.compile(rb',"link":"([0-9a-f]{16})"}\Z')
"""The end of a line: its link, a digest of the line and of the link before it."""
_REMEDY: Final = (
    "Models and their scores do not depend on it, the report's curves and sums of bytes do. Bring the file back from a copy; "
    "without one, run again in a new folder."
)
KINDS: Final = ("round", "validation", "kept", "plain", "aggregate", "rollback", "absent", "experts", "timing")


class RecordWriter:
    """Appends records to a file; a line that a killed run left half-written is removed on opening."""

    def __init__(self, path: Path) -> None:
        """Opens the file, which is made if it is not there.

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
        """Appends one record; it is on the disk when this returns.

        Raises:
            RunError: the kind is unknown, or a value is not JSON (NaN and infinity are not).
            StoreError: the disk refused it.
        """
        line = self._line(record)
        try:
            self._file.write(line)
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise StoreError(
                f"{self.path.name} cannot be written: {error.strerror}. Make space and resume the run."
            ) from error

    @property
    def mark(self) -> str:
        """How many records there are and what they hold, in a few characters; for `check_mark`."""
        return f"{self._count}:{self._link}"

    def _line(self, record: Mapping[str, Any]) -> bytes:
        """The next line, which the chain goes on with.

        Raises:
            RunError: the record is not one.
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
        """Drops every record of a round later than this one, for a run that resumes after it.

        The file is replaced as a whole, so that a kill meanwhile leaves either the old records or the new ones.

        Raises:
            StoreError: the file could not be replaced.
        """
        # Records without a round belong to every round.
        kept = [record for _, record in _parsed(self.path) if record.get("round", -inf) <= round_]
        self._file.close()
        self._count, self._link = 0, _START
        write_bytes(self.path, b"".join(map(self._line, kept)))
        self._file = self.path.open("ab")

    def close(self) -> None:
        """Closes the file; nothing is left to be written."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def last_validation(records: Iterable[Record]) -> int | None:
    """The last round after which sites were validated; None where none was."""
    return max((row["round"] for row in records if row["kind"] == "validation"), default=None)


def read_records(path: Path) -> list[Record]:
    """All records of a run, in the order in which they were written; a half-written last line is left out.

    Raises:
        StoreError: the file cannot be read, or a line that was completed is not a record.
    """
    return [record for _, record in _parsed(path)]


def deterministic_view(records: Iterable[Record]) -> list[Record]:
    """The records that the configuration and the seed decide: all but the times."""
    return [record for record in records if record["kind"] != "timing"]


def check_mark(path: Path, mark: str) -> None:
    """Refuse records that do not begin with those that a commit was made with (`RecordWriter.mark`).

    Raises:
        StoreError: some are missing or other ones.
    """
    count, _, link = mark.partition(":")
    links = [link for link, _ in _parsed(path)]
    found = links[int(count) - 1] if 0 < int(count) <= len(links) else _START
    if found != link:
        raise StoreError(
            f"{path.name} has {len(links)} record(s) and not the {count} that the last committed round was recorded with: it was cut or "
            f"changed. {_REMEDY}"
        )


def _last(lines: Sequence[bytes]) -> tuple[int, str]:
    """How many lines there are, and the link of the last one."""
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

    Lines of version 0.1 have none; they stand before all others.

    Raises:
        StoreError: the file cannot be read, a line is not a record, or it is not the one that was written there.
    """
    try:
        lines = _whole_lines(path.read_bytes()).splitlines()
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
    """What comes up to the last newline; a line is written together with its newline or was not completed."""
    return data[: data.rfind(b"\n") + 1]


def _parse(line: bytes, number: int, path: Path) -> Record:
    """The record in a completed line, the first of which has the number 1.

    Raises:
        StoreError: it is not one.
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
