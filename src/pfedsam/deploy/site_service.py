"""`pfedsam site start`: runs NVFlare's client for one site in the foreground until it is stopped.

This process loads no model: it only starts and ends other processes, and has to do both quickly.
"""

import socket
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from pfedsam.core.errors import RunError
from pfedsam.core.lock import running_as
from pfedsam.deploy.jobs import remove_old_jobs
from pfedsam.deploy.keys import SOON
from pfedsam.deploy.limits import message_limit, written_limit
from pfedsam.deploy.processes import Engine
from pfedsam.deploy.site_kit import CLIENT_CONFIG, STARTUP, check_startup, valid_until, write_client_config
from pfedsam.deploy.site_rules import LOCAL, write_site_rules
from pfedsam.engine.site_options import AGENT, read_site_options

WORKSPACE: Final = "nvflare"
"""The folder of NVFlare's workspace in a site's folder."""
SITE_FOLDER: Final = "PFEDSAM_SITE"
"""The environment variable that holds the site's folder, for NVFlare's processes."""
_MODULE: Final = "nvflare.private.fed.app.client.client_train"
_TIMEOUT_S: Final = 5.0


def run_site(folder: Path, each_time: Callable[[], object] = lambda: None) -> None:
    """Serve the coordinator's requests until SIGTERM or SIGINT, and then end all processes that were started.

    Args:
        folder: the site's folder.
        each_time: called about every second.

    Raises:
        RunError: NVFlare's client died too often, an agent of this site is running already, or the startup kit is missing or was changed.
    """
    folder = folder.resolve()
    options, workspace = read_site_options(folder), folder / WORKSPACE
    settings = ["secure_train=true", f"uid={options.name}", "org=site", "config_folder=config"]
    engine = Engine(_MODULE, workspace, CLIENT_CONFIG, settings, {SITE_FOLDER: str(folder)})
    refusal = f"an agent of site {options.name!r} is already running in this folder (site.pid contains its process id): stop it first."
    with running_as(folder / AGENT, refusal):
        _prepare(folder)

        def each_second() -> None:
            remove_old_jobs(workspace)
            each_time()

        if not engine.serve(each_second):
            raise RunError(
                "NVFlare's client ended several times; see the end of nvflare/engine.log and nvflare/log.txt for the reason."
            )


def _prepare(folder: Path) -> None:
    """Check the installed kit and write all that NVFlare's client is configured with.

    The files are written at every start, so that the rules of a newer version of this package take effect.

    Raises:
        RunError: the startup kit is missing or was changed.
    """
    startup = folder / WORKSPACE / STARTUP
    write_client_config(startup, check_startup(startup))
    write_site_rules(folder / WORKSPACE, _needed_limit(folder))


def limit_is_too_small(folder: Path) -> bool:
    """Whether an approved study has longer messages than NVFlare's client accepts, which reads its limit when it starts."""
    return _needed_limit(folder) > written_limit(folder / WORKSPACE / LOCAL)


def _needed_limit(folder: Path) -> int:
    return message_limit((folder / "approved").glob("*.json"))


def coordinator_of(folder: Path) -> tuple[str, str | None]:
    """The coordinator's address, and why it cannot be reached; the reason is None if something listens there.

    Raises:
        RunError: the site's startup kit is missing or was changed.
    """
    settings = check_startup(folder / WORKSPACE / STARTUP)
    try:
        socket.create_connection((settings.host, settings.port), timeout=_TIMEOUT_S).close()
    except OSError as error:
        return f"{settings.host}:{settings.port}", error.strerror or "no reply"
    return f"{settings.host}:{settings.port}", None


def warning_of_expiry(folder: Path) -> str | None:
    """What to tell the operator if the site's certificate has expired or will soon; None if it is valid for long enough.

    Raises:
        RunError: the site's startup kit is missing or was changed.
    """
    startup = folder / WORKSPACE / STARTUP
    name = check_startup(startup).site
    end = valid_until(startup)
    if end - datetime.now(UTC) > SOON:
        return None
    return (
        f"The certificate of this site ends on {end:%Y-%m-%d}; after that, the site cannot connect. Renew it: run `pfedsam site request "
        f"{folder} --name {name}`, let the coordinator sign the request, and run `pfedsam site renew {folder} --kit KIT`."
    )
