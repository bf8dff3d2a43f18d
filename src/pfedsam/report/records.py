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

import json
import os
from collections.abc import Iterable, Mapping
from math import inf
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeAlias

from pfedsam.core.atomic import write_bytes
from pfedsam.core.errors import RunError, StoreError

Record: TypeAlias = dict[str, Any]
"""One line: `kind`, and the kind's fields."""

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
        kind = record.get("kind")
        if kind not in KINDS:
            raise RunError(f"a record of kind {kind!r} is not known; the kinds are {', '.join(KINDS)}.")
        try:
            line = json.dumps(record, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        except (TypeError, ValueError) as error:
            raise RunError(f"the {kind} record of site {record.get('site')!r} is not JSON: {error}.") from error
        try:
            self._file.write(line.encode("utf-8") + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise StoreError(
                f"{self.path.name} cannot be written: {error.strerror}. Make space and resume the run."
            ) from error

    def truncate_after(self, round_: int) -> None:
        """Drops every record of a round later than this one, for a run that resumes after it.

        The file is replaced as a whole, so that a kill meanwhile leaves either the old records or the new ones.

        Raises:
            StoreError: the file could not be replaced.
        """
        # Records without a round belong to every round.
        kept = [line for line, record in _parsed(self.path) if record.get("round", -inf) <= round_]
        self._file.close()
        write_bytes(self.path, b"".join(line + b"\n" for line in kept))
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


def _parsed(path: Path) -> list[tuple[bytes, Record]]:
    """The completed lines of the file, each with the record in it.

    Raises:
        StoreError: the file cannot be read, or a line is not a record.
    """
    try:
        lines = _whole_lines(path.read_bytes()).splitlines()
    except OSError as error:
        raise StoreError(f"{path.name} cannot be read: {error.strerror}. Is this the folder of a run?") from error
    return [(line, _parse(line, number, path)) for number, line in enumerate(lines, start=1)]


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
        raise StoreError(
            f"{path.name} is damaged: line {number}, {line[:60]!r}, is not JSON. Restore the file from a copy, or delete that line: "
            "models and their scores do not depend on it, curves and sums of bytes in the report may."
        ) from error
    if not isinstance(record, dict) or record.get("kind") not in KINDS:
        raise StoreError(
            f"{path.name} holds {line[:60]!r}, which is not a record of a kind that this version knows "
            f"({', '.join(KINDS)}). Read it with the version that wrote it."
        )
    return record
