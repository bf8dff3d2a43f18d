"""The processes that train sites side by side."""

import importlib
import signal
from functools import partial

from pfedsam.engine.worker import Workers


def test_a_process_never_sees_ctrl_c_and_the_parent_still_does() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    # In place of a worker the process holds the module `signal`, which says what is blocked there; it is so from the start of the
    # process, because the process did not ask for it.
    workers = Workers(partial(importlib.import_module, "signal"), ["a"], 2)  # type: ignore[arg-type]
    try:
        blocked = workers.submit(signal.SIG_BLOCK, "pthread_sigmask", ()).result(60)  # type: ignore[arg-type]
    finally:
        workers.close()
    assert signal.SIGINT in blocked
    assert signal.SIGTERM not in blocked  # by which `close` ends it
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before
