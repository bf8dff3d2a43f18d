"""`pfedsam site start`: NVFlare's client for one site, in the foreground, until it is told to stop.

Loads no model: this process only starts and ends the others, and has to be quick at both.
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
"""The kit's folder in a site's folder."""
SITE_FOLDER: Final = "PFEDSAM_SITE"
"""The environment variable that tells NVFlare's processes the site's folder."""
CLIENT_CONFIG: Final = "fed_client.json"
"""In the kit's startup/: whom NVFlare's client connects to, and as whom."""
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
"""Holds the process id of `pfedsam site start` while it runs (`core.lock.running_as`)."""
LAUNCHER: Final = "pfedsam.deploy.launchers.SiteJobLauncher"
_MODULE: Final = "nvflare.private.fed.app.client.client_train"


def write_site_policy(workspace: Path, limit: int = MIN_MESSAGE_BYTES) -> None:
    """The site's own rules for NVFlare: no code from outside, no shell, no logs to others, our gate on every result, our guard at the door.

    Args:
        workspace: NVFlare's folder at the site.
        limit: of a message in bytes.
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
        RunError: there is none.
    """
    path = folder / WORKSPACE / "startup" / CLIENT_CONFIG
    try:
        return dict(json.loads(path.read_text("utf-8")))
    except (OSError, ValueError) as error:
        raise RunError("the site has no startup kit; make the site with `pfedsam site init`.") from error


def run_site(folder: Path) -> None:
    """Work for the coordinator until SIGTERM or SIGINT; nothing is left running then.

    Raises:
        RunError: NVFlare's client dies again and again, or an agent of this site runs already.
    """
    folder = folder.resolve()
    options = read_site_options(folder)
    client_config(folder)
    # Anew with every start, so that a newer version of this package brings its rules.
    write_site_policy(folder / WORKSPACE, message_limit((folder / "approved").glob("*.json")))
    settings = ["secure_train=true", f"uid={options.name}", "org=site", "config_folder=config"]
    engine = Engine(_MODULE, folder / WORKSPACE, CLIENT_CONFIG, settings, {SITE_FOLDER: str(folder)})
    refusal = f"an agent of site {options.name!r} already runs in this folder (site.pid names its process): stop that one first."
    with running_as(folder / AGENT, refusal):
        if not engine.serve():
            raise RunError("NVFlare's client ended several times; its last words are in nvflare/engine.log.")
