"""NVFlare's command of a job is run by the module that ends with the process that started it."""

import os
import shlex
import sys

import pytest

pytest.importorskip("nvflare")
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.job_launcher_spec import JobProcessArgs

from pfedsam.deploy.launchers import CoordinatorJobLauncher, SiteJobLauncher


@pytest.mark.parametrize("python", [sys.executable, "/home/Jo O'Neil/venv/bin/python"])
@pytest.mark.parametrize("folder", ["/data/north", "/home/Max Muster/St. Mary's, Köln/nvflare", "/a/$HOME -m x/#1"])
@pytest.mark.parametrize("launcher", [SiteJobLauncher, CoordinatorJobLauncher])
def test_the_command_is_attached_to_this_process_and_has_each_folder_as_one_word(
    launcher: type, folder: str, python: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The arguments are those that NVFlare 2.9 prepares (`client_executor.py`, `server_engine.py`), which it does not quote."""
    arguments = {
        JobProcessArgs.EXE_MODULE: ("-m", "nvflare.worker"),
        JobProcessArgs.WORKSPACE: ("-m", folder),
        JobProcessArgs.OPTIONS: ("--set", " a=b uid=north"),
    }
    context = FLContext()
    context.set_prop(FLContextKey.JOB_PROCESS_ARGS, arguments, private=True, sticky=False)
    monkeypatch.setattr(sys, "executable", python)
    command = shlex.split(launcher().get_command({}, context), True)
    assert command == [
        *(python, "-u", "-m", "pfedsam.deploy.attached", str(os.getpid()), "nvflare.worker"),
        *("-m", folder, "--set", "a=b", "uid=north"),
    ]
