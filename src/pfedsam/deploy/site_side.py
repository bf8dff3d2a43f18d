"""NVFlare's components at a site: the executor that answers requests, and the filter that is the site's gate.

The coordinator's job names the executor; the site's own `local/privacy.json` names the filter, so that no job can remove it. Both read the
site's folder from the environment variable that `pfedsam site start` sets, so that a job cannot choose another folder.
"""

import os
from pathlib import Path

from nvflare.apis.executor import Executor
from nvflare.apis.filter import Filter
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.apis.signal import Signal

from pfedsam.core.errors import PfedsamError, RunError
from pfedsam.core.log import get_logger
from pfedsam.deploy.site_service import SITE_FOLDER
from pfedsam.deploy.wire import from_shareable, to_shareable
from pfedsam.engine.site_agent import SiteAgent, SiteFolder
from pfedsam.federation.messages import reply_to_wire, request_from_wire
from pfedsam.federation.site_policy import Gate

_LOG = get_logger(__name__)


class SiteExecutor(Executor):  # type: ignore[misc]
    """Answers the coordinator's requests; the site's model stays in memory between requests."""

    def __init__(self, sites_root: str = "") -> None:
        """Called by NVFlare.

        Args:
            sites_root: the folder that contains the sites' folders; only for the simulator, where all sites share one environment.
        """
        super().__init__()
        self._sites_root = sites_root
        self._agent: SiteAgent | None = None

    def execute(self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal) -> Shareable:
        """Reply to one request; if it cannot be read, with a return code and not with an exception, whose text NVFlare would log."""
        try:
            request = request_from_wire(from_shareable(shareable))
            if self._agent is None:
                self._agent = SiteAgent(SiteFolder(site_folder(self._sites_root, fl_ctx.get_identity_name())))
            return to_shareable(reply_to_wire(self._agent.handle(request)))
        except PfedsamError as error:
            _LOG.error("request %r: %s", task_name, error)
            return make_reply(ReturnCode.BAD_TASK_DATA)


class SiteGate(Filter):  # type: ignore[misc]
    """Releases what the site's operator approved, after an entry in the ledger; NVFlare's bare return codes are released too."""

    def __init__(self, sites_root: str = "") -> None:
        """Called by NVFlare; for `sites_root` see `SiteExecutor`."""
        super().__init__()
        self._sites_root = sites_root
        self._gate: Gate | None = None

    def process(self, shareable: Shareable, fl_ctx: FLContext) -> Shareable:
        """Return a new message with only what may leave. If the ledger cannot be written this raises, and nothing leaves."""
        if self._gate is None:
            name = fl_ctx.get_identity_name()
            self._gate = Gate(site_folder(self._sites_root, name), name)
        if shareable.get_return_code() != ReturnCode.OK:
            return make_reply(shareable.get_return_code())
        return to_shareable(self._gate.release(from_shareable(shareable)))


def site_folder(sites_root: str, name: str) -> Path:
    """The folder of this process's site.

    Raises:
        RunError: the folder is not known, because the process was not started by `pfedsam site start`.
    """
    own = os.environ.get(SITE_FOLDER)
    if own:
        return Path(own)
    if sites_root:
        return Path(sites_root) / name
    raise RunError("the site's folder is not set for this process; start it with `pfedsam site start`.")
