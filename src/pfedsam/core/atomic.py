"""Files that are replaced as a whole: a reader sees the old bytes or the new ones, never a part of either.

The new bytes go to a temporary file in the same folder (a rename across file systems is a copy), are synced, renamed
over the old file, and the folder is synced so that the rename survives a power cut.
"""

import contextlib
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from pfedsam.core.errors import StoreError


def write_bytes(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Replace a file's content in one step.

    Args:
        path: the file; its folder must exist.
        data: the new content.
        mode: the permissions of the new file; readable by its owner alone unless said otherwise.

    Raises:
        StoreError: the file could not be written; what it held before is still there, and no temporary file is left.
    """
    try:
        _replace(path, data, mode)
        sync_folder(path.parent)
    except OSError as error:
        raise StoreError(
            f"{path.name} could not be written: {error.strerror or error}. The earlier content was not changed in "
            "part. Make space, or make the folder writable, and start again."
        ) from error


def write_text(path: Path, text: str, *, mode: int = 0o600) -> None:
    """Replace a file's content by text in UTF-8, in one step.

    Raises:
        StoreError: as `write_bytes`.
    """
    write_bytes(path, text.encode("utf-8"), mode=mode)


def write_json(path: Path, value: Any, *, mode: int = 0o600) -> None:  # noqa: ANN401 - whatever JSON can hold
    """Replace a file's content by a value as JSON, in one step; keys keep their order.

    Raises:
        StoreError: as `write_bytes`, or the value is not JSON (NaN and infinity are not).
    """
    try:
        text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise StoreError(f"{path.name} was not written, its content is not JSON: {error}.") from error
    write_text(path, text + "\n", mode=mode)


def usual_mode() -> int:
    """The permissions that the process's umask leaves a new file, for what a user asked to have somewhere."""
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable; a rename alone lives in memory until then. Windows has no such call."""
    if sys.platform == "win32":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _replace(path: Path, data: bytes, mode: int) -> None:
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        try:
            if sys.platform != "win32":  # there a new file already has the folder's permissions
                os.fchmod(descriptor, mode)
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(name, path)
    except BaseException:  # also an interrupt from the keyboard must leave no temporary file
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise
