"""Processes end together, however their parent ends."""

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from pfedsam.runtime.nvflare.processes import Engine

CHILD = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
time.sleep(60)
"""


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Engine:
    (tmp_path / "pfedsam_child.py").write_text(CHILD)
    return Engine("pfedsam_child", tmp_path, "none", [], {"PYTHONPATH": str(tmp_path)})


def children(engine: Engine, count: int) -> list[psutil.Process]:
    limit = time.monotonic() + 20
    while time.monotonic() < limit:
        parent = psutil.Process(engine._process.pid)
        found = [parent, *parent.children(recursive=True)]
        if len(found) == count:
            return found
        time.sleep(0.05)
    raise AssertionError("the processes did not start")


def test_all_that_was_started_is_ended_also_in_other_sessions(engine: Engine) -> None:
    engine.start()
    everyone = children(engine, 2)
    assert engine.alive
    engine.end()
    assert not engine.alive
    gone, alive = psutil.wait_procs(everyone, timeout=5)
    assert (len(gone), alive) == (2, [])


def test_what_dies_is_started_again_but_not_without_end(engine: Engine) -> None:
    engine._command = [sys.executable, "-c", "pass"]
    engine.start()
    starts = 0
    while True:
        engine._process.wait(timeout=20)
        if not engine.keep_alive():
            break
        starts += 1
    assert starts == 4


def test_it_dies_with_the_parent(tmp_path: Path) -> None:
    (tmp_path / "pfedsam_child.py").write_text("import time; time.sleep(60)")
    program = f"""
import time
from pathlib import Path
from pfedsam.runtime.nvflare.processes import Engine
engine = Engine("pfedsam_child", Path({str(tmp_path)!r}), "none", [], {{"PYTHONPATH": {str(tmp_path)!r}}})
engine.start()
print(engine._process.pid, flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        pid = int(parent.stdout.readline())
        child = psutil.Process(pid)
        parent.kill()
        parent.wait()
        child.wait(timeout=5)
        assert not child.is_running()
