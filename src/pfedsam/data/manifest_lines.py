"""The lines of a site's `manifest.csv`, with the columns `image,mask,patient[,split][,case][,spacing][,series]`."""

import csv
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final, Literal, TypeAlias, get_args

from pfedsam.core.errors import DataError
from pfedsam.data.entries import Entry, entry_of
from pfedsam.data.readers import PICTURES

Split: TypeAlias = Literal["train", "val", "test", "unused"]
"""The part of a site that a case belongs to; an `unused` case is neither trained on nor scored."""

SPLITS: Final[tuple[Split, ...]] = get_args(Split)
READABLE: Final = f"{', '.join(sorted(PICTURES))}, NIfTI, DICOM"
MANIFEST: Final = "manifest.csv"
CASE_NAME: Final = re.compile(r"[^\s./\\][^/\\\x00-\x1f]*")
"""The names of cases, which are those of files, too."""
UNKNOWN: Final = "unknown"
"""The cell `spacing` of a case whose file has lost its spacing."""

_REQUIRED = ("image", "mask", "patient")
_OPTIONAL = ("split", "case", "spacing", "series")
_MOST_SEQUENCES = 3
_VOXEL_FORM = ((3,), "'5x0.5x0.4' (distance of slices, height, width)")
_PIXEL_FORM = ((1, 2), "'0.5', or as height x width '0.5x0.4'")
"""The allowed number of lengths in a spacing, and how to write it."""


@dataclass(frozen=True)
class Line:
    """A line of a manifest, which describes a case."""

    case: str
    image: Entry
    """The image, or the first of its sequences."""
    sequences: tuple[Path, ...]
    """The further sequences."""
    mask: Path | None
    """None if the cell is empty."""
    patient: str
    """Empty if the cell is."""
    split: Split | None
    """None if the cell is empty."""
    spacing_mm: tuple[float, ...] | None
    """None if the cell is empty, or if the spacing is lost."""
    spacing_lost: bool
    series: str | None
    """None if the cell is empty."""


def read_lines(name: str, folder: Path) -> Iterator[Line]:
    """The lines of the manifest of the site `name` in `folder`, in their order.

    Raises:
        DataError: the file cannot be read, or a line has a wrong value; the message names the line.
    """
    try:
        text = (folder / MANIFEST).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as exc:
        raise DataError(f"site {name!r}: {MANIFEST} is not UTF-8 text; save it as CSV (UTF-8)") from exc
    except OSError as exc:
        raise DataError(f"site {name!r}: {MANIFEST} cannot be read ({exc.strerror}); make it readable") from exc
    reader = csv.DictReader(text.splitlines(), strict=True)
    try:
        _check_columns(reader.fieldnames or ())
        for row in filter(_has_values, reader):
            yield _line(folder, row)
    except (csv.Error, DataError) as exc:
        remedy = "; save it as a plain CSV file" if isinstance(exc, csv.Error) else ""
        raise DataError(f"site {name!r}, {MANIFEST} line {max(1, reader.line_num)}: {exc}{remedy}") from exc


def _has_values(row: Mapping[str | None, str | list[str] | None]) -> bool:
    """Whether a cell of a line is not empty; programs for tables write empty lines such as `,,` at the end."""
    return any(cell.strip() for cell in _flat(row.values()))


def _flat(cells: Iterable[str | list[str] | None]) -> Iterator[str]:
    """The texts of a line: cells beyond the columns are a list, and those that are not there are None."""
    for cell in cells:
        yield from cell if isinstance(cell, list) else (cell or "",)


def _check_columns(columns: Sequence[str]) -> None:
    found = set(columns)
    if len(found) < len(columns) or not found.issuperset(_REQUIRED) or not found.issubset(_REQUIRED + _OPTIONAL):
        raise DataError(
            f"the columns are {list(columns)}; {', '.join(_REQUIRED)} are required, {', '.join(_OPTIONAL)} are allowed, and no others; "
            "each is named once, and they are separated by commas"
        )


