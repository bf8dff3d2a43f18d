"""Row 37 of docs/reliability.md: a member's long messages and idle connections do not fill the coordinator's memory."""

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

pytest.importorskip("nvflare")
from pfedsam.deploy.provision import provision
from pfedsam.deploy.site_kit import install_kit

pytestmark = pytest.mark.system
LIMIT_MB = 300.0


def memory_mb(pid: int) -> float:
    """The resident memory of a process and all that it started."""
    parent = psutil.Process(pid)
    found = 0
    for process in (parent, *parent.children(recursive=True)):
        try:
            found += process.memory_info().rss
        except psutil.Error:
            continue
    return found / 2**20


@contextmanager
def peak_of(pid: int) -> Iterator[list[float]]:
    """The largest memory while the block runs, as the one element of the list once the block has ended."""
    peak, done = [memory_mb(pid)], threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            peak[0] = max(peak[0], memory_mb(pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()


def job_of(fed) -> str:
    """The id of the job that the coordinator runs, from the command of its process."""
    for process in psutil.Process(fed.processes["coordinator"].pid).children(recursive=True):
        words = process.cmdline()
        if "-n" in words and any("runner_process" in word for word in words):
            return words[words.index("-n") + 1]
    raise AssertionError("no process of a job at the coordinator")


def test_long_messages_and_idle_connections_take_no_memory(
    federation, result, record_property: Callable[..., None]
) -> None:
    fed = federation(2, rounds=400)
    fed.submit(join=240)
    fed.init_sites()
    provision(fed.coordinator, "pfedsam", "localhost", fed.port, [*fed.names, "member"])
    install_kit(fed.coordinator / "kits" / "member.zip", fed.root / "member")
    fed.start_all()
    fed.wait_round(2, 400)
    coordinator = fed.processes["coordinator"].pid
    before, first = memory_mb(coordinator), fed.status()["round"]
    program = [sys.executable, str(Path(__file__).with_name("flooder.py")), str(fed.root / "member" / "startup")]
    with peak_of(coordinator) as peak:
        done = subprocess.run(
            [*program, str(fed.port), "member", job_of(fed)], capture_output=True, text=True, timeout=500
        )
    growth = round(peak[0] - before, 1)
    record_property("server_memory_for_hostile_message_mb", int(growth) + 1)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    let_in = [one["what"] for one in found["attempts"] if not one["refused"]]
    assert let_in == ["its own name"], found
    assert found["idle"] == 600, "the check itself"
    assert growth <= LIMIT_MB, found
    fed.wait_round(first + 3)
    assert all(row["accepted"] == fed.names for row in fed.records("aggregate"))
    result(37, server_memory_for_hostile_message_mb=growth, idle_connections=found["idle"])
