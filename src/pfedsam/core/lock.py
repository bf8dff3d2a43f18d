"""Folders and files that one process at a time works in, on every platform (`filelock`)."""

import errno
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout

from pfedsam.core import atomic
from pfedsam.core.errors import RunError
from pfedsam.core.log import get_logger

_LOG = get_logger(__name__)
LOCK = ".lock"
"""The file in a folder that is locked; the system releases it however the process ends, and the file stays."""
_NO_LOCKS: Final = frozenset(
    number
    for name in ("ENOLCK", "ENOSYS", "EOPNOTSUPP", "ENOTSUP", "EINVAL")
    if (number := getattr(errno, name, None)) is not None
)
"""What file systems without locks answer."""
_PEEK_S: Final = 0.5
"""Somebody who asks whether a process runs holds its lock for an instant; whoever starts waits that out."""


@contextmanager
def exclusive(*folders: Path) -> Iterator[None]:
    """Hold folders for this process; they are made where they are missing.

    Where the file system has no locks, the log says so and work goes on.

    Raises:
        RunError: another process holds one.
        OSError: a folder cannot be made or written to.
    """
    with ExitStack() as held:
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
            try:
                held.enter_context(_held(folder / LOCK, timeout=0))
            except Timeout as error:
                raise RunError(
                    f"Another process works in {folder.resolve().name!r}. Wait for it to end, or stop it."
                ) from error
        yield


@contextmanager
def in_turn(path: Path) -> Iterator[None]:
    """Wait for the lock `path` and hold it; processes that write the same files take turns by it.

    Raises:
        OSError: the file cannot be made.
    """
    with _held(path, timeout=-1):
        yield


@contextmanager
def running_as(path: Path, refusal: str) -> Iterator[None]:
    """Hold a role that one process at a time has; `path` holds its process id meanwhile, for `runner`.

    Args:
        path: the file with the id; its lock lies beside it.
        refusal: what a second process is told.

    Raises:
        RunError: another process holds it.
        OSError: the file cannot be written.
    """
    try:
        with _held(_lock_of(path), timeout=_PEEK_S):
            atomic.write_text(path, str(os.getpid()))
            yield
    except Timeout as error:
        raise RunError(refusal) from error


def runner(path: Path) -> int:
    """The process that holds the role of `path` (`running_as`); 0 where none does."""
    if not _lock_of(path).exists():
        return 0
    try:
        with _held(_lock_of(path), timeout=0):
            return 0
    except Timeout:
        return _read_id(path)


def _read_id(path: Path) -> int:
    for _ in range(10):  # who has just taken the lock writes its id next
        try:
            return int(path.read_text("utf-8"))
        except (OSError, ValueError):
            time.sleep(0.05)
    return 0


def _lock_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock")


@contextmanager
def _held(path: Path, *, timeout: float) -> Iterator[None]:
    """Hold one lock file, or go on without it where the file system has no locks.

    Raises:
        Timeout: another process holds it.
        OSError: the file cannot be made.
    """
    if not path.parent.is_dir():  # the library would make it
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), str(path.parent))
    lock = FileLock(path, timeout=timeout, mode=0o600, fallback_to_soft=False)
    held = True
    try:
        lock.acquire()
    except OSError as error:
        if error.errno not in _NO_LOCKS:  # also `Timeout`, which is one without a number
            raise
        held = False
        _LOG.warning("%s cannot be locked (%s): make sure that only one process works there.", path, error.strerror)
    try:
        yield
    finally:
        if held:
            lock.release()
