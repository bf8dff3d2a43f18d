"""What `predict` segments: the pictures, volumes and DICOM series that the given files, folders and patterns hold."""

import glob
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pfedsam.core.errors import DataError, OptionError
from pfedsam.core.files import refuse_broken_link
from pfedsam.core.log import get_logger
from pfedsam.data.entries import entry_of, find_unread_among_dicom, may_be_image, stem_of
from pfedsam.data.manifest_lines import READABLE
from pfedsam.data.readers import kind_of
from pfedsam.data.readers.dicom_files import Series, find_images, may_hold_picture, short_digest
from pfedsam.data.readers.dicom_folders import looks_like_dicom

_LOG = get_logger(__name__)


@dataclass(frozen=True)
class Source:
    """One picture, volume or DICOM series to segment, and the names that its results may have."""

    path: Path
    """The file or folder that is read."""
    short: str
    """The name of the file or folder; a part of a folder of DICOM files has the name of this folder before its own."""
    long: str
    """The path below the folder that was given; the name of the results if other images have the same short name."""
    volume: bool = True
    dicom: bool = False
    readable: bool = True
    """False for DICOM files in which no series could be found; the reason is reported when they are predicted."""
    digest: str | None = None
    """What identifies a DICOM series, or a picture of one; None for other formats, and if no series could be found."""
    first: Path | None = None
    """The first file of the DICOM series, by its path."""
    number: int = 1
    """The number of the DICOM series in its folder, as `data check` lists it."""
    chosen: str | None = None
    """What the series is chosen by in its path; None if there is only one."""
    numbered: bool = False
    """Whether other series have the same path, so that a number is added to the name."""


def find_sources(images: Sequence[Path], out: Path) -> Iterator[Source]:
    """All images in the given files, folders and patterns.

    Raises:
        OptionError: no file matches a pattern, or a folder contains no image.
        DataError: there is a link whose target does not exist.
    """
    given = list(_expanded(images))
    for image in given:
        if image.is_dir() and not _holds_dicom(image):
            found = list(_images_in(image, out))
            if not found:
                raise OptionError(f"The folder {str(image)!r} holds no image ({READABLE}). Nothing was written.")
            for one in found:
                yield from _sources_of(one, below=image)
        else:
            yield from _sources_of(image, below=image.parent, alone=len(given) == 1)


def find_left_out(images: Sequence[Path], out: Path) -> list[Path]:
    """What the folders among the images hold that may be an image and is not read, such as volumes of other formats and archives.

    Args:
        images: files, folders and patterns, as for `find_sources`.
        out: folder of the masks, which may be in one of them.

    Raises:
        OptionError: no file matches a pattern.
        DataError: there is a link whose target does not exist.
    """
    folders = [image for image in _expanded(images) if image.is_dir()]
    return [path for folder in folders for path in _left_out(folder, out)]


def _left_out(folder: Path, out: Path) -> Iterator[Path]:
    contents = [folder] if _holds_dicom(folder) else _contents(folder, out)
    for path in contents:
        if path.is_dir():
            found = find_unread_among_dicom(path)
            yield from (one for one in found if out.resolve() not in one.resolve().parents)
        elif entry_of(path) is None and may_be_image(path):
            yield path


def _expanded(images: Sequence[Path]) -> Iterator[Path]:
    """The images, with the files that match in place of each pattern.

    Raises:
        OptionError: no file matches a pattern.
    """
    for image in images:
        if not image.exists() and glob.has_magic(str(image)):
            found = sorted(glob.glob(str(image), recursive=True))
            if not found:
                raise OptionError(
                    f"No file matches {str(image)!r}. Nothing was written; give files, folders or patterns that match a file."
                )
            yield from map(Path, found)
        else:
            yield image.resolve() if image.name in ("", "..") else image  # `.` has no name for its mask


def _holds_dicom(folder: Path) -> bool:
    """Whether a folder directly contains a DICOM picture, so that it is an image itself; reports and the index of an export are none."""
    return any(may_hold_picture(file) for file in folder.iterdir() if file.is_file())


def _images_in(folder: Path, out: Path) -> Iterator[Path]:
    """The images in a folder and in its folders, sorted by name; hidden files and the folder of the masks are left out.

    A folder directly in it that holds DICOM files, but no image, is there too, so that it is reported.

    Raises:
        DataError: there is a link whose target does not exist.
    """
    for path in _visible(folder, out):
        found = [one for one in _contents_at(path, out) if entry_of(one)]
        yield from found or ([path] if path.is_dir() and kind_of(path) == "dicom" else [])


