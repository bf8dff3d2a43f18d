"""The commands of the coordinator on its folder: they show what it contains, and missing parts are errors."""

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
from pfedsam.cli.coordinator import PID, _weight
from pfedsam.core.lock import runner, running_as
from pfedsam.engine.round_policy import RoundPolicy
from pfedsam.engine.study_folder import AGAIN, STOP, StudyFolder, create_study
from pfedsam.experiment.load import dump_options
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
    training = toy_options.training.model_copy(update={"rounds": 6})
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
    assert call("coordinator", "rollback", tmp_path, study.name) == 0
    assert "those after 0 round(s); the study continues with round 5" in " ".join(capsys.readouterr().out.split())
    assert call("coordinator", "rollback", tmp_path, study.name) == 8
    said = " ".join(capsys.readouterr().err.split())
    assert (
        "no earlier state is stored; stored are the states after none round(s), and those after 0, 1, 2, 3, which"
        in said
    )
    assert call("coordinator", "rollback", tmp_path, study.name, "--skip-to", 4) == 8
    assert "cannot continue with round 4: give a round after 5 and not after 6" in " ".join(
        capsys.readouterr().err.split()
    )
    assert call("coordinator", "rollback", tmp_path, study.name, "--skip-to", 6) == 0
    assert "stay as they are; the study continues with round 6" in " ".join(capsys.readouterr().out.split())
    assert stored.read_status()["reason"] == "skipped to round 6"


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


@pytest.fixture
def submit(call: Call, tmp_path: Path, toy_options: RunOptions, monkeypatch: pytest.MonkeyPatch) -> Call:
    """Submits the toy study with these sites and flags; the federation has the sites north and south."""
    pytest.importorskip("nvflare")
    monkeypatch.setattr("pfedsam.deploy.provision.certified_sites", lambda _: {"north", "south"})
    (tmp_path / "study.yaml").write_text(dump_options(toy_options))

    def _submit(sites: str, *flags: object) -> int:
        named = ", ".join(f"{name}: folder" for name in sites.split())
        override = f"data.sites={{{named}}}"
        return call("coordinator", "submit", tmp_path, tmp_path / "study.yaml", "--set", override, *flags)

    return _submit


def stored(folder: Path) -> StudyFolder:
    (study,) = (folder / "studies").iterdir()
    return StudyFolder(study)


def test_a_quorum_above_the_number_of_sites_is_refused(
    submit: Call, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert submit("north nroth", "--quorum", 3) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert (
        "The quorum of 3 cannot be reached: the study has 2 site(s), north, nroth. Give a --quorum of at most 2" in said
    )
    assert not (tmp_path / "studies").exists()


def test_a_misspelt_site_is_named_and_corrected_by_another_submission(
    submit: Call, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert submit("north nroth") == 0
    shown = capsys.readouterr()
    assert "Warning: Not in the federation yet: nroth. The study" in " ".join(shown.err.split())
    assert "Its sites" not in shown.out
    assert submit("south north") == 0
    shown = capsys.readouterr()
    assert "Not in the federation" not in shown.err
    assert "This study is there already: it continues after round 0 of 4." in shown.out
    assert "Its sites were north, nroth. They are south, north now." in shown.out
    assert "applies this" not in shown.out
    assert stored(tmp_path).read_sites() == ["south", "north"]
    assert submit("south north") == 0
    shown = capsys.readouterr().out
    assert "Its sites" not in shown
    assert "Its rules" not in shown


def test_another_submission_keeps_the_rules_that_it_does_not_give(
    submit: Call, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    flags = ["--quorum", 1, "--deadline", 60, "--max-share", 0.3, "--median-factor", 0]
    assert submit("north south", *flags) == 0
    before = stored(tmp_path).read_policy(RoundPolicy)
    assert before == RoundPolicy(quorum=1, deadline_s=60, max_share=0.3, median_factor=None)
    assert "Its rules" not in capsys.readouterr().out
    assert submit("north south", "--join", 900, "--median-factor", 2.5) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "Its rules have changed: --join was 300 and is now 900, --median-factor was 0 and is now 2.5." in shown
    assert stored(tmp_path).read_policy(RoundPolicy) == before.model_copy(update={"join_s": 900, "median_factor": 2.5})


def test_a_running_coordinator_is_told_of_the_change(
    submit: Call, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with running_as(tmp_path / PID, "taken"):
        assert submit("north south") == 0
        assert submit("north south") == 0
        assert "applies this" not in capsys.readouterr().out
        assert not (stored(tmp_path).path / AGAIN).exists()
        assert submit("north south east") == 0
    assert "it applies this after the current round of the study" in " ".join(capsys.readouterr().out.split())
    assert (stored(tmp_path).path / AGAIN).exists()


def test_rules_that_were_lost_are_told_as_they_are_now(
    submit: Call, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert submit("north south", "--quorum", 1) == 0
    (stored(tmp_path).path / "policy.json").write_text("{")
    assert submit("north south", "--deadline", 60) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "Its rules were lost or damaged (policy.json). They are now: --quorum 2, --deadline 60, --join 300" in shown


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


def test_a_coordinator_on_another_machine_is_not_stopped_by_the_id_of_a_process_here(
    call: Call, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Both machines have the folder on a network drive, so that the lock is held; the id is that of the other machine."""
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    with running_as(tmp_path / PID, "taken"):
        (tmp_path / PID).write_text(str(other.pid))
        assert call("coordinator", "stop", tmp_path) == 8
    assert f"as process {other.pid} there: stop it there" in " ".join(capsys.readouterr().err.split())
    other.communicate(b"\n")
    assert other.returncode == 0  # not of a signal


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


@pytest.mark.parametrize(
    ("cases", "least", "said"),
    [
        (10, 10, "10 or fewer cases, counted as 10"),  # a smaller site has the weight of one with ten cases
        (11, 10, "11 cases"),
        (6, 1, "6 cases"),
        (1, 1, "1 cases"),
        (None, 10, "number of cases not known"),
    ],
)
def test_status_does_not_show_a_smaller_site_as_one_of_ten_cases(cases: int | None, least: int, said: str) -> None:
    assert _weight(cases, least) == said


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


def test_a_changed_option_makes_a_new_study_and_the_old_one_can_be_stopped(
    submit: Call, call: Call, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert submit("north south", "--set", "training.rounds=7") == 0
    old = stored(tmp_path)
    assert "beside" not in capsys.readouterr().out
    assert submit("north south", "--set", "training.rounds=6") == 0
    shown = " ".join(capsys.readouterr().out.split())
    said = f"This is a new study, beside study {old.path.name} of the same title (name), which is submitted. Their"
    assert f"{said} configurations differ in: training.rounds." in shown
    command = f"pfedsam coordinator stop {tmp_path} --study {old.path.name}"
    assert command in shown
    assert call(*command.split()[1:]) == 0
    assert f"Study {old.path.name} is stopped." in capsys.readouterr().out
    assert old.read_status()["state"] == "stopped"
    assert call(*command.split()[1:]) == 0
    assert "is stopped already; nothing was changed" in " ".join(capsys.readouterr().out.split())
    assert submit("north south", "--set", "training.rounds=5", "--set", "name=other") == 0
    assert "beside" not in capsys.readouterr().out  # it has another title
    assert submit("north south", "--set", "training.rounds=7") == 0
    assert old.read_status()["state"] == "submitted"


def test_a_running_coordinator_is_asked_to_stop_a_study(
    submit: Call, call: Call, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert submit("north south") == 0
    study = stored(tmp_path)
    with running_as(tmp_path / PID, "taken"):
        assert call("coordinator", "stop", tmp_path, "--study", study.path.name) == 0
        assert "The running coordinator stops study" in capsys.readouterr().out
        assert (study.read_status()["state"], (study.path / STOP).exists()) == ("submitted", True)
        assert submit("north south") == 0  # the operator has thought better of it
    assert not (study.path / STOP).exists()


@pytest.mark.parametrize("name", ["0123456789abcdef", "..", "."])
def test_a_study_that_is_not_there_cannot_be_stopped(
    call: Call, capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str
) -> None:
    (tmp_path / "studies").mkdir()
    assert call("coordinator", "stop", tmp_path, "--study", name) == 8
    assert f"there is no study {name!r}" in " ".join(capsys.readouterr().err.split())
