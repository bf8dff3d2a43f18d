"""`pfedsam site start`: runs NVFlare's client for one site in the foreground until it is stopped.

This process loads no model: it only starts and ends other processes, and has to do both quickly.
"""

import json
from pathlib import Path
from typing import Any, Final

from pfedsam.core import atomic
from pfedsam.core.errors import RunError
from pfedsam.core.lock import running_as
from pfedsam.deploy.limits import MIN_MESSAGE_BYTES, connection_settings, message_limit
from pfedsam.deploy.processes import Engine
from pfedsam.engine.site_options import read_site_options

WORKSPACE: Final = "nvflare"
"""The folder of NVFlare's workspace in a site's folder; the kit is unpacked there."""
SITE_FOLDER: Final = "PFEDSAM_SITE"
"""The environment variable that holds the site's folder, for NVFlare's processes."""
CLIENT_CONFIG: Final = "fed_client.json"
"""The file in the kit's `startup/` with the coordinator's address and the site's identity."""
_ORG_ADMIN_RIGHTS: Final = (
    "submit_job",
    "clone_job",
    "manage_job",
    "download_job",
    "view",
    "operate",
    "shell_commands",
)
GATE: Final = "pfedsam.deploy.site_side.SiteGate"
SITE_GUARD: Final = "pfedsam.deploy.site_guard.SiteGuard"
AGENT: Final = "site.pid"
"""The file with the process id of `pfedsam site start` while it runs (`core.lock.running_as`)."""
LAUNCHER: Final = "pfedsam.deploy.launchers.SiteJobLauncher"
_MODULE: Final = "nvflare.private.fed.app.client.client_train"


def write_site_policy(workspace: Path, limit: int = MIN_MESSAGE_BYTES) -> None:
    """Write the site's rules for NVFlare: no foreign code, no shell, no logs sent out; a gate checks every result, a guard every request.

    Args:
        workspace: NVFlare's folder at the site.
        limit: the largest message in bytes.
    """
    local = workspace / "local"
    manager = "nvflare.app_common.resource_managers.passthrough_resource_manager.PassthroughResourceManager"
    atomic.write_json(
        local / "resources.json",
        {
            "format_version": 2,
            "class_list_enforcement_mode": "enforce",
            "class_allow_list": ["pfedsam.deploy.site_side.", "pfedsam.deploy.site_guard."],
            "allow_log_streaming": False,
            "client": {"retry_timeout": 30, "compression": "Gzip"},
            "components": [
                {"id": "resource_manager", "path": manager, "args": {}},
                {"id": "process_launcher", "path": LAUNCHER, "args": {}},
                {"id": "guard", "path": SITE_GUARD, "args": {}},
            ],
        },
    )
    plain = "%(asctime)s %(levelname)s %(name)s: %(message)s"
    rotating = {"class": "logging.handlers.RotatingFileHandler", "maxBytes": 20 * 2**20, "backupCount": 5}
    file = {**rotating, "filename": "log.txt", "mode": "a", "level": "INFO", "formatter": "plain"}
    atomic.write_json(
        local / "log_config.json",
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {"plain": {"format": plain}},
            "handlers": {"logFileHandler": file},
            "loggers": {"root": {"level": "INFO", "handlers": ["logFileHandler"]}},
        },
    )
    gate = {"path": GATE, "args": {}}
    atomic.write_json(
        local / "privacy.json",
        {
            "scopes": [{"name": "pfedsam", "properties": {}, "task_result_filters": [gate], "task_data_filters": []}],
            "default_scope": "pfedsam",
        },
    )
    nothing = dict.fromkeys((*_ORG_ADMIN_RIGHTS, "byoc", "server-predeployed-flwr"), "none")
    run_jobs = {**nothing, "submit_job": "any", "manage_job": "any", "view": "any", "operate": "any"}
    roles = {"project_admin": run_jobs, "org_admin": nothing, "lead": nothing, "member": nothing}
    atomic.write_json(local / "comm_config.json", connection_settings(limit))
    atomic.write_json(local / "authorization.json", {"format_version": "1.0", "permissions": roles})


def client_config(folder: Path) -> dict[str, Any]:
    """The kit's `fed_client.json`.

    Raises:
        RunError: the site has no startup kit.
    """
    path = folder / WORKSPACE / "startup" / CLIENT_CONFIG
    try:
        return dict(json.loads(path.read_text("utf-8")))
    except (OSError, ValueError) as error:
        raise RunError("the site has no startup kit; make the site with `pfedsam site init`.") from error


def run_site(folder: Path) -> None:
    """Serve the coordinator's requests until SIGTERM or SIGINT, and then end all processes that were started.

    Raises:
        RunError: NVFlare's client died too often, or an agent of this site is running already.
    """
    folder = folder.resolve()
    options = read_site_options(folder)
    client_config(folder)
    # Written at every start, so that the rules of a newer version of this package take effect.
    write_site_policy(folder / WORKSPACE, message_limit((folder / "approved").glob("*.json")))
    settings = ["secure_train=true", f"uid={options.name}", "org=site", "config_folder=config"]
    engine = Engine(_MODULE, folder / WORKSPACE, CLIENT_CONFIG, settings, {SITE_FOLDER: str(folder)})
    refusal = f"an agent of site {options.name!r} is already running in this folder (site.pid contains its process id): stop it first."
    with running_as(folder / AGENT, refusal):
        if not engine.serve():
            raise RunError("NVFlare's client ended several times; see the end of nvflare/engine.log for the reason.")
