"""`pfedsam site start`: NVFlare's client for one site, in the foreground, until it is told to stop."""

import json
import time
from pathlib import Path
from typing import Any, Final

from pfedsam.core.errors import RunError
from pfedsam.runtime.nvflare.processes import Engine, StopFlag
from pfedsam.runtime.nvflare.site_side import SITE_FOLDER
from pfedsam.runtime.site_agent import read_site_options

WORKSPACE: Final = "nvflare"
"""The kit's folder in a site's folder."""
_MODULE: Final = "nvflare.private.fed.app.client.client_train"


def client_config(folder: Path) -> dict[str, Any]:
    """The kit's `fed_client.json`.

    Raises:
        RunError: there is none.
    """
    path = folder / WORKSPACE / "startup" / "fed_client.json"
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
    stop = StopFlag()
    stop.install()
    settings = ["secure_train=true", f"uid={options.name}", "org=site", "config_folder=config"]
    engine = Engine(_MODULE, folder / WORKSPACE, "fed_client.json", settings, {SITE_FOLDER: str(folder)})
    engine.start()
    try:
        while not stop.is_set:
            if not engine.keep_alive():
                raise RunError("NVFlare's client ended several times; its last words are in nvflare/engine.log.")
            time.sleep(0.5)
    finally:
        engine.end()
