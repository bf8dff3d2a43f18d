"""Opening a file that was made elsewhere and is not trusted."""

import errno
import stat
from io import BufferedReader
from pathlib import Path
from typing import Final

MOST_BYTES: Final = 2**28
"""More than any file has that is read as a whole, other than tensors and images."""


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
