"""A folder that one process at a time works in."""

import fcntl
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pfedsam.core.errors import RunError
from pfedsam.core.log import get_logger

_LOG = get_logger(__name__)
LOCK = ".lock"
"""The file in a folder that is locked; the system lets go of it however the process ends, and the file stays."""


@contextmanager
def exclusive(*folders: Path) -> Iterator[None]:
    """Hold folders for this process; they are made where they are missing. A file system without locks is told of in the log.

    Raises:
        RunError: another process holds one.
    """
    with ExitStack() as held:
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
            file = held.enter_context((folder / LOCK).open("w"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise RunError(f"Another process works in {folder.resolve().name!r}. Wait for it to end.") from error
            except OSError as error:
                _LOG.warning(
                    "%s cannot be locked (%s): see to it that one process works there.", folder, error.strerror
                )
        yield
