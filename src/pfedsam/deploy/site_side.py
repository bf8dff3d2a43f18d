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
from pfedsam.core.log import add_file, get_logger
from pfedsam.deploy.site_service import SITE_FOLDER
from pfedsam.deploy.wire import from_shareable, to_shareable
from pfedsam.engine.site_agent import SiteAgent, SiteFolder
from pfedsam.engine.site_options import LOG
from pfedsam.federation.messages import reply_to_wire, request_from_wire
from pfedsam.federation.site_policy import Gate

_LOG = get_logger(__name__)


class SiteExecutor(Executor):  # type: ignore[misc]
    """Answers the coordinator's requests; the site's model stays in memory between requests."""

    def __init__(self) -> None:
        super().__init__()
        self._agent: SiteAgent | None = None

    def execute(self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal) -> Shareable:
        """Reply to one request; if it cannot be read, with a return code and not with an exception, whose text NVFlare would log."""
        try:
            add_file(site_folder() / LOG)
            request = request_from_wire(from_shareable(shareable))
            if self._agent is None:
                self._agent = SiteAgent(SiteFolder(site_folder()))
            return to_shareable(reply_to_wire(self._agent.handle(request)))
        except PfedsamError as error:
            _LOG.error("request %r: %s", task_name, error)
            return make_reply(ReturnCode.BAD_TASK_DATA)


class SiteGate(Filter):  # type: ignore[misc]
    """Releases what the site's operator approved, after an entry in the ledger; NVFlare's bare return codes are released too."""

    def __init__(self) -> None:
        super().__init__()
        self._gate: Gate | None = None

    def process(self, shareable: Shareable, fl_ctx: FLContext) -> Shareable:
        """Return a new message with only what may leave. If the ledger cannot be written this raises, and nothing leaves."""
        if self._gate is None:
            self._gate = Gate(site_folder(), fl_ctx.get_identity_name())
        if shareable.get_return_code() != ReturnCode.OK:
            return make_reply(shareable.get_return_code())
        return to_shareable(self._gate.release(from_shareable(shareable)))


def site_folder() -> Path:
    """The folder of this process's site.

    Raises:
        RunError: the folder is not known, because the process was not started by `pfedsam site start`.
    """
    if own := os.environ.get(SITE_FOLDER):
        return Path(own)
    raise RunError("the site's folder is not set for this process; start it with `pfedsam site start`.")
