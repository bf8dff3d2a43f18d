"""The ledger detects every change of its lines, and a line is on the disk before its message leaves the site."""

import hashlib
import hmac
import itertools
import json
import stat

import pytest

from pfedsam.core import atomic
from pfedsam.core.errors import StoreError
from pfedsam.federation.ledger import START, Head, Ledger


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
    key, before = bytes.fromhex((ledger.path.parent / "ledger.key").read_text()), START
    for line in raw:  # the chain, computed here from the text and the key alone
        claimed = line.pop("seal")
        assert line["before"] == before
        before = hmac.new(key, json.dumps(line, sort_keys=True, separators=(",", ":")).encode(), "sha256").hexdigest()
        assert claimed == before
    assert ledger.head() == Head(3, before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in ledger.path.parent.iterdir()} == {0o600}


def test_a_line_that_is_written_while_the_ledger_is_read_is_no_damage(ledger, monkeypatch):
    """`pfedsam site ledger` is called while `site start` runs; the verification of a long ledger takes seconds."""
    verify, running = Ledger._chain, Ledger(ledger.path)

    def slow(self: Ledger, data: bytes):
        found = verify(self, data)
        if self is ledger:
            write(running, len(found[0]))
        return found

    monkeypatch.setattr(Ledger, "_chain", slow)
    assert [line["round"] for line in ledger.read()] == [0, 1, 2]
    assert ledger.head().lines == 4
    monkeypatch.undo()
    assert len(ledger.read()) == 5


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


def dump(line: dict) -> bytes:
    return json.dumps(line, sort_keys=True, separators=(",", ":")).encode()


def rewritten(data: bytes) -> bytes:
    """The ledger with another number of bytes in its second line and every hash computed anew, by someone without the key."""
    lines, before = [json.loads(line) for line in data.splitlines()], START
    for number, line in enumerate(lines):
        line.pop("seal", None)
        line |= {"before": before} | ({"bytes": 9} if number == 1 else {})
        before = hashlib.sha256(dump(line)).hexdigest()
        line["hash"] = before
    return b"".join(dump(line) + b"\n" for line in lines)


