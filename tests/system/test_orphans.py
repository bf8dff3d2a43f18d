"""Row 36 of docs/reliability.md: no process of a site is left after `pfedsam site start` was killed while its processes were starting."""

import random
import time
from collections.abc import Callable

import psutil
import pytest

pytest.importorskip("nvflare")
from pfedsam.deploy.site_service import SITE_FOLDER

pytestmark = pytest.mark.system
KILLS = 10
LIMIT_S = 15.0


def of_site(folder: str) -> list[psutil.Process]:
    """All processes of NVFlare that work for a site, whoever their parent is now."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(SITE_FOLDER) == folder and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def is_job(process: psutil.Process) -> bool:
    try:
        return any("worker_process" in word for word in process.cmdline())
    except psutil.Error:
        return False


def test_ten_kills_during_start_leave_no_process(federation, record_property: Callable[..., None]) -> None:
    fed = federation(2, rounds=4000)
    # A site that is killed before its process of the job is connected is waited for until `join`, and then gets a new job.
    fed.submit(join=20, quorum=1)
    fed.init_sites()
    fed.start_all()
    name, chance = fed.names[0], random.Random(3)
    folder = str(fed.site(name).resolve())
    left: list[psutil.Process] = []
    jobs = made = 0
    try:
        for kill in range(KILLS):
            if kill > 0:
                fed.start(name)
            if kill % 2 == 0:  # once the process of the job is there, and before it has imported what it needs
                fed.wait_for(lambda: any(map(is_job, of_site(folder))), 240, "a job's process at the site")
                jobs += 1
                time.sleep(chance.uniform(0, 4))
            else:
                time.sleep(chance.uniform(0.5, 8))
            fed.processes[name].kill()
            fed.processes[name].wait()
            made += 1
            limit = time.monotonic() + LIMIT_S
            while of_site(folder) and time.monotonic() < limit:
                time.sleep(0.25)
            left += of_site(folder)
            for process in left:
                process.kill()
    finally:
        record_property("orphan_processes", len(left))
        record_property("kills_during_start", made)
    assert left == []
    assert made == KILLS
    assert jobs == KILLS // 2
