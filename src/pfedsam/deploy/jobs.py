"""A study as an NVFlare job: two small configurations that name our classes, and no code."""

import contextlib
import json
import re
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

EXECUTOR: Final = "pfedsam.deploy.site_side.SiteExecutor"
"""The only class that a job may name at a site."""
GUARD: Final = "pfedsam.deploy.guard.CoordinatorGuard"
CONFIG_FOLDER: Final = "config"
CLIENT_FILE: Final = "config_fed_client.json"
SERVER_FILE: Final = "config_fed_server.json"
JOB_ID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
"""A UUID, as NVFlare's server gives to every job; at a site, the folder of the job in NVFlare's workspace has this name."""
KEPT_JOBS: Final = 5
"""The number of jobs whose folders, which contain their logs, are kept at a site."""
_CLOCK_S: Final = 3600.0
"""Seconds by which the clock of a file server may be ahead of that of this machine."""
_CONTROLLER: Final = "pfedsam.deploy.controller.StudyController"


def write_job(folder: Path, study: str, sites: Sequence[str], *, may_wait: bool = False) -> Path:
    """Write the job of a study into `folder`, whose content is deleted first, and return that folder.

    Args:
        folder: the folder of the job.
        study: the study's id.
        sites: names of the sites of the study; the job is sent to no other member of the federation.
        may_wait: whether a study without a round waits for sites that may still join (`engine.rounds.StudyRun`).
    """
    shutil.rmtree(folder, ignore_errors=True)
    config = folder / "app" / CONFIG_FOLDER
    config.mkdir(parents=True)
    meta = {
        "name": study,
        "resource_spec": {},
        "deploy_map": {"app": ["server", *sites]},
        "min_clients": 1,
        "mandatory_clients": [],
    }
    server: dict[str, Any] = {
        "format_version": 2,
        "server": {"task_request_interval": 0.2},
        "workflows": [{"id": "study", "path": _CONTROLLER, "args": {"study": study, "may_wait": may_wait}}],
        "components": [],
        "task_data_filters": [],
        "task_result_filters": [],
    }
    client: dict[str, Any] = {
        "format_version": 2,
        "executors": [{"tasks": ["*"], "executor": {"path": EXECUTOR, "args": {}}}],
        "components": [],
        "task_data_filters": [],
        "task_result_filters": [],
    }
    (folder / "meta.json").write_text(json.dumps(meta, indent=2))
    (config / SERVER_FILE).write_text(json.dumps(server, indent=2))
    (config / CLIENT_FILE).write_text(json.dumps(client, indent=2))
    return folder


def remove_old_jobs(workspace: Path) -> None:
    """Remove the folders of all but the last jobs from NVFlare's workspace.

    NVFlare itself never removes those at a site, and at the coordinator not those of jobs that were ended together with the server.
    Jobs run one after another, so that the job that is running now is the last one. A folder whose time is far in the future is of an old
    job: the clock of the machine was set back since.
    """
    with contextlib.suppress(OSError):  # a problem with an old folder must not end the process
        folders = [path for path in workspace.iterdir() if JOB_ID.fullmatch(path.name) and path.is_dir()]
        times = {path: path.stat().st_mtime for path in folders}
        latest = time.time() + _CLOCK_S
        for folder in sorted(folders, key=lambda path: times[path] if times[path] < latest else 0.0)[:-KEPT_JOBS]:
            shutil.rmtree(folder)
