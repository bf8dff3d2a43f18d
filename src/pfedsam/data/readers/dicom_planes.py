"""One picture of a DICOM file: its position, its size, and what distinguishes it from others at the same position.

Values come from a frame's own functional groups, from those that all frames share, or from the header itself.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

from pfedsam.core.errors import DataError
from pfedsam.data.readers.base import DIRECTION_TOLERANCE, SPACING_TOLERANCE

TIMES: Final = ("TemporalPositionIdentifier", "TriggerTime", "EchoTime", "DiffusionBValue", "AcquisitionNumber")
"""Fields of a header in which pictures at one position differ."""
_FRAME_TIMES: Final = (
    ("CardiacSynchronizationSequence", "NominalCardiacTriggerDelayTime"),
    ("MREchoSequence", "EffectiveEchoTime"),
    ("MRDiffusionSequence", "DiffusionBValue"),
)
"""The same for the frames of a multi-frame file: functional group and field."""
_OF_PICTURES: Final = ("Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated")
"""Fields without which a picture cannot be decoded."""
_OF_INTEGERS: Final = ("BitsStored", "PixelRepresentation")
"""The same for pictures of integers, which those of up to 16 bits are."""
_LARGEST_LENGTH: Final = 1e9
"""Positions and distances in mm are smaller."""
_FRAME_TYPES: Final = ("MRImageFrameTypeSequence", "CTImageFrameTypeSequence", "PETFrameTypeSequence")


@dataclass(frozen=True)
class Plane:
    """One picture of a series: a file, or a frame of one."""

    path: Path
    frame: int
    rows: int
    columns: int
    position: tuple[float, ...] | None
    """Patient coordinates of the centre of the first pixel in mm, in DICOM's directions (x to the left, y to the back, z to the head)."""
    orientation: tuple[float, ...] | None
    """Unit vector along a row, then along a column."""
    spacing: tuple[float, float] | None
    """Distance of rows, then of columns, in mm."""
    thickness: float | None
    """Distance of slices, or their thickness, in mm."""
    slope: float | None
    """Rescale slope of this frame; None: that of the file, or its modality table, is used."""
    intercept: float | None
    order: tuple[float, ...]
    """Sort key of pictures at one position: times, echo time, b-value, numbers."""
    instance: str
    image_type: tuple[str, ...]
    """That of this frame, else that of the file; magnitude and phase differ in it, for example."""
    number: float | None
    """InstanceNumber of the file."""

    @property
    def picture(self) -> tuple[str, int]:
        """SOP instance and number of the frame from 1, as masks refer to it; compared, never shown."""
        return self.instance, self.frame + 1


def same_stack(one: Plane, other: Plane) -> bool:
    """Whether two pictures have the same size, orientation and spacing, so that they may be slices of one stack."""
    return (
        (one.rows, one.columns) == (other.rows, other.columns)
        and _close(one.orientation, other.orientation, DIRECTION_TOLERANCE)
        and _close(one.spacing, other.spacing, SPACING_TOLERANCE * min(one.spacing or (1.0,)))
    )


def _close(one: tuple[float, ...] | None, other: tuple[float, ...] | None, tolerance: float) -> bool:
    """Whether no two numbers differ by more than the tolerance; also if both are absent."""
    if one is None or other is None:
        return one is other
    return all(abs(first - second) <= tolerance for first, second in zip(one, other, strict=True))


