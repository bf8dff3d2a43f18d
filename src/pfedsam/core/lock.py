"""Locks on folders and files, so that only one process at a time works in them, on every platform (`filelock`)."""

import errno
import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout

from pfedsam.core import atomic
from pfedsam.core.errors import RunError
from pfedsam.core.log import get_logger
from pfedsam.core.text import is_text

_LOG = get_logger(__name__)
LOCK = ".lock"
"""Name of the lock file in a folder. The operating system releases the lock however the process ends; the file itself stays."""
_NO_LOCKS: Final = frozenset(
    number
    for name in ("ENOLCK", "ENOSYS", "EOPNOTSUPP", "ENOTSUP", "EINVAL")
    if (number := getattr(errno, name, None)) is not None
)
"""Error numbers that a file system without support for locks returns."""
_PEEK_S: Final = 0.5
"""Time that `running_as` waits for the lock: `runner` holds the same lock for an instant while it tests whether a process runs."""


def refuse_unreadable_name(folder: Path) -> None:
    """Refuse a folder whose path is not valid UTF-8, because the libraries that read tensors cannot open files in it.

    Raises:
        RunError: the path is not valid UTF-8.
    """
    path = str(folder.absolute())
    if not is_text(path):
        raise RunError(
            f"The path {path!r} contains bytes that are not text in the encoding of file names ({sys.getfilesystemencoding()}), so that "
            "the files of a run could not be read back. Give a folder whose path has other characters; if its name is shown correctly "
            "elsewhere, set the environment variable LC_ALL=C.UTF-8."
        )


@contextmanager
def exclusive(*folders: Path) -> Iterator[None]:
    """Lock folders for this process; missing folders are created.

    Where the file system does not support locks, a warning is logged and the work continues without them.

    Raises:
        RunError: another process holds the lock of one of the folders, or the path of one is not valid UTF-8.
        OSError: a folder cannot be created or written to.
    """
    with ExitStack() as held:
        for folder in folders:
            refuse_unreadable_name(folder)
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
    """Wait for the lock file `path` and hold it, so that processes that write the same files take turns.

    Raises:
        OSError: the lock file cannot be created.
    """
    with _held(path, timeout=-1):
        yield


@contextmanager
def running_as(path: Path, refusal: str) -> Iterator[None]:
    """Hold a role that only one process at a time may have; meanwhile the file `path` holds its process id for `runner`.

    Args:
        path: the file with the process id; the lock file is beside it.
        refusal: the error message for a second process.

    Raises:
        RunError: another process has the role, or the path is not valid UTF-8.
        OSError: the file cannot be written.
    """
    refuse_unreadable_name(path.parent)
    try:
        with _held(lock_of(path), timeout=_PEEK_S):
            atomic.write_text(path, str(os.getpid()))
            yield
    except Timeout as error:
        raise RunError(refusal) from error


def runner(path: Path) -> int:
    """The id of the process that has the role of `path` (see `running_as`), or 0 if no process has it."""
    if not lock_of(path).exists():
        return 0
    try:
        with _held(lock_of(path), timeout=0):
            return 0
    except Timeout:
        return _read_id(path)


def _read_id(path: Path) -> int:
    for _ in range(10):  # a process writes its id shortly after it has taken the lock
        try:
            return int(path.read_text("utf-8"))
        except (OSError, ValueError):
            time.sleep(0.05)
    return 0


def lock_of(path: Path) -> Path:
    """The lock file of the role of `path` (see `running_as`)."""
    return path.with_name(f".{path.name}.lock")


@contextmanager
def _held(path: Path, *, timeout: float) -> Iterator[None]:
    """Hold one lock file; continue without it where the file system does not support locks.

    Raises:
        Timeout: another process holds the lock.
        OSError: the lock file cannot be created.
    """
    if not path.parent.is_dir():  # otherwise the library would create it
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), str(path.parent))
    lock = FileLock(path, timeout=timeout, mode=0o600, fallback_to_soft=False)
    held = True
    try:
        lock.acquire()
    except OSError as error:
        if error.errno not in _NO_LOCKS:  # `Timeout` is an OSError without a number and is also raised here
            raise
        held = False
        _LOG.warning("%s cannot be locked (%s): make sure that only one process works there.", path, error.strerror)
    try:
        yield
    finally:
        if held:
            lock.release()
