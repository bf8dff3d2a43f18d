"""The coordinator's commands on a folder: what is there is told, what is missing is an error."""

import json
import os
import sys
from pathlib import Path

import pytest

from pfedsam.cli.main import main
from pfedsam.runtime.study_folder import StudyFolder


def call(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["pfedsam", *map(str, words)])
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_status_names_state_round_sites_and_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    study = tmp_path / "studies" / "0123456789abcdef"
    study.mkdir(parents=True)
    StudyFolder(study).write_status("stopped", round_=3, rounds=9, sites=["north"], reason="too few")
    monkeypatch.setenv("COLUMNS", "200")
    assert call(monkeypatch, "coordinator", "status", tmp_path) == 0
    shown = capsys.readouterr().out
    assert "coordinator: stopped" in shown
    (tmp_path / "coordinator.pid").write_text(str(os.getpid()))
    (tmp_path / "connected.json").write_text(json.dumps(["north", "south"]))
    assert call(monkeypatch, "coordinator", "status", tmp_path) == 0
    assert "running; connected: north, south" in capsys.readouterr().out


def test_a_folder_without_a_coordinator_cannot_be_started(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    pytest.importorskip("nvflare")
    assert call(monkeypatch, "coordinator", "start", tmp_path) == 8
    assert "coordinator init" in " ".join(capsys.readouterr().err.split())


def test_stop_without_a_coordinator_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "coordinator.pid").write_text("999999999")
    assert call(monkeypatch, "coordinator", "stop", tmp_path) == 0
    assert "No coordinator runs" in capsys.readouterr().out


def test_a_site_is_revoked_and_taken_in_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert call(monkeypatch, "coordinator", "revoke", tmp_path, "north") == 0
    assert "Revoked: north." in capsys.readouterr().out
    assert call(monkeypatch, "coordinator", "revoke", tmp_path, "north", "--undo") == 0
    assert "Revoked: none." in capsys.readouterr().out
