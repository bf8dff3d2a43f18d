"""The files of a folder of DICOM files: which of them are DICOM, and which may be slices that were lost."""

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

from pfedsam.core.errors import DataError
from pfedsam.core.files import open_regular, refuse_broken_link

_START_BYTES: Final = 132
"""Length of the preamble and of the letters DICM after it."""
_GROUPS: Final = (b"\x08\x00", b"\x02\x00")
"""Group numbers with which a file without the preamble begins."""
DICOM_ENDINGS: Final = (".dcm", ".dicom", ".ima")
TEXT_ENDINGS: Final = (".txt", ".log", ".csv", ".json", ".xml", ".yaml", ".yml", ".md", ".html", ".ini")
"""Endings of files that often lie beside slices, and may be empty."""


def visible_files(path: Path) -> Iterator[Path]:
    """The file itself, or what a folder and its subfolders hold without hidden files and folders, in the order of their paths.

    Links to folders are not followed. They, and folders that cannot be listed, are returned like files, so that reading them fails with a
    message.
    """
    if not path.is_dir():
        yield path
        return
    found: list[Path] = []
    for folder, subfolders, names in os.walk(path, onerror=lambda error: found.append(Path(error.filename))):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]  # others are not gone into
        links = (name for name in subfolders if os.path.islink(os.path.join(folder, name)))
        found.extend(Path(folder, name) for name in (*names, *links) if not name.startswith("."))
    yield from sorted(found)


def looks_like_dicom(path: Path) -> bool:
    """Whether the content of a file is DICOM, with or without the preamble; False for a file that cannot be read."""
    try:
        with open_regular(path) as file:
            return is_dicom(file.read(_START_BYTES))
    except OSError:
        return False


def start_of(path: Path) -> bytes:
    """The first bytes of a file, by which `is_dicom` recognises it.

    Raises:
        DataError: it cannot be read, or is a link to a folder or to nothing, so that a slice could be missing without a message.
    """
    try:
        with open_regular(path) as file:
            return file.read(_START_BYTES)
    except OSError as exc:
        if isinstance(exc, FileNotFoundError):
            refuse_broken_link(path)
        what = f"cannot be read ({exc.strerror})"
        if os.path.isdir(path):
            linked = os.path.islink(path)
            what = "is a link to a folder, which is not followed" if linked else "is a folder that cannot be listed"
        raise DataError(
            f"{_place(path)} {what}, so that slices may be missing; put its files there and make them readable, or remove it"
        ) from exc


def is_dicom(start: bytes) -> bool:
    """Whether a file with these first bytes is DICOM, with or without the preamble."""
    return start[128:132] == b"DICM" or _looks_like_element(start)


def _looks_like_element(start: bytes) -> bool:
    """Whether the bytes begin with an element of a DICOM header: explicit with two capital letters, or implicit with a short length."""
    explicit = start[4:6].isalpha() and start[4:6].isupper()
    return start[:2] in _GROUPS and len(start) > 8 and (explicit or start[6:8] == b"\0\0")


def refuse_lost_slices(others: Mapping[Path, bytes], dicom: Iterable[Path]) -> None:
    """Refuse a file that is not DICOM but may have been a slice: by its ending, or because it is empty, cut off, or begins with zeros.

    Args:
        others: first bytes of each file that is not DICOM.
        dicom: the DICOM files beside them.

    Raises:
        DataError: there is such a file.
    """
    endings = ({*DICOM_ENDINGS} | {file.suffix.lower() for file in dicom}) - {""}
    for file, start in others.items():
        ending, damage = file.suffix.lower(), _damage(start)
        if ending in endings or (damage and ending not in TEXT_ENDINGS):
            raise DataError(
                f"{_place(file)} is among DICOM files, but is not DICOM ({damage or 'its content is of another kind'}), so that a slice "
                "may be missing; restore it from its source, or remove it"
            )


def _damage(start: bytes) -> str | None:
    """What is wrong with a file that begins with these bytes; None if it may be a file of another kind, such as a short text."""
    if not start:
        return "it is empty"
    if not start.strip(b"\0"):
        return "it begins with zeros"
    return f"it has only {len(start)} bytes" if len(start) < _START_BYTES and b"\0" in start else None


def _place(path: Path) -> str:
    """The name of a file, and that of its folder, for messages."""
    return repr(f"{path.parent.name}/{path.name}")
