"""NVFlare's launchers, changed so that a job's process ends with the process that started it (see `attached`)."""

import os
import shlex

from nvflare.apis.fl_context import FLContext
from nvflare.app_common.job_launcher.client_process_launcher import ClientProcessJobLauncher
from nvflare.app_common.job_launcher.server_process_launcher import ServerProcessJobLauncher

from pfedsam.deploy.attached import attached_command


class SiteJobLauncher(ClientProcessJobLauncher):  # type: ignore[misc]
    """Starts a job's process at a site."""

    def get_command(self, job_meta: dict[str, object], fl_ctx: FLContext) -> str:
        """NVFlare's command, attached to this process."""
        return _attached(super().get_command(job_meta, fl_ctx))


class CoordinatorJobLauncher(ServerProcessJobLauncher):  # type: ignore[misc]
    """Starts a job's process at the coordinator."""

    def get_command(self, job_meta: dict[str, object], fl_ctx: FLContext) -> str:
        """NVFlare's command, attached to this process."""
        return _attached(super().get_command(job_meta, fl_ctx))


def _attached(command: str) -> str:
    return shlex.join(attached_command(shlex.split(command, True), os.getpid()))
