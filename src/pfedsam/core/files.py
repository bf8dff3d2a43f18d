"""Opening a file that was made elsewhere and is not trusted, and noticing that an open file was removed or replaced."""

import errno
import os
import stat
from collections.abc import Sequence
from io import BufferedReader
from pathlib import Path
from typing import IO, Any, Final

from pfedsam.core.errors import DataError

MOST_BYTES: Final = 2**28
"""Largest size of a file that is read as a whole, other than tensors and images; all real ones are smaller."""


class RepeatedNameError(ValueError):
    """An object of a JSON file has a name twice; of the two values JSON would keep the last."""

    def __init__(self, name: str) -> None:
        super().__init__("a name occurs twice")
        self.name = name


def without_duplicates(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """An object of a JSON file, as `object_pairs_hook` of `json.loads`.

    Raises:
        RepeatedNameError: it has a name twice.
    """
    table: dict[str, Any] = {}
    for name, value in pairs:
        if name in table:
            raise RepeatedNameError(name)
        table[name] = value
    return table


def open_regular(path: Path) -> BufferedReader:
    """Open a regular file for reading; pipes and devices are refused, because reading from them may block or never end.

    Raises:
        OSError: the file is missing, cannot be read, or is not a regular file.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "it is a folder, a pipe or a device, not a file", str(path))
    return path.open("rb")


def read_regular(path: Path, most: int = MOST_BYTES) -> bytes:
    """The content of a regular file of at most `most` bytes.

    Raises:
        OSError: the file is larger, is missing, cannot be read, or is not a regular file.
    """
    with open_regular(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"it has more than {most} bytes", str(path))
    return content


def is_at(file: IO[Any], path: Path | str) -> bool:
    """Whether an open file is the one that has this path now."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def refuse_broken_link(path: Path) -> None:
    """Refuse a link whose target does not exist; otherwise a list of the files of its folder would lack it without a message.

    Raises:
        DataError: the path is such a link.
    """
    if path.is_symlink() and not path.exists():
        raise DataError(
            f"{path.parent.name}/{path.name} is a link to {str(path.readlink())!r}, which does not exist: make it available (is a network "
            "drive not connected?), or remove the link"
        )
