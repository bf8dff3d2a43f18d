"""The series in a DICOM folder, as rows of the table that `pfedsam data check` prints, so that the user can choose one.

Rows contain only numbers and codes: no name, no identifier, no free text, and times relative to the first series instead of dates.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from pfedsam.core.errors import DataError
from pfedsam.data.readers.base import Reader
from pfedsam.data.readers.dicom import DicomReader
from pfedsam.data.readers.dicom_files import Series, find_images
from pfedsam.data.readers.dicom_planes import Plane

_PLANES: Final = ("sagittal", "coronal", "axial")
_OBLIQUE: Final = np.cos(np.radians(10))
"""Cosine of the angle to a body plane from which a plane is called oblique."""
_CODE: Final = re.compile(r"[A-Z0-9_ ]{1,16}")
"""The form of a value of ImageType (value representation CS)."""


@dataclass(frozen=True)
class SeriesRow:
    """One series, or one stack of a series with several orientations, image types or sizes."""

    number: int
    """The number for the option `series`."""
    modality: str
    plane: str
    """axial, coronal or sagittal, with oblique before it if the slices are tilted against that plane; empty if it is not known."""
    image_type: str
    """The codes of ImageType, such as ORIGINAL PRIMARY AXIAL."""
    seconds: float | None
    """Time between the start of the folder's first series and that of this one; None if it is not known."""
    slices: int
    """Number of different positions, or of pictures if the files have no positions."""
    times: int
    """Number of pictures at each position: times, echoes or b-values."""
    size: tuple[int, int]
    """Rows, columns."""
    spacing_mm: tuple[float, float, float] | None
    """Distance of slices, rows and columns; None if it is not known."""
    chosen: bool
    """Whether this one is read."""


def list_series(path: Path) -> tuple[SeriesRow, ...]:
    """The series of a folder for which the choice of one failed; empty if there are fewer than two, or a file is damaged."""
    if not path.is_dir():
        return ()
    try:
        return describe_series(find_images(path).series, chosen=None)
    except DataError:
        return ()


def series_of(reader: Reader) -> tuple[SeriesRow, ...]:
    """The series of the folder that a reader reads; empty if there is no choice."""
    if not isinstance(reader, DicomReader):
        return ()
    return describe_series(reader.found, chosen=reader.series.number)


def describe_series(found: Sequence[Series], *, chosen: int | None) -> tuple[SeriesRow, ...]:
    """A row for each series; none where there are fewer than two."""
    if len(found) < 2:
        return ()
    starts = [one.started for one in found if one.started is not None]
    first = min(starts, default=0.0)
    return tuple(_row(one, first, chosen=one.number == chosen) for one in found)


def _row(series: Series, first: float, *, chosen: bool) -> SeriesRow:
    plane = series.planes[0]
    places = _places(series.planes)
    slices = len(places) or len(series.planes)
    gap = float(np.median(np.diff(places))) if len(places) > 1 else plane.thickness
    return SeriesRow(
        number=series.number,
        modality=series.modality,
        plane=_plane_name(plane),
        image_type=" ".join(part for part in series.image_type if _CODE.fullmatch(part)),
        seconds=None if series.started is None else series.started - first,
        slices=slices,
        times=round(len(series.planes) / slices),
        size=(plane.rows, plane.columns),
        spacing_mm=(gap, *plane.spacing) if gap and plane.spacing else None,
        chosen=chosen,
    )


def _places(planes: Sequence[Plane]) -> list[float]:
    """The different positions of planes along their normal, in mm; empty if one has no position."""
    first = planes[0].orientation
    if first is None or any(plane.position is None for plane in planes):
        return []
    normal = np.cross(first[:3], first[3:])
    return sorted({round(float(np.dot(normal, plane.position or ())), 2) for plane in planes})


def _plane_name(plane: Plane) -> str:
    """The body plane of a picture, with oblique before it if the picture is tilted against it."""
    if plane.orientation is None:
        return ""
    normal = np.abs(np.cross(plane.orientation[:3], plane.orientation[3:]))
    axis = int(normal.argmax())
    return _PLANES[axis] if normal[axis] >= _OBLIQUE else f"oblique {_PLANES[axis]}"
