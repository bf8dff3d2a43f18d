"""A study as an NVFlare job: two small configurations that name our classes, without code. Also runs a study in NVFlare's simulator."""

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
"""Prefixes of the classes that a job may name in the simulator, which runs both sides; each side of a deployment allows only its own."""
_CONTROLLER = "pfedsam.deploy.controller.StudyController"
_EXECUTOR = "pfedsam.deploy.site_side.SiteExecutor"
GUARD = "pfedsam.deploy.guard.CoordinatorGuard"


def write_job(folder: Path, study: str, sites: Sequence[str], *, studies_root: str = "", sites_root: str = "") -> Path:
    """Write the job of a study into `folder`, whose content is deleted first, and return that folder.

    Args:
        folder: the folder of the job.
        study: the study's id.
        sites: the sites of the study; the job is sent to no other site of the federation.
        studies_root: only for the simulator; see `StudyController`.
        sites_root: only for the simulator; see `SiteExecutor`. The job then also contains the gate, which real sites configure themselves.
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
    # In a job's own filter chain NVFlare does not accept "*" for the tasks; in a site's own chain no tasks need to be named.
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
    """Run a study in NVFlare's simulator, with one process for each site.

    Args:
        study_folder: the study's folder, made by `create_study`.
        sites_root: contains one folder for each site, with the site's name.
        names: the names of the sites.
        work: the simulator's working folder.
        timeout_s: the simulator is stopped after this time.

    Raises:
        RunError: the simulator failed, or did not end within `timeout_s`.
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
