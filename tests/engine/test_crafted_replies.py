"""Whatever one of four sites replies, the study continues without it, and its records name the site and the reason."""

import sys
from pathlib import Path

import pytest

from pfedsam.engine import rounds, run_end
from pfedsam.report.records import read_records
from pfedsam.report.summary_file import read_summary

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import fault_studies as faults


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> faults.Recording:
    return faults.record(tmp_path_factory.mktemp("faults"))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write no page and no adapter, which take longer than the rest of a study."""
    monkeypatch.setattr(run_end, "write_page", lambda folder: folder)
    monkeypatch.setattr(rounds, "export_adapter", lambda *args: None)
    monkeypatch.setattr(rounds, "build_model", lambda *args: None)


def test_there_are_enough_of_them() -> None:
    assert len(faults.CRAFTED) >= 60


@pytest.mark.parametrize("what", faults.CRAFTED)
def test_a_crafted_reply_ends_no_study_and_names_its_site(
    tmp_path: Path, recording: faults.Recording, what: str
) -> None:
    task, change = faults.CRAFTED[what]
    study = faults.replay(recording, tmp_path, change)
    bad = recording.names[faults.HOSTILE]
    records = list(read_records(study / "records.jsonl"))
    (aggregate,) = (row for row in records if row["kind"] == "aggregate")
    named = [
        reason for row in records if row["kind"] == "absent" for site, reason in row["sites"].items() if site == bad
    ]
    named += [reason for site, reason in aggregate["rejected"].items() if site == bad]
    assert named
    assert aggregate["accepted"] == [
        n for n in recording.names if n != bad or task in ("summarize", "validate", "test")
    ]
    summaries = {path.stem for path in (study / "summaries").glob("*.json")}
    assert summaries | {bad} == set(recording.names)
    assert bad not in summaries or task != "summarize"
    assert set(recording.names) - set(read_summary(study / "summary.json").sites) <= {bad}
    assert "Jane" not in (study / "records.jsonl").read_text() + (study / "summary.json").read_text()


def test_an_exception_that_nobody_foresaw_costs_its_site_alone(
    tmp_path: Path, recording: faults.Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No known reply makes a parser raise another error; if one did, the round would continue all the same."""
    bad, read = recording.names[faults.HOSTILE], rounds.reply_from_wire

    def fail(wire: dict) -> object:
        if wire.get("mark"):
            raise ZeroDivisionError("Jane Doe")
        return read(wire)

    monkeypatch.setattr(rounds, "reply_from_wire", fail)
    study = faults.replay(recording, tmp_path, lambda task, round_, wire: {**wire, "mark": b"1"})
    absent = [row["sites"] for row in read_records(study / "records.jsonl") if row["kind"] == "absent"]
    assert absent[0] == {bad: "its reply could not be read"}
    assert "Jane" not in (study / "records.jsonl").read_text()
