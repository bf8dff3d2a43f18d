"""Facts about a site's files: a few numbers of each case, collected in one pass; no pixels are kept.

`pfedsam.data.check` reports files that cannot be read as problems, and `pfedsam.data.suspicions` reports data that can be read and are
probably wrong as warnings.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from pfedsam.core.errors import DataError
from pfedsam.data.about import about
from pfedsam.data.images import ImageOptions, Stored, read_stored
from pfedsam.data.labels import LabelMap
from pfedsam.data.loader import check_sizes, load_ids, load_image
from pfedsam.data.manifest import Case, Site, has_manifest, orphan_masks, unlisted_files, unread_files
from pfedsam.data.palettes import UsedColours, used_colours
from pfedsam.data.readers import PICTURES
from pfedsam.data.readers.masks import PartNames
from pfedsam.data.readers.series_table import SeriesRow, list_series, series_of
from pfedsam.data.volume import Volume, VoxelValues
from pfedsam.data.volume_case import open_case, open_case_mask
from pfedsam.data.volume_options import Plane, VolumeOptions

_SAMPLED: Final = 1_000_000
"""Approximate largest number of pixels of an image from which its range of values is computed."""
_TELLING_VOXELS: Final = 50
"""Number of foreground voxels from which the masks of two patients are never equal by chance."""
_TOP, _HIGH, _LOW = 99.9, 99.0, 1.0


@dataclass(frozen=True)
class StoredVoxels:
    """How the voxels of a volume are stored."""

    kind: str
    """Type of the values as they are read, such as int16; float32 where a slope or an intercept changes them."""
    channels: int
    """Number of sequences; 3 for colour."""
    low: float
    """The lowest value, in the unit of the file."""
    high: float
    """The highest value, likewise."""
    above: float = 0.0
    """The share of the voxels that are above `data.volume.window`; 0 without a window."""


@dataclass(frozen=True)
class MaskFacts:
    """Facts about a mask; the defaults are those of a mask that is missing or could not be read."""

    shape: tuple[int, ...] | None = None
    """H, W of the mask as it is read; D, H, W of that of a volume."""
    stored: Stored | None = None
    """How the file is stored; None for the mask of a volume."""
    pixels: Mapping[int, int] = field(default_factory=dict)
    """Id to its number of pixels."""
    edge: Mapping[int, int] = field(default_factory=dict)
    """Id to its number of pixels on the outermost rows and columns."""
    content: str | None = None
    """Digest of the ids; None for a mask of a single id, or with so few foreground pixels or voxels that two patients may share it."""
    part_names: PartNames = field(default_factory=PartNames)
    """How the names in a DICOM-SEG or RTSTRUCT fit `data.volume.segments`."""
    notes: tuple[str, ...] = ()
    """Sentences about what was lost or changed when the mask of a volume was brought to its grid, except about `part_names`."""

    @property
    def colours(self) -> UsedColours:
        """The colour of each id in a mask that is a picture with a palette; empty for other masks."""
        return used_colours(self.stored.palette if self.stored else (), self.pixels)

    def share(self, ids: frozenset[int], *, edge: bool = False) -> float | None:
        """The share of the pixels (or of those on the edge) that have one of the ids; None without a mask."""
        counts = self.edge if edge else self.pixels
        total = sum(counts.values())
        return sum(counts.get(value, 0) for value in ids) / total if total else None


@dataclass(frozen=True)
class CaseFacts:
    """Facts about one case; a field is None (or empty) if its file could not be read."""

    case: Case
    problems: tuple[str, ...] = ()
    """Reasons why the case cannot be used, each with site, case and remedy."""
    size: tuple[int, ...] | None = None
    """H, W of the image as it is read; D, H, W of a volume."""
    image: Stored | None = None
    """How the image file is stored; None for a volume."""
    voxels: StoredVoxels | None = None
    """How the voxels of a volume are stored; None for a picture."""
    mask: MaskFacts = field(default_factory=MaskFacts)
    low: float | None = None
    """The image's 1st percentile, as a share of the range of its type."""
    high: float | None = None
    """The 99th percentile, likewise."""
    top: float | None = None
    """The 99.9th percentile, likewise: the highest value without single bright pixels."""
    volume_spacing: tuple[float, ...] | None = None
    """Spacing of slices and pixels in mm, from the volume or the manifest, or of pixels alone if the thickness of a single slice is not
    known; None for a picture."""
    plane: Plane | None = None
    """The plane in which a volume is cut; None for a picture, a single slice, and slices that are oblique or have no orientation."""
    default_grid: bool = False
    """Whether the position of a volume is an identity matrix, apart from signs, which libraries write if they are given no position.

    SimpleITK and ITK change the signs of the first two axes, because their coordinates point to the left and to the back."""
    of_several: bool = False
    """Whether the file of a volume holds several volumes (times, echoes), of which one is read."""
    contradicted: bool = False
    """Whether the file of a volume also gives other voxel sizes or axes than those that are used."""
    content: str | None = None
    """Digest of the image's pixels or voxels; None for an image with a single value, because many such images are equal."""
    constant: bool = False
    """Whether all pixels of the image have a single value."""
    patient_digest: str | None = None
    """Digest of the PatientID in the files of a DICOM volume; None if there is none."""
    series: tuple[SeriesRow, ...] = ()
    """The series of a DICOM folder that contains several."""

    @property
    def labelled(self) -> bool:
        """Whether there is a mask that could be read."""
        return self.mask.shape is not None

    @property
    def spacing_mm(self) -> tuple[float, ...] | None:
        """Spacing in mm: height and width of a pixel, for a volume after the distance of slices; None if it is not known."""
        return self.volume_spacing if self.case.volume else self.case.spacing_mm


