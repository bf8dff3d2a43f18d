"""The coordinator's commands on a folder: what is there is told, what is missing is an error."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pfedsam.cli.console import OUT
from pfedsam.cli.coordinator import PID
from pfedsam.core.lock import runner, running_as
from pfedsam.engine.rounds import RoundPolicy
from pfedsam.engine.study_folder import StudyFolder, create_study
from pfedsam.experiment.options import RunOptions
from pfedsam.federation.manifest import read_manifest

Call = Callable[..., int]


def test_status_names_state_round_sites_and_reason(
    call: Call, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    study = tmp_path / "studies" / "0123456789abcdef"
    study.mkdir(parents=True)
    StudyFolder(study).write_status("stopped", round_=3, rounds=9, sites=["north"], reason="too few")
    (study / "manifest.json").touch()
    monkeypatch.setattr(OUT, "width", 250)
    assert call("coordinator", "status", tmp_path) == 0
    shown = capsys.readouterr().out
    assert "coordinator: stopped" in shown
    (tmp_path / "connected.json").write_text(json.dumps(["north", "south"]))
    with running_as(tmp_path / PID, "taken"):
        assert call("coordinator", "status", tmp_path) == 0
    assert "running; connected: north, south" in capsys.readouterr().out
    assert call("coordinator", "status", tmp_path) == 0
    assert "stopped; connected: none" in capsys.readouterr().out


def test_rollback_says_what_is_missing(call: Call, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert call("coordinator", "rollback", tmp_path, "other") == 8
    assert "there is no study 'other'" in " ".join(capsys.readouterr().err.split())
    (tmp_path / "studies" / "one").mkdir(parents=True)
    assert call("coordinator", "rollback", tmp_path, "one") == 8
    assert "no earlier state is stored" in " ".join(capsys.readouterr().err.split())
    with running_as(tmp_path / PID, "taken"):
        assert call("coordinator", "rollback", tmp_path, "one") == 8
    assert "coordinator stop" in " ".join(capsys.readouterr().err.split())


def test_rollback_commits_the_newest_kept_state(
    call: Call, capsys: pytest.CaptureFixture[str], tmp_path: Path, toy_options: RunOptions
) -> None:
    training = toy_options.training.model_copy(update={"rounds": 4})
    options = toy_options.model_copy(update={"training": training})
    study = create_study(options, tmp_path / "studies", RoundPolicy())
    manifest, stored = read_manifest(study / "manifest.json"), StudyFolder(study)
    for round_, value in ((1, 1.0), (2, 2.0)):
        state = stored.load_state(manifest)
        shared = {name: torch.full_like(tensor, value) for name, tensor in state.shared.items()}
        stored.save_state(replace(state, round=round_, shared=shared), manifest)
    assert call("coordinator", "rollback", tmp_path, study.name) == 0
    assert "those after 1 round(s); the study continues with round 4" in " ".join(capsys.readouterr().out.split())
    assert all((tensor == 1.0).all() for tensor in stored.load_state(manifest).shared.values())
    assert stored.read_status()["reason"] == "rolled back to round 1"


def test_a_folder_without_a_coordinator_cannot_be_started(
    call: Call, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    pytest.importorskip("nvflare")
    assert call("coordinator", "start", tmp_path) == 8
    assert "coordinator init" in " ".join(capsys.readouterr().err.split())


def test_a_policy_that_cannot_be_is_one_message(call: Call, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text("method: pfedsam\n")
    assert call("coordinator", "submit", tmp_path, tmp_path / "study.yaml", "--quorum", "0") == 2
    assert "quorum" in capsys.readouterr().err
    assert not (tmp_path / "studies").exists()


STUDY = "data:\n  sites: {north: n, nroth: s}\n  classes: {x: [1]}\n"


@pytest.fixture
def submitted(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders in which a study was made; the federation has the sites north and south."""
    made: list[Path] = []
    monkeypatch.setattr("pfedsam.deploy.provision.certified_sites", lambda _: {"north", "south"})
    monkeypatch.setattr(
        "pfedsam.engine.study_folder.create_study", lambda options, root, policy: made.append(root) or root / "id"
    )
    return made


def test_a_quorum_above_the_number_of_sites_is_refused(
    call: Call, capsys: pytest.CaptureFixture[str], tmp_path: Path, submitted: list[Path]
) -> None:
    pytest.importorskip("nvflare")
    (tmp_path / "study.yaml").write_text(STUDY)
    assert call("coordinator", "submit", tmp_path, tmp_path / "study.yaml", "--quorum", 3) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert (
        "The quorum of 3 cannot be reached: the study has 2 site(s), north, nroth. Give a --quorum of at most 2" in said
    )
    assert submitted == []


