"""The segments and structures in the masks of a site, as rows of the table that `pfedsam data check` prints for `data.volume.segments`.

Their names are free text of the site's files. Only this module returns them, and only the terminal at the site shows them: they belong in
no message, log, page or report. Names of the options may be in messages.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from pydicom.dataset import Dataset

from pfedsam.core.errors import DataError
from pfedsam.data.readers import kind_of
from pfedsam.data.readers.dicom_files import find_images, reading_fields
from pfedsam.data.readers.dicom_pixels import open_dataset
from pfedsam.data.readers.dicom_planes import functional_group, shared_groups
from pfedsam.data.readers.masks import LISTED_BY, plain_name

_CLOSED: Final = "CLOSED"
"""Start of the types of contours that enclose an area."""


@dataclass(frozen=True)
class Part:
    """A segment of a DICOM-SEG, or a structure of an RTSTRUCT."""

    number: int
    name: str = field(repr=False)
    empty: bool
    """Whether nothing is drawn: no frame of the segment, or no closed contour of the structure."""


@dataclass(frozen=True)
class PartRow:
    """A name, and the masks of a site that have a part of this name."""

    name: str = field(repr=False)
    """As the first mask spells it; case and spaces around it do not count."""
    numbers: tuple[int, ...]
    """The numbers that parts of this name have in the files, ascending; several if the files differ."""
    cases: int
    """Masks with a part of this name."""
    empty: int
    """Those of them in which nothing is drawn under this name."""
    id: int | None
    """The id of the name in `data.volume.segments`; None if it is not named there."""


def list_parts(mask: Path) -> tuple[Part, ...]:
    """The parts of a DICOM-SEG or RTSTRUCT, or of a folder with one of them; none for other files and for damaged ones."""
    try:
        if kind_of(mask) != "dicom":
            return ()
        found = find_images(mask)
        files = [*found.segmentations, *found.structures]
        if len(files) != 1:
            return ()
        dataset = open_dataset(files[0])
        with reading_fields(files[0]):
            return tuple(_segments(dataset) if found.segmentations else _structures(dataset))
    except (DataError, OSError):  # reported where the mask is read
        return ()


def _segments(dataset: Dataset) -> Iterator[Part]:
    label_map = str(dataset.get("SegmentationType", "")) == "LABELMAP"
    drawn = set() if label_map else set(_numbers_of_frames(dataset))
    for segment in dataset.SegmentSequence:
        number = int(segment.SegmentNumber)
        if number or not label_map:  # 0 is the background of a label map, whose frames do not say what they contain
            yield Part(number, str(segment.get("SegmentLabel", "")), empty=not label_map and number not in drawn)


def _numbers_of_frames(dataset: Dataset) -> Iterator[int]:
    shared = shared_groups(dataset)
    for own in dataset.PerFrameFunctionalGroupsSequence:
        identification: Any = functional_group(own, shared, "SegmentIdentificationSequence")
        yield int(identification.ReferencedSegmentNumber)


def _structures(dataset: Dataset) -> Iterator[Part]:
    drawn = {
        int(structure.ReferencedROINumber)
        for structure in dataset.get("ROIContourSequence") or ()
        for contour in structure.get("ContourSequence") or ()
        if str(contour.get("ContourGeometricType", "")).startswith(_CLOSED)
    }
    for structure in dataset.StructureSetROISequence:
        number = int(structure.ROINumber)
        yield Part(number, str(structure.get("ROIName", "")), empty=number not in drawn)


def count_parts(masks: Iterable[Path], segments: Mapping[str, int]) -> list[PartRow]:
    """A row for each name of a part in these masks, by number, and then one for each name of `segments` that no mask has.

    Args:
        masks: the mask of each case.
        segments: `data.volume.segments`.
    """
    ids = {plain_name(name): value for name, value in segments.items()}
    found: dict[str, list[list[Part]]] = {}
    for mask in masks:
        of_mask: dict[str, list[Part]] = {}
        for part in list_parts(mask):
            of_mask.setdefault(plain_name(part.name), []).append(part)
        for name, parts in of_mask.items():
            found.setdefault(name, []).append(parts)
    rows = sorted((_row(parts, ids.get(name)) for name, parts in found.items()), key=lambda row: row.numbers)
    if not found:
        return []
    return [
        *rows,
        *(PartRow(name, (), 0, 0, ids[plain_name(name)]) for name in segments if plain_name(name) not in found),
    ]


def absent_names(sites: Iterable[Sequence[PartRow]]) -> list[str]:
    """A warning for each name of `data.volume.segments` that no mask of any site has, from the rows of each site with such masks.

    A name that is absent at one site only may be the spelling of another one.
    """
    absent = [{row.name: None for row in rows if not row.cases} for rows in sites]
    return [
        f"no mask has a segment or structure of the name {name!r}, which data.volume.segments gives; correct it there, or remove it "
        f"({LISTED_BY})"
        for name in (absent[0] if absent else ())
        if all(name in others for others in absent)
    ]


def _row(masks: list[list[Part]], value: int | None) -> PartRow:
    """The row of one name, from its parts in each mask that has it."""
    every = [part for parts in masks for part in parts]
    numbers = tuple(sorted({part.number for part in every}))
    empty = sum(all(part.empty for part in parts) for parts in masks)
    return PartRow(every[0].name.strip(), numbers, len(masks), empty, value)
