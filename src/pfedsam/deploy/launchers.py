"""NVFlare's launchers, changed so that a job's process ends with the process that started it (see `attached`).

NVFlare joins the words of the command by spaces and splits the text again as a shell would. Therefore folders whose names contain spaces
or quotation marks are quoted here first.
"""

import os
import shlex
import sys

from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.job_launcher_spec import JobProcessArgs
from nvflare.app_common.job_launcher.client_process_launcher import ClientProcessJobLauncher
from nvflare.app_common.job_launcher.server_process_launcher import ServerProcessJobLauncher

from pfedsam.deploy.attached import attached_command


class SiteJobLauncher(ClientProcessJobLauncher):  # type: ignore[misc]
    """Starts a job's process at a site."""

    def get_command(self, job_meta: dict[str, object], fl_ctx: FLContext) -> str:
        """NVFlare's command, attached to this process."""
        return _attached(super().get_command(job_meta, _quoted(fl_ctx)))


class CoordinatorJobLauncher(ServerProcessJobLauncher):  # type: ignore[misc]
    """Starts a job's process at the coordinator."""

    def get_command(self, job_meta: dict[str, object], fl_ctx: FLContext) -> str:
        """NVFlare's command, attached to this process."""
        return _attached(super().get_command(job_meta, _quoted(fl_ctx)))


def _quoted(fl_ctx: FLContext) -> FLContext:
    """A context with the arguments of the job's command, each quoted as one word; NVFlare's options are several words."""
    quoted = {
        name: (option, value if name == JobProcessArgs.OPTIONS else shlex.quote(str(value)))
        for name, (option, value) in fl_ctx.get_prop(FLContextKey.JOB_PROCESS_ARGS).items()
    }
    context = FLContext()
    context.set_prop(FLContextKey.JOB_PROCESS_ARGS, quoted, private=True, sticky=False)
    return context


def _attached(command: str) -> str:
    arguments = shlex.split(command.removeprefix(sys.executable), True)  # NVFlare does not quote the path of Python
    return shlex.join(attached_command([sys.executable, *arguments], os.getpid()))