def test_sites_that_are_not_in_the_federation_are_named_when_a_study_is_submitted(
    call: Call, capsys: pytest.CaptureFixture[str], tmp_path: Path, submitted: list[Path]
) -> None:
    pytest.importorskip("nvflare")
    (tmp_path / "study.yaml").write_text(STUDY)
    assert call("coordinator", "submit", tmp_path, tmp_path / "study.yaml") == 0
    assert "Warning: Not in the federation yet: nroth. The study" in " ".join(capsys.readouterr().err.split())
    assert (
        call("coordinator", "submit", tmp_path, tmp_path / "study.yaml", "--set", "data.sites={south: s, north: n}")
        == 0
    )
    assert "Not in the federation" not in capsys.readouterr().err
    assert len(submitted) == 2


def test_a_folder_has_one_coordinator(call: Call, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pytest.importorskip("nvflare")
    (tmp_path / "server").mkdir()
    with running_as(tmp_path / PID, "taken"):
        assert call("coordinator", "start", tmp_path) == 8
    assert "already running" in " ".join(capsys.readouterr().err.split())


def test_the_pid_that_a_killed_coordinator_left_is_not_taken_for_one(
    call: Call, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    foreign = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    (tmp_path / "coordinator.pid").write_text(str(foreign.pid))
    assert call("coordinator", "stop", tmp_path) == 0
    assert "No coordinator is running" in capsys.readouterr().out
    with running_as(tmp_path / PID, "taken"):
        assert runner(tmp_path / PID) == os.getpid()
    foreign.communicate(b"\n")
    assert foreign.returncode == 0  # not of a signal


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_stop_ends_the_coordinator_and_a_kill_leaves_no_lock(call: Call, tmp_path: Path, how: str) -> None:
    code = f"""
from pathlib import Path
from pfedsam.core.lock import running_as
with running_as(Path({str(tmp_path / PID)!r}), "taken"):
    print("up", flush=True)
    input()
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline() == b"up\n"
        assert runner(tmp_path / PID) == process.pid
        if how == "stop":
            assert call("coordinator", "stop", tmp_path) == 0
        else:
            process.kill()
        assert process.wait() == -(signal.SIGTERM if how == "stop" else signal.SIGKILL)
        assert runner(tmp_path / PID) == 0
    finally:
        process.kill()


@pytest.fixture
def _certified(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pfedsam.deploy.provision.certified_sites", lambda _: {"north", "south"})


@pytest.mark.usefixtures("_certified")
def test_a_site_that_the_federation_does_not_have_is_not_revoked(
    call: Call, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert call("coordinator", "revoke", tmp_path, "nroth") == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "The federation has no site 'nroth'; nothing was changed. It has north, south." in said
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_a_coordinator_has_no_site_to_revoke_and_nothing_to_stop(call: Call, tmp_path: Path) -> None:
    assert call("coordinator", "revoke", tmp_path, "north") == 8
    assert call("coordinator", "stop", tmp_path / "nowhere") == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("_certified")
def test_a_site_is_revoked_and_taken_in_again(call: Call, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert call("coordinator", "revoke", tmp_path, "north") == 0
    assert "Revoked: north." in capsys.readouterr().out
    assert call("coordinator", "revoke", tmp_path, "north", "--undo") == 0
    assert "Revoked: none." in capsys.readouterr().out


def test_the_status_of_a_folder_without_a_coordinator_is_one_message(
    call: Call, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert call("coordinator", "status", tmp_path / "runs") == 8
    assert "'runs' is not a coordinator's folder" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("damage", [b"", b"\0" * 40, b'{"state": "running"}', None])
def test_a_status_that_is_damaged_is_told_and_hides_no_other_study(
    call: Call,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    damage: bytes | None,
) -> None:
    monkeypatch.setattr(OUT, "width", 250)
    for name in ("0123456789abcdef", "fedcba9876543210"):
        folder = tmp_path / "studies" / name
        folder.mkdir(parents=True)
        (folder / "manifest.json").touch()
        StudyFolder(folder).write_status("finished", round_=9, rounds=9, sites=["north"])
    status = tmp_path / "studies" / "0123456789abcdef" / "status.json"
    status.unlink() if damage is None else status.write_bytes(damage)
    assert call("coordinator", "status", tmp_path) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "Submit study 0123456789abcdef again" in shown
    assert "fedcba9876543210 │ finished" in shown


@pytest.mark.usefixtures("_certified")
def test_revoked_sites_that_were_lost_are_not_taken_for_none(
    call: Call, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert call("coordinator", "revoke", tmp_path, "north") == 0
    (tmp_path / "revoked.json").unlink()
    assert call("coordinator", "revoke", tmp_path, "north", "--undo") == 7
    assert "revoked.json is missing" in " ".join(capsys.readouterr().err.split())
    assert call("coordinator", "revoke", tmp_path, "south") == 0
    assert "Revoked: south." in capsys.readouterr().out
