"""A study as an NVFlare job: two small configurations that name our classes, and no code. Also its run in the simulator."""

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from pfedsam.core.errors import RunError
from pfedsam.deploy.site_service import GATE
from pfedsam.federation.manifest import Task

CLASSES = ("pfedsam.deploy.",)
"""The classes that a job may name in the simulator, which plays both sides; a kit allows its own side alone (`provision`)."""
_CONTROLLER = "pfedsam.deploy.controller.StudyController"
_EXECUTOR = "pfedsam.deploy.site_side.SiteExecutor"
GUARD = "pfedsam.deploy.guard.CoordinatorGuard"


def write_job(folder: Path, study: str, sites: Sequence[str], *, studies_root: str = "", sites_root: str = "") -> Path:
    """Write the job of a study into `folder`, which is emptied, and say where.

    Args:
        folder: of the job.
        study: the study's id.
        sites: that the study names; the job is sent to no other member of the federation.
        studies_root: simulator only, as of `StudyController`.
        sites_root: simulator only, as of `SiteExecutor`; the job then also brings the gate, which real sites have of their own.
    """
    shutil.rmtree(folder, ignore_errors=True)
    config = folder / "app" / "config"
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
        "workflows": [{"id": "study", "path": _CONTROLLER, "args": {"study": study, "studies_root": studies_root}}],
        "components": [],
        "task_data_filters": [],
        "task_result_filters": [],
    }
    # A chain of a job's own knows no "*"; the site's own chain holds for every task.
    gates = (
        [{"tasks": list(get_args(Task)), "filters": [{"path": GATE, "args": {"sites_root": sites_root}}]}]
        if sites_root
        else []
    )
    client: dict[str, Any] = {
        "format_version": 2,
        "executors": [{"tasks": ["*"], "executor": {"path": _EXECUTOR, "args": {"sites_root": sites_root}}}],
        "components": [],
        "task_data_filters": [],
        "task_result_filters": gates,
    }
    (folder / "meta.json").write_text(json.dumps(meta, indent=2))
    (config / "config_fed_server.json").write_text(json.dumps(server, indent=2))
    (config / "config_fed_client.json").write_text(json.dumps(client, indent=2))
    return folder


def simulate(study_folder: Path, sites_root: Path, names: Sequence[str], work: Path, *, timeout_s: float = 900) -> None:
    """Run a study in NVFlare's simulator, each site in a process of its own.

    Args:
        study_folder: made by `create_study`.
        sites_root: holds a site's folder under each name.
        names: of the sites.
        work: a folder for the simulator.
        timeout_s: after which it is ended.

    Raises:
        RunError: the simulator failed, or took too long.
    """
    job = write_job(
        work / "job", study_folder.name, names, studies_root=str(study_folder.parent), sites_root=str(sites_root)
    )
    local = work / "workspace" / "local"
    local.mkdir(parents=True, exist_ok=True)
    (local / "resources.json").write_text(json.dumps({"format_version": 2, "class_allow_list": list(CLASSES)}))
    command = [sys.executable, "-m", "nvflare.private.fed.app.simulator.simulator", str(job)]
    command += ["-w", str(work / "workspace"), "-c", ",".join(names), "-t", str(len(names))]
    with (work / "simulator.log").open("wb") as log:
        try:
            code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, timeout=timeout_s).returncode
        except subprocess.TimeoutExpired as error:
            raise RunError(f"the simulator did not end within {timeout_s:.0f} s; see simulator.log.") from error
    if code:
        raise RunError(f"the simulator ended with code {code}; see simulator.log.")
