"""A site's rules for NVFlare (`nvflare/local/`): the only files beside `startup/` that NVFlare's client takes its configuration from.

The site writes them at `site init` and again at every start, and removes everything else from the folder: NVFlare would also read further
`*resources.json` files there, and would add the folder `custom/` to the path on which Python finds modules.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pfedsam.core import atomic
from pfedsam.core.log import MAX_BYTES
from pfedsam.deploy.jobs import EXECUTOR
from pfedsam.deploy.limits import CONNECTIONS, MIN_MESSAGE_BYTES, connection_settings

LOCAL: Final = "local"
_GATE: Final = "pfedsam.deploy.site_side.SiteGate"
_GUARD: Final = "pfedsam.deploy.site_guard.SiteGuard"
_LAUNCHER: Final = "pfedsam.deploy.launchers.SiteJobLauncher"
_RESOURCES: Final = "nvflare.app_common.resource_managers.passthrough_resource_manager.PassthroughResourceManager"
_RIGHTS: Final = (
    "submit_job",
    "clone_job",
    "manage_job",
    "download_job",
    "view",
    "operate",
    "shell_commands",
)


def write_site_rules(workspace: Path, limit: int = MIN_MESSAGE_BYTES) -> None:
    """Write the site's rules for NVFlare, and remove all other files of their folder.

    The rules are: no foreign code, no shell, no logs sent out; a gate checks every result, a guard every request.

    Args:
        workspace: NVFlare's folder at the site.
        limit: the largest message in bytes.
    """
    local = workspace / LOCAL
    local.mkdir(parents=True, exist_ok=True, mode=0o700)
    local.chmod(0o700)
    rules: Mapping[str, object] = {
        "resources.json": _resources(),
        "log_config.json": _logging(),
        "privacy.json": _privacy(),
        CONNECTIONS: connection_settings(limit),
        "authorization.json": _permissions(),
    }
    for path in local.iterdir():
        if path.name not in rules:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    for name, content in rules.items():
        atomic.write_json(local / name, content)


def _resources() -> dict[str, Any]:
    """The components of NVFlare's client, and the classes that a job may name."""
    return {
        "format_version": 2,
        "class_list_enforcement_mode": "enforce",
        "class_allow_list": [EXECUTOR],
        "allow_log_streaming": False,
        "client": {"retry_timeout": 30, "compression": "Gzip"},
        "components": [
            {"id": "resource_manager", "path": _RESOURCES, "args": {}},
            {"id": "process_launcher", "path": _LAUNCHER, "args": {}},
            {"id": "guard", "path": _GUARD, "args": {}},
        ],
    }


def _logging() -> dict[str, Any]:
    plain = "%(asctime)s %(levelname)s %(name)s: %(message)s"
    rotating = {"class": "logging.handlers.RotatingFileHandler", "maxBytes": MAX_BYTES, "backupCount": 1}
    file = {**rotating, "filename": "log.txt", "mode": "a", "level": "INFO", "formatter": "plain"}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"plain": {"format": plain}},
        "handlers": {"logFileHandler": file},
        "loggers": {"root": {"level": "INFO", "handlers": ["logFileHandler"]}},
    }


def _privacy() -> dict[str, Any]:
    """One scope, and it is the default, so that the gate is in every job."""
    gate = {"path": _GATE, "args": {}}
    return {
        "scopes": [{"name": "pfedsam", "properties": {}, "task_result_filters": [gate], "task_data_filters": []}],
        "default_scope": "pfedsam",
    }


def _permissions() -> dict[str, Any]:
    nothing = dict.fromkeys((*_RIGHTS, "byoc", "server-predeployed-flwr"), "none")
    run_jobs = {**nothing, "submit_job": "any", "manage_job": "any", "view": "any", "operate": "any"}
    roles = {"project_admin": run_jobs, "org_admin": nothing, "lead": nothing, "member": nothing}
    return {"format_version": "1.0", "permissions": roles}
