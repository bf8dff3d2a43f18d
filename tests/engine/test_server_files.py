"""The committed state of a server is read back, for its own study only."""

import shutil
from math import inf, nan
from pathlib import Path

import pytest
import torch

from pfedsam.core.errors import RunError, StoreError
from pfedsam.engine.model_selection import Validation
from pfedsam.engine.server_files import (
    SERVER,
    check_records,
    load_state,
    read_server,
    record_report,
    record_validation,
    save_state,
)
from pfedsam.engine.site_session import RoundReport
from pfedsam.federation.server import ServerState
from pfedsam.report.records import RecordWriter, read_records


def test_a_committed_state_is_read_back_also_where_nothing_is_shared(tmp_path: Path) -> None:
    for state in (ServerState(3, {"w": torch.tensor([1.5, -2.0])}), ServerState(4, {})):
        save_state(tmp_path, "mine", state)
        back = load_state(tmp_path, "mine")
        assert back.round == state.round
        assert {n: t.tolist() for n, t in back.shared.items()} == {n: t.tolist() for n, t in state.shared.items()}
    assert (tmp_path / SERVER).is_file()
    with pytest.raises(RunError, match="another study"):
        load_state(tmp_path, "yours")


def test_records_are_checked_where_the_committed_state_counts_them(tmp_path: Path) -> None:
    check_records(tmp_path)  # without a state
    save_state(tmp_path, "mine", ServerState(1, {}))  # of an onboarding, which has no records
    check_records(tmp_path)
    with RecordWriter(tmp_path / "records.jsonl") as records:
        records.write({"kind": "timing", "seconds": 1.0})
        save_state(tmp_path, "mine", ServerState(1, {}), records)
    check_records(tmp_path)
    (tmp_path / "records.jsonl").unlink()
    with pytest.raises(StoreError, match=r"records\.jsonl is missing.*Restore the file from a copy"):
        check_records(tmp_path)


def test_a_lost_state_names_the_earlier_one_and_what_it_is_good_for(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="the shared parameters of every round are lost"):
        read_server(tmp_path)
    for round_ in (9, 10, 11):
        save_state(tmp_path, "mine", ServerState(round_, {"w": torch.tensor([float(round_)])}))
        kept = tmp_path / "shared" / "earlier" / f"after-{round_:06d}.safetensors"
        kept.parent.mkdir(exist_ok=True)
        (tmp_path / SERVER).rename(kept)
    with pytest.raises(
        StoreError, match=r"shared/earlier/after-000011\.safetensors contains those of an earlier round"
    ):
        read_server(tmp_path)
    shutil.copy(kept, tmp_path / SERVER)
    assert read_server(tmp_path)[0]["w"].tolist() == [11.0]


def test_a_report_becomes_a_record_per_phase_and_block(tmp_path: Path) -> None:
    with RecordWriter(tmp_path / "records.jsonl") as records:
        report = RoundReport({"global": {"total": 2.0, "segmentation": 2.0}}, {"11": [0.25, 0.75]})
        record_report(records, 1, "north", report)
        record_report(records, 1, "south", RoundReport({"global": {"total": nan, "segmentation": inf}}, {}))
    phase, experts, broken = read_records(tmp_path / "records.jsonl")
    assert (broken["site"], broken["loss"], broken["segmentation"]) == ("south", None, None)
    assert (phase["kind"], phase["round"], phase["site"], phase["phase"]) == ("round", 1, "north", "global")
    assert (phase["loss"], phase["segmentation"], "total" in phase) == (2.0, 2.0, False)
    assert (experts["kind"], experts["block"], experts["usage"]) == ("experts", 11, [0.25, 0.75])


def test_a_validation_says_which_model_a_site_uses(tmp_path: Path) -> None:
    with RecordWriter(tmp_path / "records.jsonl") as records:
        record_validation(records, 4, "north", Validation({"personal": 0.5, "shared": 0.6}, uses="shared"))
        record_validation(records, 4, "south", Validation({"personal": 0.5, "shared": 0.4}, kept=2))
    rows = read_records(tmp_path / "records.jsonl")
    assert [(row["kind"], row["site"]) for row in rows[2:]] == [
        ("plain", "north"),
        *[("validation", "south")] * 2,
        ("kept", "south"),
    ]
    assert rows[-1]["from_round"] == 2
