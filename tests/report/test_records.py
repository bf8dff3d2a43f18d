import json
import math
import resource

import pytest

from pfedsam.core.errors import RunError, StoreError
from pfedsam.report.records import RecordWriter, read_records


def validation(round_: int, dice: float = 0.5) -> dict:
    return {"kind": "validation", "round": round_, "site": "a", "model": "shared", "dice": dice}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "records.jsonl"


def test_what_is_written_is_read(path):
    records = [validation(1, 0.1 + 0.2), {"kind": "timing", "seconds": 1.5}]
    with RecordWriter(path) as writer:
        for record in records:
            writer.write(record)
    assert read_records(path) == records
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert [{key: value for key, value in line.items() if key != "link"} for line in lines] == records


def test_a_record_is_on_the_disk_before_the_next(path):
    with RecordWriter(path) as writer:
        writer.write(validation(1))
        assert read_records(path) == [validation(1)]


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_a_half_written_line_is_left_out_and_then_overwritten(path, cut):
    with RecordWriter(path) as writer:
        writer.write(validation(1))
        writer.write(validation(2))
    path.write_bytes(path.read_bytes()[:-cut])
    assert read_records(path) == [validation(1)]
    with RecordWriter(path) as writer:
        writer.write(validation(3))
    assert read_records(path) == [validation(1), validation(3)]


def test_resuming_gives_the_same_bytes_as_a_run_that_was_never_stopped(tmp_path):
    whole, stopped = tmp_path / "whole.jsonl", tmp_path / "stopped.jsonl"
    with RecordWriter(whole) as writer:
        for round_ in (1, 2, 3):
            writer.write(validation(round_))
    with RecordWriter(stopped) as writer:
        for round_ in (1, 2):
            writer.write(validation(round_))
    with RecordWriter(stopped) as writer:
        writer.truncate_after(1)
        for round_ in (2, 3):
            writer.write(validation(round_))
    assert stopped.read_bytes() == whole.read_bytes()


def test_truncating_keeps_records_without_a_round(path):
    start = {"kind": "timing", "seconds": 1.0}
    with RecordWriter(path) as writer:
        writer.write(start)
        writer.write(validation(1))
        writer.truncate_after(0)
    assert read_records(path) == [start]


@pytest.mark.parametrize("record", [{"kind": "gossip"}, {}, validation(1, math.nan), validation(1, math.inf)])
def test_what_is_not_a_record_is_refused_and_leaves_no_trace(path, record):
    with RecordWriter(path) as writer, pytest.raises(RunError):
        writer.write(record)
    assert read_records(path) == []


def test_a_completed_line_that_is_damaged_is_an_error(path):
    path.write_text('{"kind":"timing"}\n{"kind": "val\n{"kind":"timing"}\n', "utf-8")
    with pytest.raises(StoreError, match=r"damaged: line 2, .*Restore the file from a copy"):
        read_records(path)


def test_a_kind_of_a_later_version_is_an_error(path):
    path.write_text('{"kind": "gossip"}\n', "utf-8")
    with pytest.raises(StoreError, match="a kind that this version knows"):
        read_records(path)


@pytest.mark.parametrize("lost", ["file", "folder"])
def test_a_file_that_is_removed_meanwhile_is_an_error_at_the_next_record(tmp_path, lost):
    folder = tmp_path / "run"
    folder.mkdir()
    with RecordWriter(folder / "records.jsonl") as writer:
        writer.write(validation(1))
        (folder / "records.jsonl").unlink()
        if lost == "folder":
            folder.rmdir()
        with pytest.raises(StoreError, match=r"records\.jsonl was removed.*alone or with the folder 'run'"):
            writer.write(validation(2))


def test_a_file_that_is_replaced_meanwhile_is_an_error_and_stays_as_it_is(path):
    """The folder of a run was removed, and another run began at the same path."""
    with RecordWriter(path) as writer:
        writer.write(validation(1))
        path.unlink()
        with RecordWriter(path) as other:
            other.write(validation(7))
        with pytest.raises(StoreError, match=r"records\.jsonl was removed or replaced while the run was working"):
            writer.write(validation(2))
    assert read_records(path) == [validation(7)]


def test_an_error_of_the_disk_is_reported_once_and_leaves_the_whole_lines(path):
    with RecordWriter(path) as writer:
        writer.write(validation(1))
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 10, limits[1]))
        try:
            with pytest.raises(StoreError, match="cannot be written: File too large"):
                writer.write(validation(2))
            writer.close()  # as at the end of the run
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert read_records(path) == [validation(1)]


def test_a_missing_file_is_an_error(path):
    with pytest.raises(StoreError, match=r"is missing.*Restore the file from a copy"):
        read_records(path)


def test_a_folder_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(StoreError, match="cannot be opened"):
        RecordWriter(tmp_path / "none" / "records.jsonl")
