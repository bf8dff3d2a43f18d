"""Runs a job's process so that it ends as soon as its parent process ends, for whatever reason.

NVFlare starts a process for every job and does not watch it. If the parent is killed while the job's process is still starting, that
process tries to reach the parent for ever. So NVFlare's launchers run this module instead: it starts to watch the parent at once and then
runs NVFlare's own module. It imports nothing that is slow to load.
"""

import os
import runpy
import sys
from collections.abc import Sequence

from pfedsam.core.parent import end_with


def attached_command(argv: Sequence[str], parent: int) -> list[str]:
    """The command that runs the module of `python ... -m MODULE ARGS` and ends when the process `parent` ends.

    Raises:
        ValueError: the command contains no `-m`.
    """
    at = list(argv).index("-m")
    return [argv[0], "-u", "-m", "pfedsam.deploy.attached", str(parent), *argv[at + 1 :]]


if __name__ == "__main__":
    if os.getppid() != int(sys.argv[1]):
        os._exit(1)
    end_with(int(sys.argv[1]))
    sys.argv = sys.argv[2:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