def _line(folder: Path, row: Mapping[str | None, str | list[str] | None]) -> Line:
    """A line of the manifest.

    Raises:
        DataError: a value cannot be used; the message does not name the line.
    """
    cell = _cells(row)
    if not cell["image"]:
        raise DataError("the cell 'image' is empty; give the path of the image, or remove the line")
    image, *sequences = _images(folder, cell["image"])
    case = cell.get("case") or image.stem
    if not CASE_NAME.fullmatch(case):
        raise DataError(f"case {case!r} cannot name a file; use no '/', '\\' or control characters")
    spacing = cell.get("spacing", "")
    return Line(
        case=case,
        image=image,
        sequences=tuple(one.path for one in sequences),
        mask=_inside(folder, cell["mask"]).path if cell["mask"] else None,
        patient=cell["patient"],
        split=_split(cell.get("split", "")),
        spacing_mm=None if spacing == UNKNOWN else _spacing(spacing, volume=image.volume),
        spacing_lost=spacing == UNKNOWN,
        series=cell.get("series") or None,
    )


def _cells(row: Mapping[str | None, str | list[str] | None]) -> dict[str, str]:
    """The values of a line by column, without surrounding spaces.

    Raises:
        DataError: the line has more or fewer values than there are columns.
    """
    if None in row or None in row.values():
        raise DataError("not as many values as columns; give every column a value (or leave it empty)")
    return {str(column): str(value).strip() for column, value in row.items()}


def _images(folder: Path, text: str) -> list[Entry]:
    """The image of a case, or its sequences.

    Raises:
        DataError: there are too many, a picture is one of several, or a file cannot be read.
    """
    images = [_inside(folder, one.strip()) for one in text.split(";")]
    if len(images) > _MOST_SEQUENCES:
        raise DataError(f"{len(images)} images; a case has at most {_MOST_SEQUENCES} sequences")
    pictures = [image.path.name for image in images if not image.volume]
    if pictures and len(images) > 1:
        raise DataError(
            f"{pictures[0]!r} is a picture, and only volumes can have several sequences; give one image, in which the channels "
            "of a picture are its colours"
        )
    return images


def _inside(folder: Path, text: str) -> Entry:
    """The file or folder at a path of the manifest.

    Raises:
        DataError: the path leads out of the folder, or to no file that can be read.
    """
    if not _is_relative(text):
        raise DataError(f"{text!r} is not a path inside the site's folder; write it relative to {MANIFEST}, with '/'")
    path = folder / text
    if not path.is_file() and not path.is_dir():
        raise DataError(f"there is no file {text!r}; correct the name or remove the line")
    entry = entry_of(path)
    if entry is None:
        raise DataError(f"{text!r} is not an image that can be read; use {READABLE}")
    return entry


def _is_relative(text: str) -> bool:
    """Whether a path stays inside the folder by its text. Links are not resolved: a site may link its pictures from another folder."""
    path = PurePosixPath(text)
    return text != "" and "\\" not in text and not path.is_absolute() and ".." not in path.parts


def _split(text: str) -> Split | None:
    if text and text not in SPLITS:
        raise DataError(f"split {text!r}; use {', '.join(SPLITS)}, or leave it empty on every line")
    return SPLITS[SPLITS.index(text)] if text else None


def _spacing(text: str, *, volume: bool) -> tuple[float, ...] | None:
    """The spacing in mm that a cell gives, of a pixel or of a voxel; None if the cell is empty.

    Raises:
        DataError: the text is not a spacing.
    """
    if not text:
        return None
    lengths = _lengths(text)
    allowed, form = _VOXEL_FORM if volume else _PIXEL_FORM
    if len(lengths) not in allowed or not all(0 < length < 1000 for length in lengths):
        raise DataError(f"spacing {text!r}; write mm as {form}, '{UNKNOWN}' where the file has lost it, or nothing")
    return lengths if volume else (lengths[0], lengths[-1])


def _lengths(text: str) -> tuple[float, ...]:
    """The numbers in a text such as `0.5x0.4`; none if one of them is not a number."""
    try:
        return tuple(map(float, text.split("x")))
    except ValueError:
        return ()
