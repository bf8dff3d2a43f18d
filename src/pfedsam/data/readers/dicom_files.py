"""The DICOM images in a folder, divided by series, orientation, kind of image and size; only headers are read.

Files are recognised by their content. Files without a picture to segment (SR, RT plan, RT dose, ECG, DICOMDIR and others) are counted and
left out. Of the fields about a person only the patient's number is read; it is replaced by a digest at once, which is compared within a
series. No free text is read except the description that the option `series` is compared with.
"""

import hashlib
import logging
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from operator import itemgetter
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import pydicom
from pydicom.config import disable_value_validation
from pydicom.dataset import Dataset
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from pfedsam.core.errors import DataError
from pfedsam.data.readers.dicom_folders import (
    is_dicom,
    looks_like_dicom,
    refuse_lost_slices,
    start_of,
    visible_files,
)
from pfedsam.data.readers.dicom_planes import (
    TIMES,
    Plane,
    image_type,
    number_of,
    number_of_frames,
    read_plane,
    refuse_absent_fields,
    same_stack,
)
from pfedsam.data.readers.dicom_streams import open_inflated

# The warnings of pydicom quote header values, which may be names of patients.
logging.getLogger("pydicom").setLevel(logging.CRITICAL)

_ORIGINS: Final = {
    "PatientID": "patients",
    "StudyInstanceUID": "studies",
    "FrameOfReferenceUID": "coordinate systems (frames of reference)",
}
"""Fields that have one value in a sound series, and what its pictures belong to several of if the values differ. A picture without the
field is not counted."""
_IDENTITY: Final = ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "InstanceNumber", *_ORIGINS)
_SERIES: Final = ("Modality", "ImageType", "SeriesNumber", "SeriesDescription", "ProtocolName", "VolumetricProperties")
_TILES: Final = ("DimensionOrganizationType", "TotalPixelMatrixColumns")
"""Fields of a picture whose frames are its tiles."""
_PIXELS: Final = (
    *("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "BitsAllocated", "BitsStored"),
    *("PixelRepresentation", "PhotometricInterpretation", "RescaleSlope", "RescaleIntercept"),
)
_GEOMETRY: Final = (
    *("PixelSpacing", "SliceThickness", "SpacingBetweenSlices", "ImagePositionPatient", "ImageOrientationPatient"),
    *("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"),
)
_DATES: Final = tuple(f"{event}{part}" for event in ("Acquisition", "Series") for part in ("Date", "Time"))
_TAGS: Final = [
    *_IDENTITY,
    *_SERIES,
    *_TILES,
    *_PIXELS,
    *_GEOMETRY,
    *_DATES,
    "AcquisitionDateTime",
    "ContentTime",
    *TIMES,
]
"""The header fields that are read."""
_NO_PICTURE: Final = frozenset(
    {
        *("SEG", "RTSTRUCT", "RTDOSE", "RTPLAN", "RTRECORD", "SR", "PR", "KO", "ECG"),
        *("HD", "EPS", "AU", "DOC", "REG", "FID", "PLAN", "RWV"),
    }
)
"""Modalities of files without a picture to segment."""
_MAX_FRAMES: Final = 2**16
"""Largest number of pictures in one file; a header with a larger one is damaged."""
MOST_HEADER: Final = 2**26
"""Largest header of a deflated file, in bytes; one with thousands of frames has about ten million."""
_DICOMDIR: Final = "1.2.840.10008.1.3.10"
PALETTE: Final = "PALETTE COLOR"
"""PhotometricInterpretation of pictures whose values are indices of a table of colours."""
_NATIVE: Final = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian)


_Picture: TypeAlias = tuple[Dataset, Plane]
"""A picture, and the header of its file."""


