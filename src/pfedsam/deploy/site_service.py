"""`pfedsam site start`: NVFlare's client for one site, in the foreground, until it is told to stop.

Loads no model: this process only starts and ends the others, and has to be quick at both.
"""

import json
from pathlib import Path
from typing import Any, Final

from pfedsam.core import atomic
from pfedsam.core.errors import RunError
from pfedsam.core.lock import running_as
from pfedsam.deploy.processes import Engine
from pfedsam.engine.site_options import read_site_options

WORKSPACE: Final = "nvflare"
"""The kit's folder in a site's folder."""
SITE_FOLDER: Final = "PFEDSAM_SITE"
"""The environment variable that tells NVFlare's processes the site's folder."""
CLIENT_CONFIG: Final = "fed_client.json"
"""In the kit's startup/: whom NVFlare's client connects to, and as whom."""
AGENT: Final = "site.pid"
"""Holds the process id of `pfedsam site start` while it runs (`core.lock.running_as`)."""
LAUNCHER: Final = "pfedsam.deploy.launchers.SiteJobLauncher"
_OLD_LAUNCHER: Final = "nvflare.app_common.job_launcher.client_process_launcher.ClientProcessJobLauncher"
_MODULE: Final = "nvflare.private.fed.app.client.client_train"


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
    _use_own_launcher(folder / WORKSPACE / "local" / "resources.json")
    settings = ["secure_train=true", f"uid={options.name}", "org=site", "config_folder=config"]
    engine = Engine(_MODULE, folder / WORKSPACE, CLIENT_CONFIG, settings, {SITE_FOLDER: str(folder)})
    refusal = f"an agent of site {options.name!r} already runs in this folder (site.pid names its process): stop that one first."
    with running_as(folder / AGENT, refusal):
        if not engine.serve():
            raise RunError("NVFlare's client ended several times; its last words are in nvflare/engine.log.")


def _use_own_launcher(resources: Path) -> None:
    """Give a site that version 0.1 made the launcher whose processes end with it (`deploy.launchers`)."""
    if resources.exists():
        text = resources.read_text("utf-8")
        if _OLD_LAUNCHER in text:
            atomic.write_text(resources, text.replace(_OLD_LAUNCHER, LAUNCHER))
