"""`pfedsam site start`: NVFlare's client for one site, in the foreground, until it is told to stop.

Loads no model: this process only starts and ends the others, and has to be quick at both.
"""

import json
from pathlib import Path
from typing import Any, Final

from pfedsam.core.errors import RunError
from pfedsam.deploy.processes import Engine
from pfedsam.engine.site_options import read_site_options

WORKSPACE: Final = "nvflare"
"""The kit's folder in a site's folder."""
SITE_FOLDER: Final = "PFEDSAM_SITE"
"""The environment variable that tells NVFlare's processes the site's folder."""
CLIENT_CONFIG: Final = "fed_client.json"
"""In the kit's startup/: whom NVFlare's client connects to, and as whom."""
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
        RunError: NVFlare's client dies again and again.
    """
    folder = folder.resolve()
    options = read_site_options(folder)
    client_config(folder)
    settings = ["secure_train=true", f"uid={options.name}", "org=site", "config_folder=config"]
    engine = Engine(_MODULE, folder / WORKSPACE, CLIENT_CONFIG, settings, {SITE_FOLDER: str(folder)})
    if not engine.serve():
        raise RunError("NVFlare's client ended several times; its last words are in nvflare/engine.log.")