def shared_groups(head: Dataset) -> Dataset:
    """The functional groups that all frames of a file share; empty if there are none."""
    shared: Dataset = (head.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
    return shared


def functional_group(own: Dataset, shared: Dataset, sequence: str) -> Dataset | None:
    """A functional group of a frame: its own one, else the one that all frames share; None if neither exists."""
    found = own.get(sequence) or shared.get(sequence)
    return found[0] if found else None


def refuse_absent_fields(path: Path, head: Dataset) -> None:
    """Refuse a picture without a field that is needed to decode it; its value is not guessed.

    Raises:
        DataError: a field is absent or empty.
    """
    needed = _OF_PICTURES + (_OF_INTEGERS if number_of(head.get("BitsAllocated")) <= 16 else ())
    absent = [keyword for keyword in needed if head.get(keyword) in (None, "")]
    if absent:
        raise DataError(
            f"the header of {path.name!r} lacks {', '.join(absent)}, without which its picture cannot be decoded; export it again, add "
            "what is missing, or take the case out"
        )


def number_of_frames(path: Path, head: Dataset) -> int:
    """The number of pictures in a file.

    Raises:
        DataError: its header does not describe each of them, if it describes any, so that their positions would be unknown or wrong.
    """
    frames = max(1, int(number_of(head.get("NumberOfFrames"), 1)))
    described = len(head.get("PerFrameFunctionalGroupsSequence") or ())
    if described not in (0, frames):
        raise DataError(
            f"{path.name!r} is a damaged DICOM file: it has {frames} frame(s), and functional groups of {described}; copy it again from "
            "its source, or take the case out"
        )
    return frames


def read_plane(path: Path, head: Dataset, frame: int) -> Plane:
    """One frame of a file, from its own functional groups, the shared ones, or the header itself."""
    per_frame = head.get("PerFrameFunctionalGroupsSequence") or []
    own = per_frame[frame] if frame < len(per_frame) else Dataset()
    shared = shared_groups(head)

    def get(sequence: str, keyword: str) -> Any:  # noqa: ANN401 - a DICOM value
        group = functional_group(own, shared, sequence)
        return (head if group is None else group).get(keyword)

    spacing = numbers_of(get("PixelMeasuresSequence", "PixelSpacing"), 2)
    distance = number_of(get("PixelMeasuresSequence", "SpacingBetweenSlices"))
    thickness = number_of(get("PixelMeasuresSequence", "SliceThickness"))
    slope, intercept = _rescale(functional_group(own, shared, "PixelValueTransformationSequence"))
    return Plane(
        path=path,
        frame=frame,
        rows=int(head.Rows),
        columns=int(head.Columns),
        position=numbers_of(get("PlanePositionSequence", "ImagePositionPatient"), 3),
        orientation=numbers_of(get("PlaneOrientationSequence", "ImageOrientationPatient"), 6),
        spacing=(spacing[0], spacing[1]) if spacing and min(spacing) > 0 else None,
        thickness=_length(distance, thickness),
        slope=slope,
        intercept=intercept,
        order=_order(head, own, shared, frame),
        instance=str(head.get("SOPInstanceUID", "")),
        image_type=_frame_type(own, shared) or image_type(head),
        number=next(iter(numbers_of(values_of_field(head.get("InstanceNumber")), 1) or ()), None),
    )


def has_position(head: Dataset) -> bool:
    """Whether a file, or the first frame of one, has a position, so that it may be a slice of a volume."""
    own = (head.get("PerFrameFunctionalGroupsSequence") or [Dataset()])[0]
    group = functional_group(own, shared_groups(head), "PlanePositionSequence")
    return numbers_of((head if group is None else group).get("ImagePositionPatient"), 3) is not None


def _length(*numbers: float) -> float | None:
    """The size of the first number that may be a length in mm; some scanners give a distance the sign of its direction."""
    return next((abs(number) for number in numbers if 0 < abs(number) < _LARGEST_LENGTH), None)


def image_type(head: Dataset) -> tuple[str, ...]:
    """The values of ImageType of a header, or of the functional group that stands for it."""
    return tuple(str(part) for part in head.get("ImageType") or head.get("FrameType") or ())


def _frame_type(own: Dataset, shared: Dataset) -> tuple[str, ...]:
    """The image type of a frame; empty if its groups have none."""
    groups = (functional_group(own, shared, sequence) for sequence in _FRAME_TYPES)
    return next((image_type(group) for group in groups if group is not None), ())


def _rescale(transformation: Dataset | None) -> tuple[float | None, float | None]:
    """Rescale slope and intercept of a frame; None if it has no transformation of its own. A damaged number raises an error."""
    if transformation is None:
        return None, None
    slope, intercept = transformation.get("RescaleSlope"), transformation.get("RescaleIntercept")
    return float(1 if slope is None else slope), float(intercept or 0)


def _order(head: Dataset, own: Dataset, shared: Dataset, frame: int) -> tuple[float, ...]:
    """The sort key of a frame among those at the same position, independent of the order of the frames if anything else differs."""
    content = functional_group(own, shared, "FrameContentSequence") or Dataset()
    groups = ((functional_group(own, shared, sequence), keyword) for sequence, keyword in _FRAME_TIMES)
    return (
        number_of(content.get("TemporalPositionIndex")),
        *(number_of(head.get(keyword)) for keyword in TIMES),
        *(number_of(group.get(keyword)) if group else 0.0 for group, keyword in groups),
        number_of(head.get("AcquisitionTime") or head.get("ContentTime")),
        number_of(head.get("InstanceNumber")),
        *map(number_of, values_of_field(content.get("DimensionIndexValues"))),
        number_of(content.get("FrameAcquisitionDateTime")),
        float(frame),
    )


def values_of_field(value: Any) -> list[Any]:  # noqa: ANN401 - a DICOM value
    """The values of a field, of which a single one comes without a list; none if it is absent."""
    if value is None:
        return []
    return list(value) if isinstance(value, MultiValue | list | tuple) else [value]


def number_of(value: Any, default: float = 0.0) -> float:  # noqa: ANN401 - a DICOM value
    """A DICOM value as a number; the default if it is absent, empty or no number."""
    try:
        return float(value) if value not in (None, "") else default
    except (TypeError, ValueError):
        return default


def numbers_of(value: Any, count: int) -> tuple[float, ...] | None:  # noqa: ANN401 - a DICOM value
    """A DICOM value as `count` numbers; None if they are absent or damaged."""
    try:
        numbers = tuple(float(part) for part in value or ())
    except (TypeError, ValueError):
        return None
    return numbers if len(numbers) == count and all(abs(number) < _LARGEST_LENGTH for number in numbers) else None