@dataclass(frozen=True)
class SiteFacts:
    """Facts about a site and its cases."""

    site: Site
    cases: tuple[CaseFacts, ...]
    manifest: bool
    """Whether the cases are listed in a manifest."""
    orphans: tuple[str, ...]
    """Masks without an image."""
    unread: tuple[str, ...]
    """Pictures of formats that are not read."""
    unlisted: tuple[str, ...]
    """Files that can be read but are not in the manifest."""

    @property
    def name(self) -> str:
        """Name of the site."""
        return self.site.name


def gather_facts(
    site: Site,
    labels: LabelMap,
    options: ImageOptions,
    volume: VolumeOptions | None = None,
    *,
    tell: Callable[[], None] | None = None,
) -> SiteFacts:
    """Read every file of the site once; a case with a problem does not end the pass.

    Args:
        site: read with `masks_required=False`, so that every missing mask is reported.
        labels: the meaning of the ids in the masks.
        options: the largest size of an image; its contrast is not changed.
        volume: how volumes are read.
        tell: called after each case.
    """
    cases = []
    for case in site.cases:
        facts = (
            _volume_facts(case, labels, options, volume or VolumeOptions())
            if case.volume
            else _facts_of(case, labels, options)
        )
        cases.append(facts)
        if tell:
            tell()
    return SiteFacts(
        site=site,
        cases=tuple(cases),
        manifest=has_manifest(site),
        orphans=orphan_masks(site),
        unread=unread_files(site),
        unlisted=unlisted_files(site),
    )


def _facts_of(case: Case, labels: LabelMap, options: ImageOptions) -> CaseFacts:
    problems: list[str] = []
    image, mask = _image_facts(case, options, problems), _mask_facts(case, options, problems)
    if image.size is not None and mask.shape is not None:
        try:
            check_sizes(case, image.size, mask.shape)
        except DataError as error:
            problems.append(str(error))
    _note_unknown(case, labels, mask, problems)
    return CaseFacts(
        case=case,
        problems=tuple(problems),
        size=image.size,
        image=image.stored,
        mask=mask,
        low=image.low,
        high=image.high,
        top=image.top,
        content=image.content,
        constant=image.size is not None and image.content is None,
    )


def _volume_facts(case: Case, labels: LabelMap, image: ImageOptions, options: VolumeOptions) -> CaseFacts:
    """Facts from the header of a volume and from its mask; every voxel of both is read once, by the readers that training uses."""
    try:
        volume = open_case(case, image, options)
    except DataError as error:
        return CaseFacts(case, problems=(str(error),), series=list_series(case.image))
    problems: list[str] = []
    values = None
    try:
        with about(case):
            values = volume.check_values()
    except DataError as error:
        problems.append(str(error))
    mask = _volume_mask_facts(case, volume, options, problems)
    _note_unknown(case, labels, mask, problems)
    return CaseFacts(
        case=case,
        problems=tuple(problems),
        size=volume.shape,
        volume_spacing=volume.known_spacing_mm,
        plane=None if volume.shape[0] == 1 or volume.slicing.oblique else volume.slicing.plane,
        default_grid=case.spacing_mm is None
        and volume.spacing_mm is not None
        and volume.header.affine is not None
        and np.array_equal(np.abs(volume.header.affine), np.eye(4)),
        of_several=any(reader.header().of_several for reader in volume.readers),
        contradicted=any(reader.header().contradicted for reader in volume.readers),
        series=series_of(volume.readers[0]),
        voxels=None if values is None else _stored_voxels(volume, values),
        content=None if values is None else values.digest,
        constant=values is not None and values.digest is None,
        patient_digest=volume.header.patient,
        mask=mask,
    )


