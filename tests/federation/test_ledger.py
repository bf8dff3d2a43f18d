"""The ledger shows every change to it, and is on the disk before anything leaves."""

import hashlib
import json
import stat

import pytest

from pfedsam.core.errors import StoreError
from pfedsam.federation.ledger import START, Ledger


def write(ledger: Ledger, round_: int, **more) -> None:
    fields = {"study": "s", "task": "train", "sent": True, "sha256": "0" * 64, "total_bytes": 7}
    fields |= {"by_component": {"lora_a": 7}, "names": ["a"], "scalar_metrics": ["loss"]}
    ledger.append(round=round_, **{**fields, **more})


@pytest.fixture
def ledger(tmp_path) -> Ledger:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    for round_ in range(3):
        write(ledger, round_)
    return ledger


def test_lines_are_chained_and_private(ledger):
    lines = ledger.read()
    assert [line["round"] for line in lines] == [0, 1, 2]
    assert stat.S_IMODE(ledger.path.stat().st_mode) == 0o600
    raw = [json.loads(line) for line in ledger.path.read_bytes().splitlines()]
    before = START
    for line in raw:  # the chain, computed here from the text alone
        claimed = line.pop("hash")
        assert line["before"] == before
        before = hashlib.sha256(json.dumps(line, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
        assert claimed == before


@pytest.mark.parametrize(
    "change",
    [
        lambda lines: [lines[0], lines[2]],
        lambda lines: [lines[1], lines[2]],
        lambda lines: [lines[0], lines[2], lines[1]],
        lambda lines: [lines[0], lines[1], lines[1], lines[2]],
        lambda lines: [lines[0], lines[1].replace(b'"bytes":7', b'"bytes":9'), lines[2]],
        lambda lines: [lines[0], lines[1].replace(b'"sent":true', b'"sent":false'), lines[2]],
        lambda lines: [lines[0], b"{}", lines[2]],
        lambda lines: [lines[0], b"[]", lines[2]],
        lambda lines: [lines[0], b"nonsense", lines[2]],
    ],
)
def test_every_change_shows(ledger, change):
    lines = ledger.path.read_bytes().splitlines()
    ledger.path.write_bytes(b"\n".join(change(lines)) + b"\n")
    with pytest.raises(StoreError, match="ledger"):
        ledger.read()


def test_half_a_line_of_a_killed_process_is_cut_off(ledger):
    whole = ledger.path.read_bytes()
    ledger.path.write_bytes(whole + b'{"half":')
    assert len(ledger.read()) == 3
    write(ledger, 3)
    assert [line["round"] for line in ledger.read()] == [0, 1, 2, 3]


def test_a_ledger_that_cannot_be_written_is_an_error(tmp_path):
    with pytest.raises(StoreError, match="Nothing is sent"):
        write(Ledger(tmp_path / "missing" / "ledger.jsonl"), 0)