@dataclass(frozen=True)
class Series:
    """Pictures that belong together."""

    number: int
    """From 1, in the order in which they are listed."""
    planes: tuple[Plane, ...]
    modality: str
    samples: int
    colour: bool
    """Whether the values are colours, or indices of a table of colours."""
    stored: np.dtype[Any]
    """A type that holds the stored values of every picture."""
    rescaled: bool
    """Whether a slope or an intercept changes the stored values."""
    mosaic: bool
    tiled: bool
    """Whether the pictures are tiles of a larger one, as those of a slide."""
    depth_frames: bool
    """Whether frames without positions are known to be slices and not times."""
    frame_of_reference: str | None
    image_type: tuple[str, ...]
    mixed: tuple[str, ...]
    """The kinds of things to several of which the pictures belong, such as patients; empty in a sound series."""
    written_singly: bool
    """Whether each of three or more files of one patient names a study or a frame of reference of its own."""
    started: float | None = field(repr=False)
    """Seconds since a fixed day; compared with those of other series, never shown."""
    words: str = field(repr=False)
    """Description in lower case, compared with the option `series`; never shown."""
    uid: str | None = field(repr=False)
    """SeriesInstanceUID, compared with the option `series`; never shown."""
    digest: str
    """Digest of what distinguishes the series from others: the SeriesInstanceUID, and kind, orientation, size and spacing of pictures."""
    patient: str | None = field(default=None, repr=False)
    """Digest of the PatientID, compared with those of other cases; never shown. None if the pictures have none, or several."""

    def summary(self) -> str:
        """Text for a message, which contains only numbers and the modality."""
        first = self.planes[0]
        return f"{self.number}: {self.modality}, {len(self.planes)} picture(s) of {first.columns} x {first.rows}"


@dataclass(frozen=True)
class Found:
    """The contents of a folder, or of a file."""

    series: list[Series]
    others: Counter[str]
    """Number of files without a picture, by modality or by another reason such as 'not DICOM'."""
    segmentations: list[Path]
    structures: list[Path]


@contextmanager
def quiet() -> Iterator[None]:
    """Keep pydicom from quoting header values in warnings."""
    with warnings.catch_warnings(), disable_value_validation():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def reading_fields(path: Path) -> Iterator[None]:
    """Turn what pydicom raises on fields that are absent or damaged into the message about the file.

    Raises:
        DataError: the file is damaged.
    """
    try:
        with quiet():
            yield
    except (AttributeError, LookupError, TypeError, ValueError, ArithmeticError):
        raise DataError(damaged(path)) from None


def read_head(path: Path) -> Dataset:
    """The fields of a file's header that are used.

    Raises:
        DataError: the file is damaged or cut off, or its header is too large.
    """
    try:
        with quiet(), open_inflated(path, MOST_HEADER) as source:
            head = pydicom.dcmread(source.file, force=True, stop_before_pixels=True, specific_tags=list(_TAGS))
            left = source.size - source.file.tell()
            if not source.whole and left <= 0:
                raise DataError(
                    f"{path.name!r} is a deflated DICOM file whose header has more than {MOST_HEADER / 1e6:.0f} MB, and no more is read; "
                    "save it without this compression, or take the case out"
                )
            if head.get("PatientID"):
                head.PatientID = short_digest(head.PatientID)
            head.walk(lambda *_: None)  # converts every value now: pydicom does so when it is first used, and may raise
            if getattr(head, "file_meta", {}).get("MediaStorageSOPClassUID") == _DICOMDIR:
                head.SOPClassUID = (
                    _DICOMDIR  # an index has its class in the file meta information only (DICOM PS3.3, F.3)
                )
            head.SOPClassUID  # noqa: B018 - absent in a file that was cut off, which pydicom reads without an error
            if not 0 <= number_of(head.get("NumberOfFrames"), 1) <= _MAX_FRAMES:
                raise DataError(damaged(path))
            if "Image Storage" in UID(head.SOPClassUID).name:
                if left > 0:  # else the file is cut off
                    refuse_absent_fields(path, head)
                if source.whole:
                    _check_length(path, head, left)
            return head
    except DataError:
        raise
    except Exception:  # noqa: BLE001 - pydicom raises almost anything on damaged files, and its text quotes header values
        raise DataError(damaged(path)) from None


