"""DICOM-SEG, written by highdicom: the mask of a DICOM series with its references, frame of reference and coded segments."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import highdicom as hd
import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import UID, ExplicitVRLittleEndian
from pydicom.valuerep import DA, TM

from pfedsam.core import atomic
from pfedsam.core.errors import DataError
from pfedsam.data.labels import class_pixels
from pfedsam.data.readers.dicom import DicomReader, Stack
from pfedsam.data.readers.dicom_files import quiet
from pfedsam.data.readers.dicom_pixels import open_dataset
from pfedsam.data.readers.dicom_planes import Plane, functional_group, number_of, shared_groups

_UTF_8: Final = "ISO_IR 192"
_SINGLE_SETS: Final = tuple(one.value for one in hd.SpecificCharacterSetValues if one.value.startswith("ISO_IR "))
"""The character sets without extensions that highdicom can write, all of which have the letters of ASCII."""
_IDENTIFIERS: Final = (
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "SOPInstanceUID",
    "SOPClassUID",
    "FrameOfReferenceUID",
    "Modality",
)
"""Attributes of a source that a DICOM-SEG needs with a value."""
_REPEATED: Final = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex"),
    *("StudyID", "StudyDate", "StudyTime", "AccessionNumber"),
)
"""Attributes of a source that a DICOM-SEG repeats; where a source lacks them, as after an anonymisation, they are empty (not known)."""
_FORMS: Final[Mapping[str, Callable[[Any], object]]] = {
    "PatientBirthDate": DA,
    "PatientSex": hd.PatientSexValues,
    "StudyDate": DA,
    "StudyTime": TM,
    "Modality": re.compile("[A-Z0-9_ ]{1,16}").fullmatch,
    "SOPClassUID": lambda value: UID(value).keyword or None,
}
"""Attributes of a source whose values highdicom checks, with a function that returns nothing for a wrong value or raises an error."""
_CATEGORIES: Final = {
    "anatomy": Code("123037004", "SCT", "Anatomical Structure"),
    "lesion": Code("49755003", "SCT", "Morphologically Abnormal Structure"),
    "tissue": Code("85756007", "SCT", "Tissue"),
}
_CODES: Final = {
    "bladder": ("anatomy", Code("89837001", "SCT", "Urinary bladder")),
    "brain": ("anatomy", Code("12738006", "SCT", "Brain")),
    "heart": ("anatomy", Code("80891009", "SCT", "Heart")),
    "hippocampus": ("anatomy", Code("5366008", "SCT", "Hippocampus")),
    "kidney": ("anatomy", Code("64033007", "SCT", "Kidney")),
    "left ventricle": ("anatomy", Code("87878005", "SCT", "Left cardiac ventricle")),
    "lesion": ("lesion", Code("52988006", "SCT", "Lesion")),
    "liver": ("anatomy", Code("10200004", "SCT", "Liver")),
    "lung": ("anatomy", Code("39607008", "SCT", "Lung")),
    "myocardium": ("anatomy", Code("74281007", "SCT", "Myocardium")),
    "pancreas": ("anatomy", Code("15776009", "SCT", "Pancreas")),
    "prostate": ("anatomy", Code("41216001", "SCT", "Prostate")),
    "right ventricle": ("anatomy", Code("53085002", "SCT", "Right cardiac ventricle")),
    "spinal cord": ("anatomy", Code("2748008", "SCT", "Spinal cord")),
    "spleen": ("anatomy", Code("78961009", "SCT", "Spleen")),
    "tumor": ("lesion", Code("108369006", "SCT", "Neoplasm")),
}
"""Class name to category and type of a segment (SNOMED CT); other classes are described as tissue, with their own name."""


def write_seg(
    path: Path, source: DicomReader, classes: npt.NDArray[Any], names: Sequence[str], *, overlap: bool = False
) -> None:
    """Write the classes [rows, columns, slices] of a series as a binary DICOM-SEG; each class is a segment of the same number.

    Slices without a segment are left out. If no class occurs at all, the file contains empty frames.

    Args:
        path: the file to write.
        source: the series that was segmented; not resampled.
        classes: labels, [row, column, slice]: class numbers 0..C, or sets of bits if classes overlap.
        names: names of the classes 1..C.
        overlap: whether the labels are sets of bits, one for each class.

    Raises:
        DataError: the series was resampled, has no position, is a part of a file, or lacks what a DICOM-SEG needs.
        StoreError: the file cannot be written.
    """
    atomic.write_bytes(path, _content(source, classes, names, overlap=overlap), mode=atomic.usual_mode())


def refuse_without_seg(source: DicomReader, names: Sequence[str]) -> None:
    """Refuse a series for which no DICOM-SEG can be written; one with a single pixel is made of it, and not kept.

    Args:
        source: the series.
        names: names of the classes 1..C.

    Raises:
        DataError: the series was resampled, has no position, is a part of a file, or lacks what a DICOM-SEG needs.
    """
    trial = np.zeros(source.header().shape, np.uint8)
    trial[0, 0, 0] = 1
    _content(source, trial, names)


def _content(source: DicomReader, classes: npt.NDArray[Any], names: Sequence[str], *, overlap: bool = False) -> bytes:
    """The bytes of the DICOM-SEG; the arguments are those of `write_seg`.

    Raises:
        DataError: as for `write_seg`.
    """
    if not source.even or source.header().affine is None:
        raise DataError("a DICOM-SEG needs a series with positions that was not resampled; write NIfTI instead")
    planes = source.stack.planes
    files = list(dict.fromkeys(plane.path for plane in planes))
    if len({plane.picture for plane in planes}) < len(planes) or len({plane.instance for plane in planes}) < len(files):
        raise DataError(
            "several files of its DICOM series have one SOP instance UID, so that a DICOM-SEG cannot refer to them; write NIfTI instead"
        )
    sources = [open_dataset(file, max_gigabytes=source.max_gigabytes) for file in files]
    _refuse_other_frames(sources, planes)
    masks = np.ascontiguousarray(np.moveaxis(classes, 2, 0)).astype(np.uint8)
    if overlap:
        masks = _segment_masks(masks, len(names))
    if len(files) == 1:  # frames of a multi-frame file in the order of the file
        masks = masks[np.argsort([plane.frame for plane in planes])]
    try:
        with quiet():
            for one in sources:
                _write_in_unicode(one, names)
                for keyword in (repeated for repeated in _REPEATED if repeated not in one):
                    setattr(one, keyword, None)
            _share_grid(sources, source.stack)
            _refuse_incomplete(sources)
            return _encode(sources, masks, names)
    except (AttributeError, LookupError, TypeError, ValueError):
        raise DataError(
            "its DICOM headers have damaged values or texts, from which no DICOM-SEG can be made; write NIfTI instead"
        ) from None


def _refuse_other_frames(sources: Sequence[Dataset], planes: Sequence[Plane]) -> None:
    """Refuse a volume of some frames of a file, and one of several multi-frame files: highdicom describes a single whole file.

    Raises:
        DataError: it is such a volume.
    """
    multiple = ["PerFrameFunctionalGroupsSequence" in one for one in sources]
    if len(sources) > 1 and any(multiple):
        raise DataError(
            "its volume consists of several multi-frame DICOM files, for which no DICOM-SEG is written; write NIfTI instead"
        )
    if len(sources) == 1 and int(sources[0].get("NumberOfFrames") or 1) != len(planes):
        raise DataError(
            "its volume is a part of the frames of a multi-frame DICOM file (one of several times or stacks), for which no DICOM-SEG is "
            "written; write NIfTI instead"
        )


def _refuse_incomplete(sources: Sequence[Dataset]) -> None:
    """Refuse headers in which an attribute that a DICOM-SEG repeats is absent or wrong; the message names the attributes, and no value.

    Raises:
        DataError: there are such headers.
    """
    absent = list(dict.fromkeys(keyword for one in sources for keyword in _lacking(one)))
    if absent:
        raise DataError(
            f"its DICOM headers lack what a DICOM-SEG needs ({', '.join(absent)}); write NIfTI instead, or add it to the files"
        )
    wrong = list(dict.fromkeys(keyword for one in sources for keyword in _FORMS if not _has_right_form(one, keyword)))
    if wrong:
        raise DataError(
            f"its DICOM headers have values that DICOM does not allow and a DICOM-SEG would repeat ({', '.join(wrong)}); write NIfTI "
            "instead, or correct them in the files"
        )


def _has_right_form(source: Dataset, keyword: str) -> bool:
    """Whether the value of an attribute of a source is one that DICOM allows, or empty."""
    value = source.get(keyword)
    if value in (None, ""):
        return True
    try:
        return _FORMS[keyword](value) is not None
    except (TypeError, ValueError):
        return False


def _lacking(source: Dataset) -> Iterator[str]:
    """The keywords of the attributes that a header lacks for a DICOM-SEG; a multi-frame file has the size of voxels in its groups."""
    yield from (keyword for keyword in _IDENTIFIERS if not source.get(keyword))
    if "PerFrameFunctionalGroupsSequence" not in source:
        yield from (keyword for keyword in ("PixelSpacing", "SliceThickness") if keyword not in source)


def _write_in_unicode(source: Dataset, names: Sequence[str]) -> None:
    """Turn the texts of a header into UTF-8, unless highdicom can write its character set, which has all letters of the segments' names.

    highdicom writes the DICOM-SEG in the character set of its source. It does not know the usual form of Japanese and Korean headers, whose
    first character set is empty, nor an empty field, as anonymisation leaves it, nor ASCII by its number (ISO_IR 6).
    """
    known = "SpecificCharacterSet" not in source or source.SpecificCharacterSet in _SINGLE_SETS
    if known and all(name.isascii() for name in names):
        return
    source.decode()
    source.SpecificCharacterSet = _UTF_8


def _share_grid(sources: Sequence[Dataset], stack: Stack) -> None:
    """Give all slices of a stack one orientation, thickness and distance, where highdicom looks for them.

    The orientation may be rounded differently from slice to slice. Multi-frame files of many scanners give it for each frame. Some headers
    have no thickness, which is then the distance of the slices, and some give the gap between two slices as their distance
    (SpacingBetweenSlices).
    """
    first = sources[0]
    is_multiple = "PerFrameFunctionalGroupsSequence" in first
    for holder in [_shared_measures(first)] if is_multiple else sources:
        if stack.step is not None and number_of(holder.get("SliceThickness")) <= 0:
            holder.SliceThickness = _decimal(stack.step)
        if stack.step is not None and len(stack.planes) > 1:
            holder.SpacingBetweenSlices = _decimal(stack.step)
    for one in sources if not is_multiple else ():
        one.ImageOrientationPatient = first.ImageOrientationPatient


def _shared_measures(source: Dataset) -> Dataset:
    """The group with the size of the voxels of a multi-frame file, after it and the orientation were moved to the shared groups."""
    shared, frames = shared_groups(source), source.PerFrameFunctionalGroupsSequence
    for sequence in ("PixelMeasuresSequence", "PlaneOrientationSequence"):
        setattr(shared, sequence, [functional_group(frames[0], shared, sequence)])
    source.SharedFunctionalGroupsSequence = [shared]
    measures: Dataset = shared.PixelMeasuresSequence[0]
    return measures


def _decimal(length: float) -> str:
    """A length as DICOM writes it, in at most 16 characters."""
    return f"{length:.10g}"[:16]


def _segment_masks(labels: npt.NDArray[np.uint8], classes: int) -> npt.NDArray[np.uint8]:
    """A mask for each of several overlapping classes, [slice, row, column, segment], from sets of bits [slice, row, column]."""
    masks = [class_pixels(labels, number, overlap=True) for number in range(1, classes + 1)]
    return np.stack(masks, axis=-1).astype(np.uint8)


def _encode(sources: Sequence[Dataset], masks: npt.NDArray[np.uint8], names: Sequence[str]) -> bytes:
    """The bytes of a DICOM-SEG with masks [slice, row, column] of class numbers, or [slice, row, column, segment]."""
    segmentation = hd.seg.Segmentation(
        source_images=sources,
        pixel_array=masks,
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[_describe(number, name) for number, name in enumerate(names, start=1)],
        series_instance_uid=hd.UID(),
        series_number=900,
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer="pFedSAM",
        manufacturer_model_name="pFedSAM",
        software_versions="0",
        device_serial_number="0",
        transfer_syntax_uid=ExplicitVRLittleEndian,
        omit_empty_frames=bool(masks.any()),  # a file needs at least one frame
    )
    content = BytesIO()
    segmentation.save_as(content)
    return content.getvalue()


def _describe(number: int, name: str) -> hd.seg.SegmentDescription:
    category, kind = _CODES.get(name.replace("_", " ").replace("-", " ").lower(), ("tissue", _CATEGORIES["tissue"]))
    return hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=name[:64],
        segmented_property_category=_CATEGORIES[category],
        segmented_property_type=kind,
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name="pFedSAM", version="0", family=Code("123110", "DCM", "Artificial Intelligence")
        ),
    )
