"""Which DICOM images lie in a folder, told apart by series, orientation, kind of image and size; headers only.

Files are recognised by their content. What has no picture to segment (SR, RT plan, RT dose, ECG, DICOMDIR, ...) is counted and left out.
Nothing that a header says about a person or in free text is read, but for the description that `series` is compared with.
"""

import logging
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import pydicom
from pydicom.config import disable_value_validation
from pydicom.dataset import Dataset
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from pfedsam.core.errors import DataError

logging.getLogger("pydicom").setLevel(
    logging.CRITICAL
)  # its warnings quote header values, which may be names of patients

_TAGS: Final = [
    *(
        "SOPClassUID",
        "SOPInstanceUID",
        "SeriesInstanceUID",
        "FrameOfReferenceUID",
        "Modality",
        "ImageType",
        "SeriesNumber",
    ),
    *(
        "SeriesDescription",
        "ProtocolName",
        "InstanceNumber",
        "Rows",
        "Columns",
        "NumberOfFrames",
        "SamplesPerPixel",
        "BitsAllocated",
    ),
    *(
        "BitsStored",
        "PixelRepresentation",
        "PhotometricInterpretation",
        "PixelSpacing",
        "SliceThickness",
        "SpacingBetweenSlices",
    ),
    *("ImagePositionPatient", "ImageOrientationPatient", "RescaleSlope", "RescaleIntercept", "VolumetricProperties"),
    *(
        "TemporalPositionIdentifier",
        "TriggerTime",
        "EchoTime",
        "AcquisitionNumber",
        "AcquisitionDateTime",
        "AcquisitionDate",
        "AcquisitionTime",
        "SeriesDate",
        "SeriesTime",
        "ContentTime",
        "DiffusionBValue",
    ),
    *("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"),
]
_NO_PICTURE: Final = frozenset(
    {
        "SEG",
        "RTSTRUCT",
        "RTDOSE",
        "RTPLAN",
        "RTRECORD",
        "SR",
        "PR",
        "KO",
        "ECG",
        "HD",
        "EPS",
        "AU",
        "DOC",
        "REG",
        "FID",
        "PLAN",
        "RWV",
    }
)
_MAX_FRAMES: Final = 2**16
"""Pictures in one file; a header that claims more is damaged."""
_DICOMDIR: Final = "1.2.840.10008.1.3.10"
_NATIVE: Final = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian)
_GROUPS: Final = (b"\x08\x00", b"\x02\x00")
_TIMES: Final = ("TemporalPositionIdentifier", "TriggerTime", "EchoTime", "DiffusionBValue", "AcquisitionNumber")


@dataclass(frozen=True)
class Plane:
    """One picture of a series: a file, or a frame of one."""

    path: Path
    frame: int
    rows: int
    columns: int
    position: tuple[float, ...] | None
    """Patient coordinates of the middle of the first pixel (DICOM: x to the left, y to the back, z to the head), mm."""
    orientation: tuple[float, ...] | None
    """Direction of a row, then of a column."""
    spacing: tuple[float, float] | None
    """Distance of rows, then of columns, in mm."""
    thickness: float | None
    slope: float | None
    """Of this frame; None: the file's own, or its table."""
    intercept: float | None
    order: tuple[float, ...]
    """By what pictures at one position are sorted: time, echo, number."""
    instance: str


@dataclass(frozen=True)
class Series:
    """Pictures that belong together."""

    number: int
    """From 1, as listed."""
    planes: tuple[Plane, ...]
    modality: str
    samples: int
    bits: int
    signed: bool
    mosaic: bool
    depth_frames: bool
    """Whether frames without positions are known to be slices, not times."""
    frame_of_reference: str | None
    image_type: tuple[str, ...]
    started: float | None = field(repr=False)
    """Seconds since a fixed day; compared with those of other series, never shown."""
    words: str = field(repr=False)
    """Description in lower case, for `series`; never shown."""

    def summary(self) -> str:
        """What a message may say about it: nothing but numbers and the modality."""
        first = self.planes[0]
        return f"{self.number}: {self.modality}, {len(self.planes)} picture(s) of {first.columns} x {first.rows}"


@dataclass
class Found:
    """What a folder, or a file, holds."""

    series: list[Series]
    others: Counter[str]
    """Modality, or 'not DICOM' -> files without a picture."""
    segmentations: list[Path]
    structures: list[Path]


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps pydicom from quoting header values in warnings."""
    with warnings.catch_warnings(), disable_value_validation():
        warnings.simplefilter("ignore")
        yield


def looks_like_dicom(path: Path) -> bool:
    """Whether a file's content is DICOM, with or without the preamble."""
    try:
        with path.open("rb") as file:
            start = file.read(132)
    except OSError:
        return False
    if start[128:132] == b"DICM":
        return True
    return (
        start[:2] in _GROUPS
        and len(start) > 8
        and ((start[4:6].isalpha() and start[4:6].isupper()) or start[6:8] == b"\0\0")
    )


def read_head(path: Path) -> Dataset:
    """The part of a file's header that is used.

    Raises:
        DataError: The file is damaged; a header that was cut off reads as an empty one without an error.
    """
    try:
        with quiet(), path.open("rb") as file:
            head = pydicom.dcmread(file, force=True, stop_before_pixels=True, specific_tags=list(_TAGS))
            head.walk(lambda *_: None)  # converts every value now: pydicom does so when it is first used, and may raise
            head.SOPClassUID  # noqa: B018 - absent in a file that was cut off
            if not 0 <= _number(head.get("NumberOfFrames"), 1) <= _MAX_FRAMES:
                raise DataError(damaged(path))
            if "Image Storage" in UID(head.SOPClassUID).name:
                _check_length(path, head, path.stat().st_size - file.tell())
            return head
    except DataError:
        raise
    except Exception:  # noqa: BLE001 - pydicom raises almost anything on damaged files, and its text quotes header values
        raise DataError(damaged(path)) from None


def damaged(path: Path) -> str:
    """What a message says about a DICOM file that cannot be read."""
    return f"{path.name!r} is a damaged or cut off DICOM file; copy it again from its source, or take the case out"


def find_images(path: Path) -> Found:
    """The series in a folder, or of a file, sorted by number.

    Raises:
        DataError: A DICOM file is damaged, or the file is a DICOMDIR.
    """
    found = Found([], Counter(), [], [])
    groups: dict[tuple[Any, ...], list[tuple[Dataset, list[Plane]]]] = {}
    files = (
        sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
        if path.is_dir()
        else [path]
    )
    for file in files:
        if not looks_like_dicom(file):
            found.others["not DICOM"] += 1
            continue
        head = read_head(file)
        if head.SOPClassUID == _DICOMDIR:
            if file == path:
                raise DataError(
                    f"{file.name!r} is a DICOMDIR, an index without pictures; give the folder that holds the files"
                )
            found.others["DICOMDIR"] += 1
            continue
        modality = str(head.get("Modality", "")).upper()
        if modality == "SEG":
            found.segmentations.append(file)
        elif modality == "RTSTRUCT":
            found.structures.append(file)
        if modality in _NO_PICTURE or not {"Rows", "Columns", "BitsAllocated"} <= {element.keyword for element in head}:
            found.others[modality if modality in _NO_PICTURE else "without a picture"] += 1
            continue
        try:
            frames = _split_frames(file, head)
        except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError):
            raise DataError(damaged(file)) from None
        for key, planes in frames.items():
            groups.setdefault(key, []).append((head, planes))
    ordered = sorted(groups.items(), key=lambda item: (_number(item[1][0][0].get("SeriesNumber")), *map(str, item[0])))
    found.series = [_series(number, members) for number, (_, members) in enumerate(ordered, start=1)]
    return found


def choose_series(found: Found, wanted: str | None, name: str) -> Series:
    """The one series that is meant.

    Args:
        found: What is there.
        wanted: Number or words of the description; None: there is only one.
        name: Of the folder or file, for messages.

    Raises:
        DataError: None or several fit.
    """
    others = ", ".join(f"{count} {kind}" for kind, count in sorted(found.others.items()))
    if not found.series:
        raise DataError(
            f"{name!r} holds no DICOM picture (it holds {others or 'no file'}); give a folder of one series"
        )
    fitting = found.series
    if wanted is not None:
        words = wanted.lower().split()
        numbered = [one for one in found.series if str(one.number) == wanted.strip()]
        fitting = numbered or [one for one in found.series if words and all(word in one.words for word in words)]
    if len(fitting) == 1:
        return fitting[0]
    listed = "; ".join(one.summary() for one in found.series[:8])
    what = (
        "none of which fits"
        if not fitting
        else f"of which {len(fitting)} fit"
        if wanted
        else "of which one must be named"
    )
    raise DataError(
        f"{name!r} holds {len(found.series)} series or stacks of different orientation, kind, size or spacing, {what} ({listed}); "
        "choose one by data.volume.series, or by the column series of the manifest"
    )


def _check_length(path: Path, head: Dataset, left: int) -> None:
    """Refuse a file of which less is left than its pixels take, where they are not compressed.

    Raises:
        DataError: It is.
    """
    syntax = getattr(getattr(head, "file_meta", None), "TransferSyntaxUID", ImplicitVRLittleEndian)
    frames = int(_number(head.get("NumberOfFrames"), 1))
    values = int(head.Rows) * int(head.Columns) * int(head.get("SamplesPerPixel", 1)) * frames
    if str(head.get("PhotometricInterpretation", "")) == "YBR_FULL_422":
        values = values * 2 // 3
    if syntax in _NATIVE and left < values * int(head.BitsAllocated) // 8:
        raise DataError(damaged(path))


def _split_frames(path: Path, head: Dataset) -> dict[tuple[Any, ...], list[Plane]]:
    """The file's pictures by what tells series apart."""
    image_type = tuple(str(part) for part in head.get("ImageType") or ())[: 4 if head.get("Modality") == "MR" else 3]
    common = (str(head.get("SeriesInstanceUID", "")), image_type, str(head.get("PhotometricInterpretation", "")))
    groups: dict[tuple[Any, ...], list[Plane]] = {}
    for plane in _planes(path, head):
        direction = tuple(round(value, 2) + 0.0 for value in plane.orientation or ())
        spacing = tuple(round(value, 3) for value in plane.spacing or ())
        key = (*common, direction, (plane.rows, plane.columns), spacing)
        groups.setdefault(key, []).append(plane)
    return groups


def _planes(path: Path, head: Dataset) -> Iterator[Plane]:
    shared = (head.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
    per_frame = head.get("PerFrameFunctionalGroupsSequence") or []
    for frame in range(max(1, int(_number(head.get("NumberOfFrames"), 1)))):
        own = per_frame[frame] if frame < len(per_frame) else Dataset()

        def get(sequence: str, keyword: str, own: Dataset = own) -> Any:  # noqa: ANN401 - a DICOM value
            for group in (own, shared):
                if group.get(sequence):
                    return group[sequence].value[0].get(keyword)
            return head.get(keyword)

        spacing = _numbers(get("PixelMeasuresSequence", "PixelSpacing"), 2)
        thickness = _number(get("PixelMeasuresSequence", "SpacingBetweenSlices")) or _number(
            get("PixelMeasuresSequence", "SliceThickness")
        )
        transformed = bool(
            own.get("PixelValueTransformationSequence") or shared.get("PixelValueTransformationSequence")
        )
        time = get("FrameContentSequence", "TemporalPositionIndex")
        yield Plane(
            path=path,
            frame=frame,
            rows=int(head.Rows),
            columns=int(head.Columns),
            position=_numbers(get("PlanePositionSequence", "ImagePositionPatient"), 3),
            orientation=_numbers(get("PlaneOrientationSequence", "ImageOrientationPatient"), 6),
            spacing=(spacing[0], spacing[1]) if spacing and min(spacing) > 0 else None,
            thickness=thickness or None,
            slope=_number(get("PixelValueTransformationSequence", "RescaleSlope"), 1) if transformed else None,
            intercept=_number(get("PixelValueTransformationSequence", "RescaleIntercept"), 0) if transformed else None,
            order=(
                _number(time),
                *(_number(head.get(keyword)) for keyword in _TIMES),
                _number(head.get("AcquisitionTime") or head.get("ContentTime")),
                _number(head.get("InstanceNumber")),
                float(frame),
            ),
            instance=str(head.get("SOPInstanceUID", "")),
        )


def _series(number: int, members: Sequence[tuple[Dataset, list[Plane]]]) -> Series:
    head = members[0][0]
    words = " ".join(str(head.get(keyword, "")) for keyword in ("SeriesDescription", "ProtocolName"))
    return Series(
        number=number,
        planes=tuple(plane for _, planes in members for plane in planes),
        modality=str(head.get("Modality", "")).upper()[:16],
        samples=int(_number(head.get("SamplesPerPixel"), 1)),
        bits=int(_number(head.get("BitsAllocated"), 16)),
        signed=bool(_number(head.get("PixelRepresentation"))),
        mosaic="MOSAIC" in {str(part) for part in head.get("ImageType") or ()},
        depth_frames=str(head.get("VolumetricProperties", "")) == "VOLUME",
        frame_of_reference=str(head.get("FrameOfReferenceUID", "")) or None,
        image_type=tuple(str(part) for part in head.get("ImageType") or ()),
        started=min((time for head, _ in members if (time := _moment(head)) is not None), default=None),
        words=words.lower(),
    )


def _moment(head: Dataset) -> float | None:
    """When a picture was taken, in seconds since a fixed day; None where the header does not say, or not in DICOM's form."""
    whole = str(head.get("AcquisitionDateTime") or "")
    for date, time in ((whole[:8], whole[8:14]), *_pairs(head, ("Acquisition", "Series"))):
        try:
            return (datetime.strptime(date + time[:6], "%Y%m%d%H%M%S") - datetime(1900, 1, 1)).total_seconds()
        except ValueError:
            continue
    return None


def _pairs(head: Dataset, kinds: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Date and time of each kind of event, as the header has them."""
    return ((str(head.get(f"{kind}Date") or ""), str(head.get(f"{kind}Time") or "")) for kind in kinds)


def _number(value: Any, default: float = 0.0) -> float:  # noqa: ANN401 - a DICOM value
    """A DICOM value as a number, the default where it is absent, empty or none."""
    try:
        return float(value) if value not in (None, "") else default
    except (TypeError, ValueError):
        return default


def _numbers(value: Any, count: int) -> tuple[float, ...] | None:  # noqa: ANN401 - a DICOM value
    """So many numbers; None where they are absent or damaged."""
    try:
        numbers = tuple(float(part) for part in value or ())
    except (TypeError, ValueError):
        return None
    return numbers if len(numbers) == count and all(abs(number) < 1e9 for number in numbers) else None