def short_digest(value: Any) -> str:  # noqa: ANN401 - a DICOM value, or several
    """A short digest of what must not be shown."""
    return hashlib.blake2b(repr(value).encode(), digest_size=8).hexdigest()


def damaged(path: Path) -> str:
    """The message about a DICOM file that cannot be read."""
    return f"{path.name!r} is a damaged or cut off DICOM file; copy it again from its source, or take the case out"


def find_images(path: Path) -> Found:
    """The series in a folder, or of a file, sorted by number.

    Raises:
        DataError: a file is damaged, cannot be read or may be a lost slice, or is a DICOMDIR and no folder.
    """
    others: Counter[str] = Counter()
    by_modality: dict[str, list[Path]] = defaultdict(list)
    stacks: dict[tuple[Any, ...], list[list[_Picture]]] = defaultdict(list)
    for file in _dicom_files(path, others):
        head = read_head(file)
        by_modality[_modality(head)].append(file)
        reason = _without_picture(head)
        if reason == "DICOMDIR" and file == path:
            raise DataError(
                f"{file.name!r} is a DICOMDIR, an index without pictures; give the folder that holds the files"
            )
        if reason:
            others[reason] += 1
            continue
        for plane in _planes_of(file, head):
            _add_to_stack(stacks[_series_key(head, plane)], (head, plane))
    placed = [(_place_in_list(key, stack), stack) for key, found in stacks.items() for stack in found]
    ordered = sorted(placed, key=itemgetter(0))
    equal: Counter[tuple[Any, ...]] = Counter()
    series = []
    for number, ((_, *place), stack) in enumerate(ordered, start=1):
        equal[tuple(place)] += 1
        series.append(_series(number, stack, short_digest((*place, equal[tuple(place)]))))
    return Found(series, others, by_modality["SEG"], by_modality["RTSTRUCT"])


def may_hold_picture(path: Path) -> bool:
    """Whether a file is DICOM with a picture to segment; also True for a damaged one, which is reported where it is read."""
    if not looks_like_dicom(path):
        return False
    try:
        return _without_picture(read_head(path)) is None
    except DataError:
        return True


def _dicom_files(path: Path, others: Counter[str]) -> list[Path]:
    """The DICOM files of a folder, or the file itself if it is one; the number of all other files is added to `others`.

    Raises:
        DataError: a file cannot be read, or may be a lost slice.
    """
    starts = {file: start_of(file) for file in visible_files(path)}
    found = [file for file, start in starts.items() if is_dicom(start)]
    unknown = {file: start for file, start in starts.items() if not is_dicom(start)}
    if found:
        refuse_lost_slices(unknown, found)
    if unknown:
        others["not DICOM"] = len(unknown)
    return found


def _modality(head: Dataset) -> str:
    return str(head.get("Modality", "")).upper()


def _without_picture(head: Dataset) -> str | None:
    """Why a file contains no picture to segment; None if it contains one."""
    if head.SOPClassUID == _DICOMDIR:
        return "DICOMDIR"
    if _modality(head) in _NO_PICTURE:
        return _modality(head)
    return (
        None if {"Rows", "Columns", "BitsAllocated"} <= {element.keyword for element in head} else "without a picture"
    )


def choose_series(found: Found, wanted: str | None, name: str) -> Series:
    """The series to read.

    Args:
        found: the contents of the folder or file.
        wanted: number of the series, its SeriesInstanceUID or digest, or words of its description; None if there is only one.
        name: name of the folder or file, for messages.

    Raises:
        DataError: None or several fit, or its pictures are of several patients, studies or frames of reference.
    """
    if not found.series:
        others = ", ".join(f"{count} {kind}" for kind, count in sorted(found.others.items()))
        raise DataError(
            f"{name!r} holds no DICOM picture (it holds {others or 'no file'}); give a folder of one series"
        )
    fitting = found.series if wanted is None else _matching(found.series, wanted)
    if len(fitting) == 1:
        _refuse_mixed(fitting[0], name)
        return fitting[0]
    listed = "; ".join(one.summary() for one in found.series[:8])
    raise DataError(
        f"{name!r} holds {len(found.series)} series or stacks of different orientation, kind, size or spacing, "
        f"{_ambiguity(len(fitting), wanted)} ({listed}); choose one by data.volume.series, or by the column series of the manifest"
    )


