"""Checks of the images: their values, their orientation, their spacing, their planes, and the number of their sequences."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np

from pfedsam.data.facts import CaseFacts, SiteFacts, StoredVoxels
from pfedsam.data.images import Stored
from pfedsam.data.manifest_lines import MANIFEST
from pfedsam.data.suspicions.finding import Finding, Study, case_ids
from pfedsam.data.volume_options import Plane

_SMALL_RANGE: Final = 0.25
"""Share of the range of an integer type below which an image is dark: 14 of 16 bits, 6 of 8 bits."""
_WHOLE_RANGE: Final = ("uint8", "uint16")
"""Types of voxels that `normalise: none` divides by their largest value."""
_MOST_ABOVE: Final = 0.5
"""Share of the voxels above the window from which the values are probably no Hounsfield units."""
_MOST_ABOVE_IF_POSITIVE: Final = 0.25
"""The same for a volume without a negative value, where the air around the body would be negative in Hounsfield units."""
_FAT: Final = -100.0
"""The value of fat in Hounsfield units: a volume for whose tissues a window begins below it has negative values."""
_ORDER: Final[tuple[Plane, ...]] = ("axial", "coronal", "sagittal")
"""Planes in the order in which one is named if as many volumes have another."""
_SPACING_FACTOR: Final = 10.0
"""Ratio of two spacings at one site that no scanner explains; the units probably differ, such as millimetres and micrometres."""
_TURNED_ORIENTATIONS: Final = range(2, 9)
"""Values of the EXIF tag Orientation with which an image is turned or mirrored when it is read."""


def other_sequences(sites: Sequence[SiteFacts], study: Study) -> Iterator[Finding]:
    """Volumes with another number of sequences than the study needs: a channel of the model would have another meaning for them."""
    expected, why = _expected_sequences(sites, study)
    for facts in sites:
        groups: dict[int, list[CaseFacts]] = defaultdict(list)
        for one in _used_volumes(facts):
            groups[one.case.sequence_count].append(one)
        for number, cases in sorted(groups.items()):
            if number != expected:
                yield Finding(
                    facts.name,
                    "other sequences",
                    f"{number} sequence(s) in the case, where {why}; give every case the same sequences (in {MANIFEST} joined by ';' in "
                    "the column image, otherwise by data.volume.channels), or take the case out",
                    case_ids(cases),
                    error=True,
                )


def _expected_sequences(sites: Sequence[SiteFacts], study: Study) -> tuple[int, str]:
    """The number of sequences that every volume of the study has to have, and the reason for it."""
    if study.volume.channels:
        return len(study.volume.channels), f"data.volume.channels names {len(study.volume.channels)}"
    if study.volume.neighbours:
        return 1, "data.volume.neighbours fills the channels with slices of one"
    numbers = Counter(one.case.sequence_count for facts in sites for one in _used_volumes(facts))
    most = max(numbers, key=lambda number: (numbers[number], number), default=1)
    return most, f"most volumes of the study have {most}"


def other_planes(sites: Sequence[SiteFacts], study: Study) -> Iterator[Finding]:
    """Volumes that `data.volume.axis: auto` cuts in another plane than most volumes of the study."""
    numbers = Counter(one.plane for facts in sites for one in _used_volumes(facts) if one.plane is not None)
    if study.volume.axis != "auto" or len(numbers) < 2:
        return
    usual = max(numbers, key=lambda plane: (numbers[plane], -_ORDER.index(plane)))
    for facts in sites:
        for plane in _ORDER:
            cases = [one for one in _used_volumes(facts) if one.plane == plane]
            if cases and plane != usual:
                yield Finding(
                    facts.name,
                    "other planes",
                    f"data.volume.axis: auto gives {plane} slices, perpendicular to the largest spacing, and for most volumes of the study "
                    f"{usual} ones, so that one model has to learn both; if the voxels are nearly cubes, set data.volume.axis: {usual}, "
                    "otherwise train on series of one plane",
                    case_ids(cases),
                )


def single_volumes(sites: Sequence[SiteFacts], study: Study) -> Iterator[Finding]:
    """Files of a single volume, where `data.volume.frame` chooses one of several in the files of other cases."""
    read = [one for facts in sites for one in _used_volumes(facts) if one.size is not None]
    if study.volume.frame is None or not any(one.of_several for one in read):
        return
    for facts in sites:
        single = [one for one in _used_volumes(facts) if one.size is not None and not one.of_several]
        if single:
            yield Finding(
                facts.name,
                "single volumes",
                f"its file holds a single volume, where data.volume.frame {study.volume.frame} chooses one of several in other cases of "
                "the study; see whether it was taken at the same time (or echo) as those, or take it out",
                case_ids(single),
            )


def _used_volumes(facts: SiteFacts) -> list[CaseFacts]:
    return [one for one in facts.cases if one.case.volume and one.case.split != "unused"]


def small_range(facts: SiteFacts, study: Study) -> Iterator[Finding]:
    """Values that use a small part of the range of their type, such as 12 of 16 bits, where contrast is not stretched."""
    if study.image.contrast != "none":
        return
    for bits in (8, 16):
        dark = _dark_images(facts, bits)
        if dark:
            yield Finding(
                facts.name,
                "small range",
                f"the values use {100 * max(dark.values()):.0f} % of the range of their {bits}-bit type or less, so that the images are "
                "almost black to the model; set data.image.contrast: percentile, or export them with their full range",
                tuple(dark),
            )


def small_range_of_volumes(facts: SiteFacts, study: Study) -> Iterator[Finding]:
    """Volumes whose values use a small part of what becomes 0..1 with `normalise: none`."""
    if study.volume.normalise != "none":
        return
    shares = {
        one.case.id: _share_of_range(one.voxels)
        for one in facts.cases
        if one.voxels and not _in_colour(one, one.voxels)
    }
    dark = {case: share for case, share in shares.items() if share < _SMALL_RANGE}
    if dark:
        yield Finding(
            facts.name,
            "small range",
            f"the values use {100 * max(dark.values()):.2g} % of the range that becomes 0 to 1 (that of their type of 8 or 16 bits, or "
            "else 0 to 1) or less, so that the volumes are almost black to the model; set data.volume.normalise: percentile",
            tuple(dark),
        )


def _share_of_range(voxels: StoredVoxels) -> float:
    """The highest value of a volume, as `normalise: none` scales it."""
    return voxels.high / np.iinfo(voxels.kind).max if voxels.kind in _WHOLE_RANGE else voxels.high


def _in_colour(one: CaseFacts, voxels: StoredVoxels) -> bool:
    """Whether a volume is in colour, which is in 0..1 whatever its type."""
    return voxels.channels == 3 and one.case.sequence_count == 1


def outside_window(facts: SiteFacts, study: Study) -> Iterator[Finding]:
    """Volumes that do not seem to be in the unit of `data.volume.window`, as a CT without its rescale intercept.

    Their values lie mostly above the window, or all below it, or none is negative although the window is for tissues that are. Values
    below a window are normal, because most voxels of many scans are air.
    """
    if study.volume.normalise != "window":
        return
    low, high = study.volume.limits()
    found = [one for one in facts.cases if one.voxels and _is_outside(one.voxels, low)]
    if found:
        voxels = [one.voxels for one in found if one.voxels]
        yield Finding(
            facts.name,
            "outside window",
            f"are these Hounsfield units? The values go from {min(one.low for one in voxels):g} to {max(one.high for one in voxels):g}, "
            f"with up to {100 * max(one.above for one in voxels):.0f} % of the voxels above the window of {low:g} to {high:g}: most are "
            "above it, or all are below it, or none is negative, as air and fat are; look for a missing rescale intercept (mostly -1024), "
            "or set another data.volume.window or normalise",
            case_ids(found),
        )


def _is_outside(voxels: StoredVoxels, low: float) -> bool:
    """Whether the values of a volume do not fit a window that begins at `low`."""
    most = _MOST_ABOVE if voxels.low < 0 else _MOST_ABOVE_IF_POSITIVE
    return voxels.above > most or voxels.high <= low or (low < _FAT and voxels.low >= 0)


def single_value(facts: SiteFacts, _: Study) -> Iterator[Finding]:
    """Images without content: all pixels or voxels have the same value."""
    found = [one for one in facts.cases if one.constant]
    if found:
        yield Finding(
            facts.name,
            "single value",
            f"{len(found)} of {len(facts.cases)} image(s) have a single value everywhere, so that nothing can be seen in them; export them "
            "again, or take the cases out",
            case_ids(found),
        )


def _dark_images(facts: SiteFacts, bits: int) -> dict[str, float]:
    """The highest value, as a share of the range, of each case whose image has a type of so many bits and a small range."""
    stored = [one for one in facts.cases if one.image and one.image.bits == bits]
    return {one.case.id: one.top for one in stored if one.top is not None and one.top < _SMALL_RANGE}


def exif_masks(facts: SiteFacts, _: Study) -> Iterator[Finding]:
    """Images and masks that are turned differently according to their EXIF orientations when they are read."""
    groups: dict[str, list[CaseFacts]] = defaultdict(list)
    for one in facts.cases:
        if one.image is not None and one.mask.stored is not None and not one.problems:
            groups[_orientation_difference(one.image, one.mask.stored)].append(one)
    for text, cases in groups.items():
        if text:
            yield Finding(facts.name, "EXIF orientation", text, case_ids(cases))


def _orientation_difference(image: Stored, mask: Stored) -> str:
    """What is wrong with the orientations of an image and its mask, and what to do; empty if they agree."""
    turned, mask_turned = (one.orientation if one.orientation in _TURNED_ORIENTATIONS else 1 for one in (image, mask))
    if turned == mask_turned:
        return ""
    if mask_turned != 1:
        return (
            f"the mask has {_named(mask_turned)} and is turned when it is read; the image has {_named(turned)}. If the mask was drawn on "
            "the image, it is turned against it: save both upright without the tag"
        )
    if image.size != mask.size:
        return ""  # the mask was drawn on the turned image
    return (
        "the image has an EXIF orientation and is turned when it is read; the mask has none, and has the size of the stored pixels. "
        "If the mask was drawn on the stored pixels, it does not fit the turned image: save the images upright without the tag, or "
        "turn the masks in the same way"
    )


def _named(orientation: int) -> str:
    return "no EXIF orientation" if orientation == 1 else f"the EXIF orientation {orientation}"


def partly_given_spacing(facts: SiteFacts, _: Study) -> Iterator[Finding]:
    """Spacing that is known for some cases of a site only."""
    read = [
        one for one in facts.cases if one.size is not None
    ]  # of a file that cannot be read the spacing is not known either
    without = [one for one in read if one.spacing_mm is None]
    if without and len(without) < len(read):
        yield Finding(
            facts.name,
            "spacing partly",
            f"no spacing, where {len(read) - len(without)} other case(s) have one: distances would be in mm for some cases and in pixels "
            "for others; give it for every case or for none",
            case_ids(without),
        )


def lost_spacing(facts: SiteFacts, _: Study) -> Iterator[Finding]:
    """Volumes of a site that all have an identity matrix, apart from signs, as their position: 1 mm in each direction, and the origin 0."""
    volumes = [one for one in facts.cases if one.case.volume and one.size is not None]
    if volumes and all(one.default_grid for one in volumes):
        yield Finding(
            facts.name,
            "spacing lost",
            "the position is an identity matrix, apart from signs (1 mm in each direction, the origin 0), which programs write if they "
            "lose the spacing; if it is not 1 mm, add the site to data.volume.spacing_unknown, or give its spacing in a manifest",
            case_ids(volumes),
        )


def contradicted_position(facts: SiteFacts, _: Study) -> Iterator[Finding]:
    """Volumes whose header gives two different sizes of the voxels, or two different orders or directions of the axes."""
    found = [one for one in facts.cases if one.contradicted]
    if found:
        yield Finding(
            facts.name,
            "contradicted position",
            "the sform of its NIfTI header has other sizes of voxels than the header (pixdim), or other axes than its qform; the sform is "
            "used, so that distances, the plane of the slices, or left and right are wrong if the other one is true: see in a viewer which "
            "one is, and write the file again with that one",
            case_ids(found),
        )


def mixed_spacing_units(facts: SiteFacts, _: Study) -> Iterator[Finding]:
    """Spacings of one site that differ by a factor which suggests different units."""
    pixel_sizes = {one.case.id: one.spacing_mm[-2:] for one in facts.cases if one.size is not None and one.spacing_mm}
    lengths = [length for size in pixel_sizes.values() for length in size]
    if lengths and max(lengths) >= _SPACING_FACTOR * min(lengths):
        yield Finding(
            facts.name,
            "spacing partly",
            f"the spacings of the site go from {min(lengths):g} to {max(lengths):g} mm: is one in another unit? Write all in mm",
            (max(pixel_sizes, key=lambda case: max(pixel_sizes[case])),),
        )