DAMAGES = {
    "edited with recomputed hashes": lambda ledger: ledger.path.write_bytes(rewritten(ledger.path.read_bytes())),
    "emptied": lambda ledger: ledger.path.write_bytes(b""),
    "deleted": lambda ledger: ledger.path.unlink(),
    "cut": lambda ledger: ledger.path.write_bytes(b"".join(ledger.path.read_bytes().splitlines(keepends=True)[:2])),
    "head deleted": lambda ledger: ledger._head_path.unlink(),
    "head of an earlier day": lambda ledger: ledger._head_path.write_text('{"lines": 2, "seal": "0", "own": "0"}'),
    "key deleted": lambda ledger: ledger._key_path.unlink(),
    "key exchanged": lambda ledger: ledger._key_path.write_text("00" * 32),
    "all but the key deleted": lambda ledger: (ledger.path.unlink(), ledger._head_path.unlink()),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_broken_ledger_stops_sending_until_that_is_acknowledged(ledger, damage):
    """Row 38 of docs/reliability.md."""
    damage(ledger)
    left = ledger.path.read_bytes() if ledger.path.exists() else b""
    for _ in range(2):
        with pytest.raises(StoreError, match="Nothing is sent until"):
            write(ledger, 3)
        with pytest.raises(StoreError, match="--acknowledge"):
            ledger.read()
    aside = ledger.acknowledge()
    assert aside.read_bytes() == left
    (line,) = ledger.read()
    assert (line["task"], line["sha256"]) == ("acknowledged", hashlib.sha256(left).hexdigest())
    assert aside.name in line["note"]
    write(ledger, 3)
    assert len(ledger.read()) == 2
    assert ledger.acknowledge() is None


def test_a_ledger_of_version_0_1_goes_on_and_cannot_be_changed_from_then_on(tmp_path):
    ledger, before = Ledger(tmp_path / "ledger.jsonl"), START
    lines = []
    for round_ in range(2):
        line = {"round": round_, "before": before}
        before = hashlib.sha256(dump(line)).hexdigest()
        lines.append(dump({**line, "hash": before}) + b"\n")
    ledger.path.write_bytes(b"".join(lines))
    assert [line["round"] for line in ledger.read()] == [0, 1]
    write(ledger, 2)
    assert [line["round"] for line in ledger.read()] == [0, 1, 2]
    ledger.path.write_bytes(rewritten(ledger.path.read_bytes()))
    with pytest.raises(StoreError, match="ledger"):
        ledger.read()


def test_a_ledger_and_all_that_belongs_to_it_cannot_be_removed_at_a_site_that_has_trained(ledger):
    (ledger.path.parent / "studies" / "s").mkdir(parents=True)
    (ledger.path.parent / "studies" / "s" / "received.safetensors").touch()
    for path in (ledger.path, ledger._head_path, ledger._key_path):
        path.unlink()
    with pytest.raises(StoreError, match="was removed"):
        write(ledger, 3)


def test_a_line_that_was_written_just_before_a_kill_counts(ledger):
    """The line is written before the head: after a kill between the two the head is one line behind."""
    head = ledger._head_path.read_bytes()
    write(ledger, 3)
    ledger._head_path.write_bytes(head)
    assert [line["round"] for line in ledger.read()] == [0, 1, 2, 3]
    write(ledger, 4)
    assert ledger.head().lines == 5


def old_line() -> dict:
    """A line of version 0.1, the first of its ledger."""
    line = {"round": 0, "before": START}
    return {**line, "hash": hashlib.sha256(dump(line)).hexdigest()}


class Killed(BaseException):
    """Stands for the end of the process between two of its writes."""


def killed_after(monkeypatch: pytest.MonkeyPatch, writes: int) -> None:
    """Let the process end after this number of files was replaced."""
    real, left = atomic.write_bytes, [writes]

    def write_bytes(*args, **more):
        if left[0] == 0:
            raise Killed
        left[0] -= 1
        real(*args, **more)

    monkeypatch.setattr(atomic, "write_bytes", write_bytes)


@pytest.mark.parametrize("writes", range(3))
@pytest.mark.parametrize("old", [False, True])
def test_a_process_that_is_killed_in_its_first_message_locks_nothing(tmp_path, monkeypatch, writes, old):
    path = tmp_path / "ledger.jsonl"
    if old:
        path.write_bytes(dump(old_line()) + b"\n")
    with monkeypatch.context() as patched:
        killed_after(patched, writes)
        with pytest.raises(Killed):
            write(Ledger(path), 1)
    assert len(Ledger(path).read()) in (int(old), int(old) + 1)
    write(Ledger(path), 2)
    assert [line["round"] for line in Ledger(path).read()][-1] == 2
    assert Ledger(path).head().lines == len(Ledger(path).read())


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("lines", [1, 3])
def test_every_part_that_is_removed_shows(tmp_path, trained, lines):
    """All combinations, in a site that has sent something; without a trace of training the whole cannot be told from a new site."""
    parts = ("ledger.jsonl", "ledger.key", "ledger.head.json")
    for gone in (gone for count in (1, 2, 3) for gone in itertools.combinations(parts, count)):
        folder = tmp_path / "-".join(gone)
        folder.mkdir()
        for round_ in range(lines):
            write(Ledger(folder / "ledger.jsonl"), round_)
        if trained:
            (folder / "studies" / "s").mkdir(parents=True)
            (folder / "studies" / "s" / "received.safetensors").touch()
        for name in gone:
            (folder / name).unlink()
        if trained or len(gone) < 3:
            with pytest.raises(StoreError, match="ledger"):
                Ledger(folder / "ledger.jsonl").head()


@pytest.mark.parametrize("head", [{"lines": -1, "seal": START}, {"lines": 2, "seal": START}, {"lines": 1, "seal": 1}])
def test_a_head_without_a_key_is_not_believed(tmp_path, head):
    (tmp_path / "ledger.jsonl").write_bytes(dump(old_line()) + b"\n")
    (tmp_path / "ledger.head.json").write_text(json.dumps({**head, "own": ""}))
    with pytest.raises(StoreError, match="ledger"):
        Ledger(tmp_path / "ledger.jsonl").read()
