"""What lies in a site's `images/` and `masks/`: pictures by their ending, volumes by their content, folders of DICOM files."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pfedsam.core.errors import DataError
from pfedsam.data.readers import PICTURES, kind_of
from pfedsam.data.readers.dicom_files import read_head
from pfedsam.data.readers.png_stack import is_png_stack

VOLUME_ENDINGS: Final = (".nii.gz", ".nii", ".dcm", ".dicom", ".ima")
FOREIGN: Final = (".nrrd", ".mha", ".mhd", ".hdr", ".img", ".mgz", ".mnc")
"""Volumes of kinds that are not read; left out in silence, cases would be missed."""


@dataclass(frozen=True)
class Entry:
    """A file or folder that may be a case's image or mask."""

    path: Path
    stem: str
    """Its name without the ending."""
    volume: bool


def stem_of(path: Path) -> str:
    """The name of a file without its ending, of a folder as it is."""
    lower = path.name.lower()
    for ending in VOLUME_ENDINGS:
        if lower.endswith(ending) and not path.is_dir():
            return path.name[: -len(ending)]
    return path.name if path.is_dir() or path.suffix.lower() not in PICTURES else path.stem


def entry_of(path: Path) -> Entry | None:
    """The entry at a path; None for what holds no picture and no volume."""
    kind = kind_of(path)
    if kind is None and is_png_stack(path):
        return Entry(path, stem_of(path), volume=True)
    if kind is None and not path.name.lower().endswith(VOLUME_ENDINGS):
        return None
    return Entry(path, stem_of(path), volume=kind != "picture")


def find_entries(folder: Path) -> list[Entry]:
    """All entries of a folder, sorted by name, without hidden ones (a Mac puts `._a.png` beside `a.png`)."""
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    found = (entry_of(path) for path in paths if not path.name.startswith(".") and (path.is_file() or path.is_dir()))
    return [entry for entry in found if entry]


def group_sequences(entries: Sequence[Entry], channels: Sequence[str]) -> list[tuple[str, tuple[Entry, ...]]]:
    """Cases and their images: each entry by itself, or those whose names differ in the endings of the sequences alone.

    Raises:
        DataError: A case lacks a sequence.
    """
    if not channels:
        return [(entry.stem, (entry,)) for entry in entries]
    groups: dict[str, dict[str, Entry]] = {}
    for entry in entries:
        ending = next((one for one in channels if entry.stem.endswith(one)), None)
        if ending is not None:
            groups.setdefault(entry.stem[: -len(ending)], {})[ending] = entry
    for stem, found in groups.items():
        missing = [ending for ending in channels if ending not in found]
        if missing:
            raise DataError(
                f"case {stem!r} has no file that ends with {missing[0]!r}; give every case all sequences of data.volume.channels"
            )
    return [(stem, tuple(found[ending] for ending in channels)) for stem, found in sorted(groups.items())]


def refuse_loose_series(entries: Sequence[Entry]) -> None:
    """Refuses slices of one DICOM series that lie beside each other as if each were a case: they would be split among train and test.

    Raises:
        DataError: Two files are of one series.
    """
    seen: dict[str, Path] = {}
    for entry in entries:
        if not entry.volume or entry.path.is_dir() or kind_of(entry.path) != "dicom":
            continue
        series = str(read_head(entry.path).get("SeriesInstanceUID", ""))
        if series and series in seen:
            raise DataError(
                f"images/ holds {seen[series].name!r} and {entry.path.name!r}, which are of one DICOM series; put the files of each series "
                "into a folder of its own in images/"
            )
        seen[series] = entry.path