def _contents(folder: Path, out: Path) -> Iterator[Path]:
    """The files in a folder and in its folders, and folders that are images themselves; DICOM files without a picture are left out.

    Raises:
        DataError: there is a link whose target does not exist.
    """
    for path in _visible(folder, out):
        yield from _contents_at(path, out)


def _contents_at(path: Path, out: Path) -> Iterator[Path]:
    """The same for one path in a folder that is no image itself, whose DICOM files therefore hold no picture.

    Raises:
        DataError: there is a link whose target does not exist.
    """
    if path.is_dir() and not _holds_dicom(path):
        yield from _contents(path, out)
    elif path.is_dir() or not looks_like_dicom(path):
        yield path


def _visible(folder: Path, out: Path) -> Iterator[Path]:
    """What a folder directly contains, sorted by name, without hidden files and without the folder of the masks.

    Raises:
        DataError: there is a link whose target does not exist.
    """
    for path in sorted(folder.iterdir()):
        if not path.name.startswith(".") and path.resolve() != out.resolve():
            refuse_broken_link(path)
            yield path


def _sources_of(image: Path, *, below: Path, alone: bool = False) -> Iterator[Source]:
    """The images in a file, or in a folder of DICOM files.

    Args:
        image: the file or folder.
        below: the folder that was given, or the folder of the file that was given.
        alone: whether it is the only file or folder that was given.
    """
    entry = entry_of(image)
    if entry is not None and entry.volume and kind_of(image) == "dicom":
        yield from _dicom_sources(image, below, alone=alone)
    else:
        yield Source(image, stem_of(image), _name(image, below), volume=entry is not None and entry.volume)


def _dicom_sources(image: Path, below: Path, *, alone: bool) -> Iterator[Source]:
    """The series of a DICOM file or folder.

    A series has the name of its place: its file if it has only one, otherwise the folder that holds all its files. So pictures of several
    patients in one folder have the names of their files.
    """
    try:
        found = find_images(image).series
    except DataError:  # reported when this image is predicted, so that the other images are still predicted
        found = []
    parts = [part for one in found for part in _parts(one)]
    if len(parts) < 2:
        source = parts[0] if parts else Source(image, "", "", dicom=True, readable=False)
        yield replace(source, path=image, short=stem_of(image), long=_name(image, below), chosen=None)
        return
    _warn_of_patients(found)
    places = Counter(part.path for part in parts)
    names_below = image if alone and image not in places else image.parent
    for part in parts:
        place, numbered = part.path, places[part.path] > 1
        chosen = part.chosen if numbered or place.is_dir() else "1"  # the only series of its file
        short, long = _name(place, names_below), _name(place, below)
        yield replace(part, short=short, long=long, chosen=chosen, numbered=numbered)


def _parts(series: Series) -> list[Source]:
    """A series at its place, without names; files of pictures without positions are no slices, and each is a part of its own."""
    files = sorted({plane.path for plane in series.planes})
    part = Source(
        _place(files),
        "",
        "",
        dicom=True,
        digest=series.digest,
        first=files[0],
        number=series.number,
        chosen=series.digest,
    )
    if len(files) == 1 or any(plane.position for plane in series.planes):
        return [part]
    instances = {plane.path: plane.instance for plane in series.planes}
    return [
        replace(part, path=file, first=file, digest=short_digest((series.digest, instances[file]))) for file in files
    ]


def _place(files: Sequence[Path]) -> Path:
    """The file of a series if it has only one, otherwise the folder that holds all its files."""
    return files[0] if len(files) == 1 else Path(os.path.commonpath([file.parent for file in files]))


def _name(path: Path, folder: Path) -> str:
    """The path of a file or folder below another folder, in one word and without the ending."""
    return "_".join((*path.parent.relative_to(folder).parts, stem_of(path)))


def _warn_of_patients(found: Sequence[Series]) -> None:
    """Log a warning if series of several patients lie in one folder, because names with a number do not contain the patient."""
    patients: dict[Path, set[str | None]] = defaultdict(set)
    for series in found:
        for part in _parts(series):
            patients[part.path].add(series.patient)
    for folder, known in patients.items():
        if len(known - {None}) > 1:
            _LOG.warning(
                "%r holds DICOM series of %d patients: their results have numbers, and series.csv beside the masks gives a file of each "
                "series; for names that tell the patient, put the files of each patient into a folder of its own.",
                folder.name,
                len(known - {None}),
            )