def _refuse_mixed(series: Series, name: str) -> None:
    """Refuse a series that consists of pictures of several patients, studies or frames of reference.

    Raises:
        DataError: it is such a series.
    """
    if series.mixed:
        remedy = (
            "each file names its own, as where a program wrote the slices one by one (SimpleITK does); if they are of one scan, write the "
            "same StudyInstanceUID and FrameOfReferenceUID into all of them"
            if series.written_singly
            else "leave the pictures that belong together in the folder, and take the others out"
        )
        raise DataError(
            f"{name!r} holds one DICOM series whose pictures belong to several {' and '.join(series.mixed)}, and those of a volume belong "
            f"to one; {remedy}"
        )


def _matching(series: Sequence[Series], wanted: str) -> list[Series]:
    """The series with the wanted number, UID or digest, else those whose description contains all of the wanted words."""
    words = wanted.lower().split()
    named = [one for one in series if wanted.strip() in (str(one.number), one.uid, one.digest)]
    return named or [one for one in series if words and all(map(one.words.__contains__, words))]


def _ambiguity(fitting: int, wanted: str | None) -> str:
    if wanted is None:
        return "of which one must be named"
    return f"of which {fitting} fit" if fitting else "none of which fits"


def _check_length(path: Path, head: Dataset, left: int) -> None:
    """Refuse a file without compression that has fewer bytes left after its header than its pixels need.

    Raises:
        DataError: the file is cut off.
    """
    syntax = getattr(getattr(head, "file_meta", None), "TransferSyntaxUID", ImplicitVRLittleEndian)
    frames = int(number_of(head.get("NumberOfFrames"), 1))
    values = int(head.Rows) * int(head.Columns) * int(head.get("SamplesPerPixel", 1)) * frames
    if str(head.get("PhotometricInterpretation", "")) == "YBR_FULL_422":
        values = values * 2 // 3
    if syntax in _NATIVE and left < values * int(head.BitsAllocated) // 8:
        raise DataError(damaged(path))


def _planes_of(path: Path, head: Dataset) -> list[Plane]:
    """The pictures of a file.

    Raises:
        DataError: the file is damaged.
    """
    with reading_fields(path):
        return [read_plane(path, head, frame) for frame in range(number_of_frames(path, head))]


def _series_key(head: Dataset, plane: Plane) -> tuple[Any, ...]:
    """Series, image type and colour of a picture; the fourth value of the image type counts for MR only."""
    kind = plane.image_type[: 4 if head.get("Modality") == "MR" else 3]
    return str(head.get("SeriesInstanceUID", "")), kind, str(head.get("PhotometricInterpretation", ""))


def _add_to_stack(stacks: list[list[_Picture]], picture: _Picture) -> None:
    """Add a picture to the stack of a series that it belongs to, or as a new stack."""
    for stack in stacks:
        if same_stack(stack[0][1], picture[1]):
            stack.append(picture)
            return
    stacks.append([picture])


def _place_in_list(key: tuple[Any, ...], stack: list[_Picture]) -> tuple[Any, ...]:
    """The sort key of a stack: number of the series, then what distinguishes series and stacks, independent of the names of files."""
    head, plane = stack[0]
    direction = tuple(round(value, 2) + 0.0 for value in plane.orientation or ())
    spacing = tuple(round(value, 3) for value in plane.spacing or ())
    return number_of(head.get("SeriesNumber")), *map(str, (*key, direction, (plane.rows, plane.columns), spacing))


