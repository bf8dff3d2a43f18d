"""The contents of a site's `images/` and `masks/`: pictures by their ending, volumes by their content, folders of DICOM files."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pfedsam.core.errors import DataError
from pfedsam.data.readers import PICTURES, kind_of
from pfedsam.data.readers.dicom_files import read_head
from pfedsam.data.readers.dicom_folders import DICOM_ENDINGS, TEXT_ENDINGS, visible_files
from pfedsam.data.readers.dicom_planes import has_position
from pfedsam.data.readers.png_stack import is_png_stack

VOLUME_ENDINGS: Final = (".nii.gz", ".nii", *DICOM_ENDINGS)
FOREIGN: Final = (".nrrd", ".nhdr", ".mha", ".mhd", ".hdr", ".img", ".mgz", ".mgh", ".mnc")
"""Endings of volumes in formats that are not read; they are refused, because cases would be missing otherwise."""
ARCHIVES: Final = (".zip", ".7z", ".rar", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst")
"""Endings of archives and compressed files, which may contain images. A file that ends with `.nii.gz` is a volume, not an archive."""
_TEXTS: Final = (*TEXT_ENDINGS, ".tsv", ".bval", ".bvec")
"""The last two are written beside NIfTI files of diffusion MRI."""
_OTHER_NAMES: Final = frozenset({"thumbs.db", "dicomdir", "readme", "license"})
"""Names in lower case of files that are no images and often lie beside them."""


@dataclass(frozen=True)
class Entry:
    """A file or folder that may be the image or the mask of a case."""

    path: Path
    stem: str
    """Its name without the ending."""
    volume: bool


def stem_of(path: Path) -> str:
    """The name of a file without its ending, or the name of a folder."""
    lower = path.name.lower()
    for ending in VOLUME_ENDINGS:
        if lower.endswith(ending) and not path.is_dir():
            return path.name[: -len(ending)]
    return path.name if path.is_dir() or path.suffix.lower() not in PICTURES else path.stem


def entry_of(path: Path) -> Entry | None:
    """The entry at a path; None if it contains no picture and no volume."""
    kind = kind_of(path)
    if kind is None and is_png_stack(path):
        return Entry(path, stem_of(path), volume=True)
    if kind is None and not path.name.lower().endswith(VOLUME_ENDINGS):
        return None
    return Entry(path, stem_of(path), volume=kind != "picture")


def find_entries(folder: Path) -> list[Entry]:
    """All entries of a folder, sorted by name, without hidden ones (a Mac puts `._a.png` beside `a.png`) and a DICOMDIR."""
    if not folder.is_dir():
        return []
    found = map(entry_of, filter(_may_be_entry, sorted(folder.iterdir())))
    return [entry for entry in found if entry]


def may_be_image(path: Path) -> bool:
    """Whether a visible file that is not read may contain an image: all but texts and files that programs write beside images."""
    name = path.name.lower()
    return not name.startswith(".") and not name.endswith(_TEXTS) and name not in _OTHER_NAMES


def find_unread(folder: Path) -> list[Path]:
    """What a folder holds that may contain images or masks and is not read, sorted by name: files, and folders with files."""
    if not folder.is_dir():
        return []
    return [path for path in sorted(folder.iterdir()) if may_be_image(path) and _is_unread(path)]


def _is_unread(path: Path) -> bool:
    if path.is_dir():
        return entry_of(path) is None and next(visible_files(path), None) is not None
    return not path.is_file() or entry_of(path) is None


def find_unread_among_dicom(folder: Path) -> list[Path]:
    """Volumes of other formats and archives among the files of a DICOM series and below; pictures there are mostly previews."""
    endings = (*VOLUME_ENDINGS, *FOREIGN, *ARCHIVES)
    return [
        path
        for path in visible_files(folder)
        if path.name.lower().endswith(endings) and path.is_file() and kind_of(path) != "dicom"
    ]


def _may_be_entry(path: Path) -> bool:
    return not path.name.startswith(".") and (path.is_dir() or (path.is_file() and path.name.lower() != "dicomdir"))


def group_sequences(entries: Sequence[Entry], channels: Sequence[str]) -> list[tuple[str, tuple[Entry, ...]]]:
    """The stem and the images of each case: one entry, or the entries whose names differ only in the endings of the sequences.

    Raises:
        DataError: a case lacks a sequence.
    """
    if not channels:
        return [(entry.stem, (entry,)) for entry in entries]
    groups = _by_ending(entries, channels)
    _refuse_incomplete(groups, channels)
    return [(stem, tuple(found[ending] for ending in channels)) for stem, found in sorted(groups.items())]


def further_sequences(first: Path, channels: Sequence[str]) -> tuple[Path, ...]:
    """The other sequences of the case whose first one is given; they are in the same folder, and their names differ in the endings.

    Args:
        first: the first sequence of a case.
        channels: endings of the names of a case's sequences; none if a case has only one.

    Raises:
        DataError: the name does not have the ending of a first sequence.
    """
    if not channels:
        return ()
    stem, (ending, *others) = stem_of(first), channels
    if not stem.endswith(ending):
        raise DataError(
            f"{first.name!r} does not end with {ending!r}, as the first sequence of a case does (data.volume.channels); give that file"
        )
    start, suffix = stem[: -len(ending)], first.name[len(stem) :]
    return tuple(first.with_name(f"{start}{other}{suffix}") for other in others)


def _by_ending(entries: Sequence[Entry], channels: Sequence[str]) -> dict[str, dict[str, Entry]]:
    """The sequences of each case, by ending; entries without one of the endings are left out."""
    groups: dict[str, dict[str, Entry]] = defaultdict(dict)
    for entry in entries:
        ending = next(filter(entry.stem.endswith, channels), None)
        if ending is not None:
            groups[entry.stem.removesuffix(ending)][ending] = entry
    return groups


def _refuse_incomplete(groups: Mapping[str, Mapping[str, Entry]], channels: Sequence[str]) -> None:
    """Refuse cases without all sequences.

    Raises:
        DataError: there is such a case.
    """
    for stem, found in groups.items():
        missing = [ending for ending in channels if ending not in found]
        if missing:
            raise DataError(
                f"case {stem!r} has no file that ends with {missing[0]!r}; give every case all sequences of data.volume.channels"
            )


def refuse_loose_series(entries: Sequence[Entry]) -> None:
    """Refuse files of one DICOM series that are not in a folder of their own: each would be a case, in training or in test.

    Files without a position are not slices but pictures, such as the views of a mammography, and each is a case.

    Raises:
        DataError: two files are of one series.
    """
    seen: dict[str, Path] = {}
    for entry in entries:
        if not entry.volume or entry.path.is_dir() or kind_of(entry.path) != "dicom":
            continue
        head = read_head(entry.path)
        series = str(head.get("SeriesInstanceUID", "")) if has_position(head) else ""
        if series and series in seen:
            raise DataError(
                f"images/ holds {seen[series].name!r} and {entry.path.name!r}, which are of one DICOM series; put the files of each series "
                "into a folder of its own in images/"
            )
        seen[series] = entry.path
