"""The command line: its help, and errors as one message and an exit code."""

import errno
import os
import sys
from collections.abc import Callable
from dataclasses import MISSING
from importlib.metadata import version
from io import BytesIO, TextIOWrapper
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from pfedsam.cli.console import OUT
from pfedsam.cli.main import _WITH_RESUME, app
from pfedsam.engine.onboarding import Newcomer
from pfedsam.engine.round_policy import RoundPolicy
from pfedsam.engine.site_options import SiteOptions

Call = Callable[..., int]

COMMANDS = [
    "demo",
    "run",
    "compare",
    "evaluate",
    "predict",
    "report",
    "options",
    "bench accuracy",
    "bench onboarding",
    "bench labels",
    "onboard",
    "data check",
    "data split",
    "weights list",
    *(f"coordinator {name}" for name in ("init", "submit", "start", "status", "stop", "revoke")),
    *(f"site {name}" for name in ("init", "approve", "check", "start", "ledger", "predict")),
]


def test_the_version_is_that_of_the_package(call: Call, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--version") == 0
    assert capsys.readouterr().out == f"pfedsam {version('pfedsam')}\n"


@pytest.mark.parametrize(("encoding", "written"), [("ascii", rb"Tum\xf6r \u5317"), ("latin-1", b"Tum\xf6r \\u5317")])
def test_letters_that_the_encoding_of_the_output_lacks_are_no_error(
    call: Call, monkeypatch: pytest.MonkeyPatch, encoding: str, written: bytes
) -> None:
    content = BytesIO()
    monkeypatch.setattr(sys, "stdout", TextIOWrapper(content, encoding=encoding))
    assert call("--version") == 0
    OUT.print("Tum\u00f6r \u5317")
    sys.stdout.flush()
    assert content.getvalue().splitlines()[1] == written


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(call: Call, capsys: pytest.CaptureFixture[str], command: str) -> None:
    assert call(*command.split(), "--help") == 0
    assert "Usage:" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "kind"),
    [
        ("coordinator submit", RoundPolicy),
        ("site init", SiteOptions),
        ("onboard", Newcomer),
    ],
)
def test_a_command_that_sets_options_shows_their_own_defaults(command: str, kind: type) -> None:
    found = typer.main.get_command(app)
    for part in command.split():
        found = found.commands[part]  # type: ignore[attr-defined]
    fields = kind.model_fields if issubclass(kind, BaseModel) else kind.__dataclass_fields__  # type: ignore[attr-defined]
    shown = {
        f"{p.name}_s" if f"{p.name}_s" in fields else p.name: p for p in found.params
    }  # a policy's names say: seconds
    compared = [name for name in shown if name in fields and fields[name].default not in (MISSING, PydanticUndefined)]
    assert len(compared) >= 2
    defaults = {name: [] if one.multiple and one.default is None else one.default for name, one in shown.items()}
    for name in compared:  # where nothing given means what was there before, the help names the default
        default, given = fields[name].default, defaults[name]
        assert given == default or (given is None and f"{default:g} by default" in (shown[name].help or "")), name


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


@pytest.mark.parametrize("make", [lambda: bytearray(2**62), lambda: torch.empty(2**50), lambda: np.empty(2**50)])
def test_a_lack_of_memory_is_one_message(
    call: Call, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, make: Callable[[], object]
) -> None:
    monkeypatch.setattr("pfedsam.experiment.load.read_options", lambda *_: make())
    assert call("data", "check", "study.yaml") == 8
    assert "The memory of this machine is not enough" in " ".join(capsys.readouterr().err.split())


def test_a_file_where_a_folder_has_to_be_is_one_message_and_exit_code_7(
    call: Call, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    for words in (("demo",), ("data", "split", tmp_path / "study.yaml")):
        assert call(*words, "--out", file) == 7
        shown = " ".join(capsys.readouterr().err.split())
        assert "There is a file in the place of a folder: move it away, or give another path." in shown
    assert file.read_text() == "mine"


@pytest.mark.parametrize(
    ("number", "todo"),
    [
        *((number, "give the same command with --resume") for number in (errno.ENOSPC, errno.EROFS, errno.EDQUOT)),
        (errno.EACCES, "change the permissions"),
        (errno.ENOENT, "check the path"),
        (errno.EIO, "solve this problem, then give"),
    ],
)
def test_a_full_disk_and_what_is_wrong_with_a_file_is_one_message_that_names_it(
    call: Call,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    number: int,
    todo: str,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), "runs/a")

    monkeypatch.setattr("pfedsam.experiment.load.load_options", fail)
    assert call("run", tmp_path / "study.yaml", "--out", tmp_path / "out") == 7
    shown = " ".join(capsys.readouterr().err.split())
    assert f"{os.strerror(number)} (runs/a)" in shown
    assert todo in shown


def test_an_error_of_no_file_keeps_its_traceback(call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ConnectionResetError(errno.ECONNRESET, "reset")

    monkeypatch.setattr("pfedsam.experiment.load.load_options", fail)
    with pytest.raises(ConnectionResetError):
        call("run", tmp_path / "study.yaml", "--out", tmp_path / "out")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("run study.yaml --out o", "Stopped. Nothing is lost: give the same command with --resume."),
        ("bench labels --data d --suite nuclei", "Stopped. Nothing is lost: give the same command again."),
        ("data check study.yaml", "Stopped."),
    ],
)
@pytest.mark.parametrize("kind", [KeyboardInterrupt, typer.Abort])
def test_an_interrupt_tells_how_to_go_on_where_the_command_can(
    call: Call,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: str,
    text: str,
    kind: type[BaseException],
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise kind

    monkeypatch.setattr("pfedsam.experiment.load.load_options", stop)
    monkeypatch.setattr("pfedsam.experiment.load.read_options", stop)
    monkeypatch.setattr("pfedsam.experiment.suite.load_suite", stop)
    assert call(*words.split()) == 130
    assert " ".join(capsys.readouterr().err.split()) == text


def test_the_commands_with_resume_are_those_that_are_said_to_have_it() -> None:
    group = typer.main.get_command(app)
    found = [name for name, one in group.commands.items() if any(p.name == "resume" for p in one.params)]
    assert sorted(found) == sorted(_WITH_RESUME)


def test_a_usage_error_is_exit_code_2(call: Call, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("run") == 2
    assert "Missing argument" in capsys.readouterr().err


def test_an_empty_argument_is_refused_before_anything_is_written(
    call: Call, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call("data", "import", "--out", "") == 2
    assert "The argument after 'data import --out' is empty" in " ".join(capsys.readouterr().err.split())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("group", ["coordinator", "site"])
def test_the_commands_that_start_nvflare_say_that_they_need_linux(
    call: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], group: str
) -> None:
    monkeypatch.setattr("pfedsam.cli.console.sys.platform", "darwin")
    assert call(group, "start", "folder") == 8
    assert "need Linux" in " ".join(capsys.readouterr().err.split())