def _series(number: int, members: Sequence[_Picture], digest: str) -> Series:
    """The pictures of a stack as a series.

    Args:
        number: its number in the list.
        members: its pictures.
        digest: what identifies it.

    Raises:
        DataError: a header is damaged.
    """
    head, first = members[0]
    heads = {id(one): one for one, _ in members}.values()
    with reading_fields(first.path):
        samples, patients = int(number_of(head.get("SamplesPerPixel"), 1)), _values_of(heads, "PatientID")
        origins = {what: len(_values_of(heads, keyword)) for keyword, what in _ORIGINS.items()}
        return Series(
            number=number,
            planes=tuple(plane for _, plane in members),
            modality=_modality(head)[:16],
            samples=samples,
            colour=samples > 1 or str(head.get("PhotometricInterpretation", "")) == PALETTE,
            stored=np.result_type(*map(_stored_type, heads)),
            rescaled=any(map(_is_rescaled, heads)) or any(plane.slope is not None for _, plane in members),
            mosaic="MOSAIC" in image_type(head),
            tiled=any(map(_is_tiled, heads)),
            depth_frames=str(head.get("VolumetricProperties", "")) == "VOLUME",
            frame_of_reference=str(head.get("FrameOfReferenceUID", "")) or None,
            image_type=first.image_type,
            mixed=tuple(what for what, number in origins.items() if number > 1),
            written_singly=len(patients) < 2 < len(heads) and len(heads) in origins.values(),
            started=_started(heads),
            words=f"{head.get('SeriesDescription', '')} {head.get('ProtocolName', '')}".lower(),
            uid=str(head.get("SeriesInstanceUID", "")) or None,
            digest=digest,
            patient=next(iter(patients)) if len(patients) == 1 else None,
        )


def _is_tiled(head: Dataset) -> bool:
    organization, columns = (head.get(keyword) for keyword in _TILES)
    return columns is not None or str(organization or "").upper().startswith("TILED")


def _values_of(heads: Iterable[Dataset], keyword: str) -> set[str]:
    """The different values of a field; a header without the field adds none."""
    return {str(head.get(keyword) or "") for head in heads} - {""}


def _stored_type(head: Dataset) -> np.dtype[Any]:
    """The type of the stored values of a file: floating point numbers where 32 or 64 bits have no field for the sign."""
    bits = number_of(head.get("BitsAllocated"), 16)
    size = next((size for size in (1, 2, 4) if bits <= 8 * size), 8)
    if size >= 4 and "PixelRepresentation" not in head:
        return np.dtype(f"f{size}")
    return np.dtype(f"{'i' if number_of(head.get('PixelRepresentation')) else 'u'}{size}")


def _is_rescaled(head: Dataset) -> bool:
    """Whether the slope and intercept of a file change its stored values."""
    slope, intercept = number_of(head.get("RescaleSlope"), 1), number_of(head.get("RescaleIntercept"), 0)
    return (slope, intercept) != (1, 0)


def _started(heads: Iterable[Dataset]) -> float | None:
    """The time of the first picture, in seconds since a fixed day; None if no header gives one."""
    times = map(_moment, heads)
    return min((time for time in times if time is not None), default=None)


def _moment(head: Dataset) -> float | None:
    """The time of a picture in seconds since a fixed day; None if the header gives none, or not in DICOM's format."""
    whole = str(head.get("AcquisitionDateTime") or "")
    for date, time in ((whole[:8], whole[8:14]), *_pairs(head, ("Acquisition", "Series"))):
        try:
            return (datetime.strptime(date + time[:6], "%Y%m%d%H%M%S") - datetime(1900, 1, 1)).total_seconds()
        except ValueError:
            continue
    return None


def _pairs(head: Dataset, kinds: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Date and time of each kind of event, as text from the header."""
    return ((str(head.get(f"{kind}Date") or ""), str(head.get(f"{kind}Time") or "")) for kind in kinds)
