"""The process of a job ends with the process that started it, also while it is starting."""

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from pfedsam.deploy.attached import attached_command

PARENT = """
import os, subprocess, sys
from pfedsam.deploy.attached import attached_command
command = attached_command([sys.executable, "-u", "-m", "pfedsam_job", "--job", "1"], os.getpid())
child = subprocess.Popen(command, start_new_session=True)
print(child.pid, flush=True)
input()
"""
JOB = """
import sys, time
from pathlib import Path
Path("seen").write_text(" ".join(sys.argv[1:]))
time.sleep(60)
"""


def test_the_command_runs_the_same_module_with_the_same_words() -> None:
    command = attached_command(["python3", "-u", "-m", "nvflare.worker", "-m", "/work", "--set", "a=1"], 7)
    assert command[:5] == ["python3", "-u", "-m", "pfedsam.deploy.attached", "7"]
    assert command[5:] == ["nvflare.worker", "-m", "/work", "--set", "a=1"]


@pytest.mark.parametrize("started", [False, True])
def test_it_ends_when_its_parent_is_killed_while_it_starts_or_later(tmp_path: Path, started: bool) -> None:
    (tmp_path / "pfedsam_job.py").write_text(JOB)
    with subprocess.Popen(
        [sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=tmp_path
    ) as parent:
        job = psutil.Process(int(parent.stdout.readline()))
        while started and not (tmp_path / "seen").exists():
            assert job.is_running()
        parent.kill()
        parent.wait()
        psutil.wait_procs([job], timeout=15)
    assert not job.is_running()
    if started:
        assert (tmp_path / "seen").read_text() == "--job 1"
