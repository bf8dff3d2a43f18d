"""A folder is worked in by one process at a time, a role is held by one, on platforms without `fcntl` too."""

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pfedsam.core.errors import RunError
from pfedsam.core.lock import exclusive, in_turn, refuse_unreadable_name, runner, running_as
from pfedsam.experiment.load import dump_options
from pfedsam.experiment.options import RunOptions

_HOLD = """
import sys, time
from pathlib import Path
from pfedsam.core.lock import exclusive
with exclusive(Path(sys.argv[1])):
    print(flush=True)
    time.sleep(60)
"""
_WITHOUT_FCNTL = """
import importlib, pkgutil, sys, warnings
sys.modules["fcntl"] = None  # an import of it now raises ImportError
warnings.simplefilter("ignore")
import pfedsam
for module in pkgutil.walk_packages(pfedsam.__path__, "pfedsam."):
    if not module.name.startswith(("pfedsam.deploy", "pfedsam.model.attention_kernel", "pfedsam.model.norm_kernel")):
        importlib.import_module(module.name)
from pathlib import Path
from pfedsam.core.errors import RunError
from pfedsam.core.lock import exclusive
from pfedsam.cli.main import main
folder = Path(sys.argv[2]) / "run"
sys.argv = ["pfedsam", "run", sys.argv[1], "--out", str(folder)]
sys.argv += ["--set", "training.rounds=1", "--set", "training.shared_warmup_rounds=0"]
main()
with exclusive(folder):
    try:
        with exclusive(folder):
            print("two at once")
    except RunError:
        print("refused")
with exclusive(folder):
    print("free again")
"""


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_where_there_are_no_locks_the_log_says_so_and_work_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with exclusive(tmp_path), in_turn(tmp_path / "turn"):
        assert f"cannot be locked ({os.strerror(number)})" in caplog.text


def test_who_comes_second_is_refused_until_the_first_has_ended_however_it_did(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with subprocess.Popen([sys.executable, "-c", _HOLD, str(folder)], stdout=subprocess.PIPE) as first:
        assert first.stdout is not None
        first.stdout.readline()
        with pytest.raises(RunError, match="Another process works in 'run'"), exclusive(tmp_path / "cache", folder):
            pass
        first.kill()
    with exclusive(tmp_path / "cache", folder):  # nor is the one that was free still held
        pass


def test_a_folder_that_cannot_be_written_is_not_taken_for_one_without_locks(tmp_path: Path) -> None:
    (tmp_path / ".lock").mkdir()
    with pytest.raises(IsADirectoryError), exclusive(tmp_path):
        pass


def test_a_role_is_held_by_one_process_whose_id_can_be_asked_for(tmp_path: Path) -> None:
    role = tmp_path / "agent.pid"
    role.write_text("1")  # left over from a process that was killed
    assert runner(role) == 0
    with running_as(role, "an agent runs already"):
        assert runner(role) == os.getpid()
        with pytest.raises(RunError, match="an agent runs already"), running_as(role, "an agent runs already"):
            pass
    assert runner(role) == 0


@pytest.mark.slow
def test_the_package_works_where_there_is_no_fcntl(tmp_path: Path, toy_options: RunOptions) -> None:
    """No module outside `deploy` imports it, or hiding it would make that import fail; and a run gets to its end."""
    config = tmp_path / "study.yaml"
    config.write_text(dump_options(toy_options))
    command = [sys.executable, "-c", _WITHOUT_FCNTL, str(config), str(tmp_path)]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.stdout.split("\n")[-3:] == ["refused", "free again", ""], found.stderr
    assert (tmp_path / "run" / "summary.json").exists()


@pytest.mark.parametrize("name", [b"caf\xe9", b"a\xff/b"])
def test_a_folder_whose_path_is_no_text_is_refused_and_not_made(tmp_path: Path, name: bytes) -> None:
    folder = tmp_path / os.fsdecode(name)
    with (
        pytest.raises(RunError, match=r"contains bytes that are not text .*other characters") as caught,
        exclusive(folder / "run"),
    ):
        pass
    str(caught.value).encode("utf-8")  # so that it can be printed
    with pytest.raises(RunError, match="not text"), running_as(folder / "pid", "taken"):
        pass
    assert list(tmp_path.iterdir()) == []
    refuse_unreadable_name(tmp_path / "r\u00fcn \u6771")


def test_a_name_that_the_encoding_of_file_names_lacks_is_refused(tmp_path: Path) -> None:
    """Python reads its arguments in that encoding, and keeps what it cannot read as single surrogates."""
    code = "import sys; from pathlib import Path; from pfedsam.core.lock import *; refuse_unreadable_name(Path(sys.argv[1]))"
    command = [sys.executable, "-c", code, os.fsencode(tmp_path / "r\u00fcn")]
    plain = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    found = subprocess.run(command, env=plain, capture_output=True, text=True, check=False)
    assert "encoding of file names (ascii)" in found.stderr
    assert subprocess.run(command, env={**os.environ, "PYTHONUTF8": "1"}, check=False).returncode == 0
