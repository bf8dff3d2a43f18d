"""A folder is worked in by one process at a time."""

import errno
import fcntl
import subprocess
import sys
from pathlib import Path

import pytest

from pfedsam.core.errors import RunError
from pfedsam.core.lock import exclusive

_HOLD = """
import sys, time
from pathlib import Path
from pfedsam.core.lock import exclusive
with exclusive(Path(sys.argv[1])):
    print(flush=True)
    time.sleep(60)
"""


def test_where_there_are_no_locks_the_log_says_so_and_work_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with exclusive(tmp_path):
        assert "cannot be locked (No locks available)" in caplog.text


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
