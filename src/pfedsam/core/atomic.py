"""Atomic file writes: a reader sees either the old content or the new content, never a part of either.

The new bytes are written to a temporary file in the same folder, because a rename across file systems would be a copy. The temporary
file is synced to disk and renamed over the old file. Then the folder is synced, so that the rename survives a power failure.
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
        mode: the permissions of the new file; by default only its owner can read it.

    Raises:
        StoreError: the file could not be written; its earlier content is unchanged, and no temporary file is left.
    """
    try:
        _replace(path, data, mode)
        sync_folder(path.parent)
    except OSError as error:
        raise StoreError(
            f"{path.name} could not be written: {error.strerror or error}. Its earlier content is unchanged. "
            "Free disk space, create the folder or make it writable, and start again."
        ) from error


def write_text(path: Path, text: str, *, mode: int = 0o600) -> None:
    """Replace a file's content by text, encoded in UTF-8, in one step.

    Raises:
        StoreError: the file could not be written, as for `write_bytes`.
    """
    write_bytes(path, text.encode("utf-8"), mode=mode)


def write_json(path: Path, value: Any, *, mode: int = 0o600) -> None:  # noqa: ANN401 - whatever JSON can hold
    """Replace a file's content by a value in JSON, in one step; keys keep their order.

    Raises:
        StoreError: the file could not be written, or JSON cannot express the value (NaN and infinity are not allowed).
    """
    try:
        text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise StoreError(f"{path.name} was not written, because JSON cannot express its content: {error}.") from error
    write_text(path, text + "\n", mode=mode)


def usual_mode() -> int:
    """The permissions that a new file gets by the process's umask; used for output files of a command."""
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def sync_folder(folder: Path) -> None:
    """Write a folder's entries to disk, so that a rename in it survives a power failure. Windows has no such call."""
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
            if sys.platform != "win32":  # on Windows a new file already has the folder's permissions
                os.fchmod(descriptor, mode)
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(name, path)
    except BaseException:  # no temporary file may be left, not even after an interrupt from the keyboard
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise
