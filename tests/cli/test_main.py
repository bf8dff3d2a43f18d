"""The command line: help that teaches, errors as one message and an exit code."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

Call = Callable[..., int]

COMMANDS = [
    "demo",
    "run",
    "compare",
    "evaluate",
    "predict",
    "report",
    "pretrain",
    "bench accuracy",
    "bench onboarding",
    "bench labels",
    "onboard",
    "data check",
    "data split",
    "weights list",
    *(f"coordinator {name}" for name in ("init", "submit", "start", "status", "stop", "revoke")),
    *(f"site {name}" for name in ("init", "approve", "check", "start", "ledger")),
]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(call: Call, capsys: pytest.CaptureFixture[str], command: str) -> None:
    assert call(*command.split(), "--help") == 0
    assert "Usage:" in capsys.readouterr().out


def test_a_missing_file_is_one_message_and_exit_code_2(
    call: Call, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert call("run", str(tmp_path / "none.yaml"), "--out", str(tmp_path / "out")) == 2
    shown = capsys.readouterr().err
    assert "none.yaml cannot be read" in shown
    assert "Traceback" not in shown
    assert not (tmp_path / "out").exists()


def test_an_empty_site_is_exit_code_3(call: Call, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "north" / "images").mkdir(parents=True)
    (tmp_path / "study.yaml").write_text("data:\n  sites: {north: north}\n  classes: {n: [1]}\n")
    assert call("data", "split", str(tmp_path / "study.yaml"), "--out", str(tmp_path / "out")) == 3
    assert "north" in capsys.readouterr().err


@pytest.mark.parametrize(("number", "code"), [(errno.ENOSPC, 7), (errno.EROFS, 7), (errno.EDQUOT, 7)])
def test_a_full_disk_is_one_message_and_exit_code_7(
    call: Call,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    number: int,
    code: int,
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), "sites/north")

    monkeypatch.setattr("pfedsam.experiment.load.load_options", full)
    assert call("run", str(tmp_path / "study.yaml"), "--out", str(tmp_path / "out")) == code
    shown = " ".join(capsys.readouterr().err.split())
    assert f"{os.strerror(number)} (sites/north)" in shown
    assert "--resume" in shown


def test_a_gpu_without_memory_is_one_message_that_says_what_needs_less(
    call: Call, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr("pfedsam.experiment.load.load_options", full)
    assert call("run", str(tmp_path / "study.yaml"), "--out", str(tmp_path / "out")) == 8
    shown = " ".join(capsys.readouterr().err.split())
    assert "model.recompute=true" in shown
    assert "--resume" in shown


def test_a_usage_error_is_exit_code_2(call: Call, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("run") == 2
    assert "Missing argument" in capsys.readouterr().err
