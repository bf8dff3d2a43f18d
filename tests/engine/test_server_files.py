"""What a server commits is what it reads back, for its own study only."""

from math import inf, nan
from pathlib import Path

import pytest
import torch

from pfedsam.core.errors import RunError
from pfedsam.engine.model_selection import Validation
from pfedsam.engine.server_files import SERVER, load_state, record_report, record_validation, save_state
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
