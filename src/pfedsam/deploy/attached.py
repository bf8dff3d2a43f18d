"""The process of a job, tied to the one that started it: when that ends, however it ends, this one ends too.

NVFlare starts a process for every job and lets it be. One whose parent was killed while it was still starting would try for ever to
reach it. So NVFlare's launchers are given this module to run, which looks after the parent from its first moment and then runs NVFlare's
own module. It imports nothing that takes time.
"""

import os
import runpy
import sys
import threading
import time
from collections.abc import Sequence
from typing import Final

_POLL_S: Final = 0.5


def attached_command(argv: Sequence[str], parent: int) -> list[str]:
    """The command that runs the module of `python ... -m MODULE ARGS` so that it ends with the process `parent`.

    Raises:
        ValueError: the command runs no module.
    """
    at = list(argv).index("-m")
    return [argv[0], "-u", "-m", "pfedsam.deploy.attached", str(parent), *argv[at + 1 :]]


def end_with(parent: int) -> None:
    """From now on, end this process at once when its parent is no longer `parent`."""
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_POLL_S)
    os._exit(1)


if __name__ == "__main__":
    if os.getppid() != int(sys.argv[1]):
        os._exit(1)
    end_with(int(sys.argv[1]))
    sys.argv = sys.argv[2:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
