"""Processes end together, in whatever way their parent ends."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from pfedsam.deploy import processes
from pfedsam.deploy.processes import Engine, cut_log
from pfedsam.deploy.site_kit import install_kit

CHILD = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
time.sleep(60)
"""


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Engine:
    (tmp_path / "pfedsam_child.py").write_text(CHILD)
    return Engine("pfedsam_child", tmp_path, "none", [], {"PYTHONPATH": str(tmp_path)})


def family(pid: int, count: int) -> list[psutil.Process]:
    limit = time.monotonic() + 60
    while time.monotonic() < limit:
        parent = psutil.Process(pid)
        found = [parent, *parent.children(recursive=True)]
        if len(found) == count:
            return found
        time.sleep(0.05)
    raise AssertionError("the processes did not start")


def test_all_that_was_started_is_ended_also_in_other_sessions(engine: Engine) -> None:
    engine.start()
    everyone = family(engine._process.pid, 2)
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
from pfedsam.deploy.processes import Engine, cut_log
from pfedsam.deploy.site_kit import install_kit
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


STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal(signal.SIGINT, signal.SIG_IGN)
ignore = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
subprocess.Popen([sys.executable, "-c", ignore], start_new_session=True)
time.sleep(60)
"""
SITE = """
import sys
from pathlib import Path
from pfedsam.deploy import site_service
site_service._MODULE = "pfedsam_child"
site_service.run_site(Path(sys.argv[1]))
assert "torch" not in sys.modules
"""


@pytest.fixture
def site(kits: Path, tmp_path: Path) -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    """Starts `pfedsam site start`'s own process, in a site whose NVFlare does not want to end."""
    install_kit(kits / "kits" / "north.zip", tmp_path / "nvflare")
    (tmp_path / "site.yaml").write_text("name: north\ndata: .\n")
    (tmp_path / "pfedsam_child.py").write_text(STUBBORN)
    started = []

    def start() -> subprocess.Popen[bytes]:
        env = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
        started.append(subprocess.Popen([sys.executable, "-c", SITE, str(tmp_path)], env=env))
        return started[-1]

    yield start
    for process in started:
        process.kill()


@pytest.mark.slow
def test_a_site_ends_in_time_on_any_signals_at_any_moment_and_leaves_no_process(site) -> None:
    """Row 23 of docs/reliability.md: SIGTERM and SIGINT, twice. A process with torch took over 15 s, because torch is slow to unload."""
    sent = [signal.SIGTERM, signal.SIGINT]
    for number in range(5):
        process = site()
        everyone = family(process.pid, 3)[1:]
        started = time.monotonic()
        again = 0
        while process.poll() is None and (again <= number or number == 4):  # the fifth time until the very end
            process.send_signal(sent[(number + again) % 2])
            time.sleep(0.2 if number < 4 else 0.001)
            again += 1
        assert process.wait(timeout=30) == 0
        assert time.monotonic() - started < 10
        assert psutil.wait_procs(everyone, timeout=2)[1] == []


@pytest.mark.slow
def test_a_second_agent_of_a_site_is_refused(site, tmp_path: Path) -> None:
    first = site()
    family(first.pid, 3)
    env = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    command = [sys.executable, "-c", SITE, str(tmp_path)]
    second = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert "an agent of site 'north' is already running in this folder" in second.stderr
    assert int((tmp_path / "site.pid").read_text()) == first.pid
    first.terminate()
    assert first.wait(timeout=30) == 0


def test_the_logs_that_nvflare_does_not_limit_are_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cut: list[Path] = []
    monkeypatch.setattr(processes, "cut_log", cut.append)
    engine = Engine("module", tmp_path, "config.json", [], {})
    engine._process = SimpleNamespace(poll=lambda: None)  # it runs
    assert engine.keep_alive()
    assert cut == [tmp_path / "engine.log", tmp_path / "audit.log"]


def test_a_log_that_grew_is_kept_once_and_begun_anew(tmp_path: Path) -> None:
    log = tmp_path / "engine.log"
    log.write_bytes(b"x" * 100)
    with log.open("ab", buffering=0) as writer:  # as NVFlare's process holds it
        cut_log(log, 100)
        assert log.stat().st_size == 100
        cut_log(log, 99)
        writer.write(b"next")
    assert log.read_bytes() == b"next"
    assert (tmp_path / "engine.log.1").read_bytes() == b"x" * 100