def _stored_voxels(volume: Volume, values: VoxelValues) -> StoredVoxels:
    header, sequences = volume.header, len(volume.readers)
    channels = header.channels if sequences == 1 else sequences
    return StoredVoxels(header.dtype.name, channels, values.low, values.high, values.above)


@dataclass(frozen=True)
class _ImageFacts:
    size: tuple[int, ...] | None = None
    stored: Stored | None = None
    low: float | None = None
    high: float | None = None
    top: float | None = None
    content: str | None = None


def _image_facts(case: Case, options: ImageOptions, problems: list[str]) -> _ImageFacts:
    try:
        values = load_image(case, options.model_copy(update={"contrast": "none"}))
        stored = _stored(case.image, options)
    except DataError as error:
        problems.append(str(error))
        return _ImageFacts()
    low, high, top = value_range(values)
    same = bool(values.min() == values.max())
    return _ImageFacts(values.shape[:-1], stored, low, high, top, None if same else _content(values))


def value_range(values: npt.NDArray[np.float32]) -> tuple[float, float, float]:
    """The 1st, 99th and 99.9th percentile of an image [H, W, 3]; of a very large image, of evenly spread pixels."""
    step = max(1, int(np.ceil(np.sqrt(values[..., 0].size / _SAMPLED))))
    low, high, top = np.percentile(values[::step, ::step], (_LOW, _HIGH, _TOP))
    return float(low), float(high), float(top)


def _content(values: npt.NDArray[np.generic]) -> str:
    """A digest of the values and the shape of an image [H, W, 3] or a mask [H, W]."""
    digest = hashlib.blake2b(str(values.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()


def _mask_facts(case: Case, options: ImageOptions, problems: list[str]) -> MaskFacts:
    try:
        ids = load_ids(case, max_megapixels=options.max_megapixels)
        stored = _stored(case.mask, options)
    except DataError as error:
        problems.append(str(error))
        return MaskFacts()
    pixels = _counts(ids)
    content = _content(ids) if _tells_patients_apart(pixels) else None
    return MaskFacts(ids.shape, stored, pixels, _counts(_border(ids)), content)


def _tells_patients_apart(pixels: Mapping[int, int]) -> bool:
    """Whether a mask, given as the number of pixels of each id, has so much foreground that the masks of two patients are never equal."""
    return len(pixels) > 1 and sum(pixels.values()) - pixels.get(0, 0) >= _TELLING_VOXELS


def _volume_mask_facts(case: Case, volume: Volume, options: VolumeOptions, problems: list[str]) -> MaskFacts:
    pixels, edge = Counter[int](), Counter[int]()
    digest = hashlib.blake2b(digest_size=16)
    try:
        mask = open_case_mask(case, volume, options)
        with about(case, mask=True):
            for ids in volume.all_ids(mask):
                pixels.update(_counts(ids))
                edge.update(_counts(_border(ids)))
                digest.update(np.ascontiguousarray(ids, dtype=np.uint16).data)
    except DataError as error:
        problems.append(str(error))
        return MaskFacts()
    content = digest.hexdigest() if _tells_patients_apart(pixels) else None
    about_names = set(mask.part_names.notes())
    notes = tuple(note for note in mask.notes if note not in about_names)
    return MaskFacts(volume.shape, None, pixels, edge, content, mask.part_names, notes)


def _note_unknown(case: Case, labels: LabelMap, mask: MaskFacts, problems: list[str]) -> None:
    """Add the message about ids of a mask that belong to no class, if there are any."""
    unknown = labels.unknown(mask.pixels)
    if unknown:
        problems.append(f"site {case.site!r}, case {case.id!r}: {labels.complaint(unknown)}")


def _border(ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The ids at the border of a mask [H, W], as shape [n]."""
    return np.concatenate([ids[:1].ravel(), ids[-1:].ravel(), ids[:, :1].ravel(), ids[:, -1:].ravel()])


def _counts(ids: npt.NDArray[np.int64]) -> dict[int, int]:
    """The number of pixels of each id in an array of any shape."""
    values, counts = np.unique(ids, return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def _stored(path: Path | None, options: ImageOptions) -> Stored | None:
    if path is None or path.suffix.lower() not in PICTURES:
        return None
    return read_stored(path, max_megapixels=options.max_megapixels)
