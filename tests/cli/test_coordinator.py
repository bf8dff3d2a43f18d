"""The coordinator's commands on a folder: what is there is told, what is missing is an error."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pfedsam.runtime.study_folder import StudyFolder

Call = Callable[..., int]


def test_status_names_state_round_sites_and_reason(
    call: Call, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    study = tmp_path / "studies" / "0123456789abcdef"
    study.mkdir(parents=True)
    StudyFolder(study).write_status("stopped", round_=3, rounds=9, sites=["north"], reason="too few")
    monkeypatch.setenv("COLUMNS", "200")
    assert call("coordinator", "status", tmp_path) == 0
    shown = capsys.readouterr().out
    assert "coordinator: stopped" in shown
    (tmp_path / "coordinator.pid").write_text(str(os.getpid()))
    (tmp_path / "connected.json").write_text(json.dumps(["north", "south"]))
    assert call("coordinator", "status", tmp_path) == 0
    assert "running; connected: north, south" in capsys.readouterr().out


def test_a_folder_without_a_coordinator_cannot_be_started(
    call: Call, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    pytest.importorskip("nvflare")
    assert call("coordinator", "start", tmp_path) == 8
    assert "coordinator init" in " ".join(capsys.readouterr().err.split())


def test_stop_without_a_coordinator_says_so(call: Call, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "coordinator.pid").write_text("999999999")
    assert call("coordinator", "stop", tmp_path) == 0
    assert "No coordinator runs" in capsys.readouterr().out


def test_a_site_is_revoked_and_taken_in_again(call: Call, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert call("coordinator", "revoke", tmp_path, "north") == 0
    assert "Revoked: north." in capsys.readouterr().out
    assert call("coordinator", "revoke", tmp_path, "north", "--undo") == 0
    assert "Revoked: none." in capsys.readouterr().out
