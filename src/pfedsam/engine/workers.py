"""Worker processes of a local run, which train sites in parallel: each has one model and a fixed set of sites.

A site is always assigned to the same process, so that its images are read only once. The assignment does not change the results.

The processes do not execute the main module of the caller again, as spawned processes of `multiprocessing` do: all that they need is in
this package. So a script can call `pfedsam.run` without `if __name__ == "__main__":`.
"""

import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any, Final, NoReturn

from pfedsam.core.errors import RunError
from pfedsam.core.parent import end_with

Work = Callable[..., Any]
"""A function that does some work for the site named by its first argument."""
_KILLED: Final = (
    "A worker process ended before its work was done, probably because memory ran out. All completed work is saved. Less memory is needed "
    "with fewer workers (runtime.workers; --workers of bench): set that, and resume the run (--resume, or resume=True in Python; bench and "
    "demo resume by themselves). model.precision=auto, model.recompute=true or a smaller training.batch_size also need less memory, but "
    "require a new folder."
)


def busy_processes(sites: int, cores: int) -> int:
    """The number of processes with which `sites` sites of equal work, of which each stays in its process, keep `cores` cores busy longest.

    With as many processes as cores, a core without a site waits for the others if the sites cannot be divided evenly: of three sites on two
    cores one process has two. One process more shares the cores evenly (`docs/speed.md`).
    """
    if sites <= cores:
        return max(1, sites)
    return cores if sites % cores == 0 else cores + 1


class Workers:
    """Runs a function for sites, in this process or in several worker processes."""

    def __init__(self, make: Callable[[], Work], sites: Sequence[str], count: int) -> None:
        """Prepare the processes.

        Args:
            make: makes the function; it is called once in each process, and must be picklable if there are several.
            sites: the names of the sites, in the order in which they are assigned to processes.
            count: the number of processes; 1: the function runs in this process.
        """
        self._place = {name: i % count for i, name in enumerate(sites)}
        self._own = make() if count == 1 else None
        self._pools: list[ProcessPoolExecutor] = []
        if count > 1:
            # Spawned, not forked: a fork of a process that has used threads may hang.
            self._pools = [
                ProcessPoolExecutor(1, _Context(), initializer=_start, initargs=(make, os.getpid()))
                for _ in range(count)
            ]

    def each(self, sites: Sequence[str], *args: Any) -> Iterator[tuple[str, Any]]:  # noqa: ANN401 - of the function
        """Each of these sites with the result of the function for `(site, *args)`, in the given order; an error of a site is raised.

        Raises:
            RunError: a process ended before its work was done.
        """
        if self._own is not None:
            for site in sites:
                yield site, self._own(site, *args)
            return
        try:
            with _interrupts_held():
                futures = [(site, self._submit(site, *args)) for site in sites]
            for site, future in futures:
                yield site, future.result()
        except BrokenExecutor as error:
            raise RunError(_KILLED) from error

    def _submit(self, site: str, *args: Any) -> "Future[Any]":  # noqa: ANN401 - of the function
        return self._pools[self._place.get(site, 0)].submit(_call, site, *args)

    def close(self) -> None:
        """End the processes at once; a resumed run repeats work that was not committed."""
        processes = [process for pool in self._pools for process in (pool._processes or {}).values()]
        # After a second Ctrl-C this process would wait for the work of a process that was not ended.
        with _interrupts_held():
            for pool in self._pools:
                pool.shutdown(wait=False, cancel_futures=True)
            for process in processes:
                process.terminate()
        for process in processes:
            process.join(10)


class _Process(SpawnProcess):
    """A spawned process that does not execute the main module of its parent."""

    def start(self) -> None:
        with _main_module_hidden():
            super().start()


class _Context(SpawnContext):
    Process = _Process


_HIDING: Final = threading.Lock()


@contextmanager
def _main_module_hidden() -> Iterator[None]:
    """Hide where the main module came from, by which `multiprocessing.spawn.get_preparation_data` has a new process execute it again."""
    with _HIDING:
        main = vars(sys.modules["__main__"])
        before: dict[str, Any] = {name: main[name] for name in ("__file__", "__spec__") if name in main}
        main.update(__file__=None, __spec__=None)
        try:
            yield
        finally:
            for name in ("__file__", "__spec__"):
                del main[name]
            main.update(before)


_WORK: Work | None = None


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Block Ctrl-C within the context, so that processes started in it never receive it; this process receives it afterwards."""
    if sys.platform == "win32":  # Windows cannot block signals
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start(make: Callable[[], Work], parent: int) -> None:
    """Make the function in this process; if that fails, every call raises the error, which would otherwise end the process without it."""
    global _WORK
    end_with(parent)
    try:
        _WORK = make()
    except Exception as error:  # noqa: BLE001 - it is raised by the first call
        _WORK = partial(_fail, error)


def _fail(error: Exception, *args: Any) -> NoReturn:  # noqa: ANN401 - those of the function
    raise error


def _call(site: str, *args: Any) -> Any:  # noqa: ANN401 - of the function
    """The result of the function for a site.

    Raises:
        RunError: the function raised an error that cannot be sent to another process; the message names it.
    """
    try:
        return _WORK(site, *args) if _WORK else None
    except Exception as error:
        if _can_be_sent(error):
            raise
        raise RunError(f"{type(error).__name__}: {error}") from None


def _can_be_sent(error: Exception) -> bool:
    """Whether an error can be read again in another process; one that is made from several arguments may not be."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001 - any error of the class's own functions
        return False
    return True
