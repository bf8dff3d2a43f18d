"""NVFlare's command of a job is run by the module that ends with the process that started it."""

import os
import shlex
import sys

import pytest

pytest.importorskip("nvflare")
from nvflare.app_common.job_launcher.client_process_launcher import ClientProcessJobLauncher
from nvflare.app_common.job_launcher.server_process_launcher import ServerProcessJobLauncher

from pfedsam.deploy.launchers import CoordinatorJobLauncher, SiteJobLauncher


@pytest.mark.parametrize(
    ("launcher", "base"),
    [(SiteJobLauncher, ClientProcessJobLauncher), (CoordinatorJobLauncher, ServerProcessJobLauncher)],
)
def test_the_command_is_attached_to_this_process(launcher: type, base: type, monkeypatch: pytest.MonkeyPatch) -> None:
    given = f"{sys.executable} -u -m nvflare.worker -m 'a folder/x' --set a=b"
    monkeypatch.setattr(base, "get_command", lambda self, job_meta, fl_ctx: given)
    command = shlex.split(launcher().get_command({}, None))
    assert command == [
        sys.executable,
        "-u",
        "-m",
        "pfedsam.deploy.attached",
        str(os.getpid()),
        "nvflare.worker",
        "-m",
        "a folder/x",
        "--set",
        "a=b",
    ]
