"""Atomic file writes: a reader sees either the old content or the new content, never a part of either.

The new bytes are written to a temporary file in the same folder, because a rename across file systems would be a copy. The temporary
file is synced to disk and renamed over the old file. Then the folder is synced, so that the rename survives a power failure.
"""

import contextlib
import errno
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

from pfedsam.core.errors import StoreError

_NO_SYNC: Final = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
"""Error numbers of file systems, mostly in networks, that cannot write a folder's entries to disk on request."""


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


def keep_copy(path: Path, copy: Path) -> None:
    """Keep the present content of a file under a second name in the same file system; a file of that name is replaced in one step.

    Only one process at a time may do this for a name. The second name is a hard link, which takes no space and keeps the present content
    when the file of the first name is replaced. File systems without hard links (exFAT, some network folders) get a copy.

    Raises:
        StoreError: the content could not be read or written; an earlier file of the second name is unchanged.
    """
    try:
        _link(path, copy)
    except OSError:
        try:
            data = path.read_bytes()
        except OSError as error:
            raise StoreError(f"{path.name} cannot be read: {error.strerror or error}.") from error
        write_bytes(copy, data)


def usual_mode() -> int:
    """The permissions that a new file gets by the process's umask; used for output files of a command."""
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def sync_folder(folder: Path) -> None:
    """Write a folder's entries to disk, so that a rename in it survives a power failure.

    Windows has no such call, and some file systems refuse it; there the rename is as safe as they make it.

    Raises:
        OSError: the entries could not be written.
    """
    if sys.platform == "win32":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
    finally:
        os.close(descriptor)


def _link(path: Path, copy: Path) -> None:
    """Make a hard link, under a temporary name first, because a link cannot replace a file.

    Raises:
        OSError: the file system has no hard links, or refuses this one.
    """
    new = copy.with_name(f".{copy.name}.tmp")
    new.unlink(missing_ok=True)  # of a process that was killed
    try:
        new.hardlink_to(path)
        new.replace(copy)
    finally:
        # It is still there after an error, and if `copy` was a link to the same file already.
        new.unlink(missing_ok=True)
    sync_folder(copy.parent)


def _replace(path: Path, data: bytes, mode: int) -> None:
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        try:
            if sys.platform != "win32":  # on Windows a new file already has the folder's permissions
                # Some network drives refuse it; the file then has the permissions of `mkstemp`, that only its owner can read it.
                with contextlib.suppress(PermissionError):
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
