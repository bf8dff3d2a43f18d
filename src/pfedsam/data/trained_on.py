"""Properties of a site's training images, stored in files beside its model, so that its use on other images is noticed.

A model segments images that differ from those of its training without an error, and probably wrongly. Four properties are compared:

* the brightness of pictures: one of 12 bits in a file of 16 bits is almost black to a model that was trained on 8 bits;
* the plane of the slices: `data.volume.axis: auto` chooses it for each volume by its spacing alone, not always as in training;
* the number of sequences: the three input channels are filled from however many there are, so that a model of T1 and T2 also accepts T1;
* pictures or volumes: the intensities of pictures are shares of the range of their type, and those of volumes are normalised.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, TypeVar, get_args

import numpy as np
import numpy.typing as npt

from pfedsam.core import atomic
from pfedsam.core.errors import DataError, StoreError
from pfedsam.core.files import read_regular
from pfedsam.core.log import get_logger
from pfedsam.core.text import percent
from pfedsam.data.about import about
from pfedsam.data.facts import SiteFacts, value_range
from pfedsam.data.images import ImageOptions
from pfedsam.data.manifest import Case, Site
from pfedsam.data.volume_case import open_case
from pfedsam.data.volume_options import Plane, VolumeOptions

_INTENSITY, _PLANE, _SEQUENCES = "intensity.json", "plane.json", "sequences.json"
FILES: Final = frozenset({_INTENSITY, _PLANE, _SEQUENCES})
"""Names of the files in a site's folder; one whose property is not known is not written."""
_FACTOR: Final = 4.0
"""Ratio of brightness to every training image from which a picture is reported."""
_DARK: Final = 1 / 255
_THICK: Final = 2.0
"""Distance of slices, divided by the size of a pixel, above which a volume is not cut across its slices."""
_KINDS: Final = {True: "volumes (NIfTI or DICOM)", False: "pictures (PNG, JPEG or TIFF)"}
_LOG = get_logger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class IntensityRange:
    """Lowest and highest 99th percentile of a site's training images, as shares of the range of their type."""

    darkest: float
    brightest: float


@dataclass(frozen=True)
class TrainedOn:
    """The properties of a site's training images; None where they are not known, as in runs of earlier versions."""

    intensities: IntensityRange | None = None
    """None also for volumes."""
    plane: Plane | None = None
    """The plane of the slices of volumes; None also if the volumes have several planes or none."""
    sequences: int | None = None
    """The number of sequences in a case; None also for pictures, and if it differs between cases, which the check of data refuses."""

    @property
    def volumes(self) -> bool | None:
        """Whether the training cases are volumes; None if it is not known."""
        if self.sequences is not None:
            return True
        return None if self.intensities is None else False

    @classmethod
    def of(cls, facts: SiteFacts) -> "TrainedOn":
        """The properties of the training images of a site that is split."""
        train = [one for one in facts.cases if one.case.split == "train"]
        highs = [one.high for one in train if one.high is not None]
        intensities = IntensityRange(min(highs), max(highs)) if highs else None
        plane = common(one.plane for one in train if one.case.volume)
        return cls(intensities, plane, trained_sequences(facts.site))

    def write(self, folder: Path) -> None:
        """Write the known properties into a site's folder.

        Raises:
            StoreError: a file could not be written.
        """
        if self.intensities is not None:
            atomic.write_json(folder / _INTENSITY, {"schema": 1, **asdict(self.intensities)})
        if self.plane is not None:
            atomic.write_json(folder / _PLANE, {"schema": 1, "plane": self.plane})
        if self.sequences is not None:
            atomic.write_json(folder / _SEQUENCES, {"schema": 1, "sequences": self.sequences})

    @classmethod
    def read(cls, folder: Path) -> "TrainedOn":
        """The properties that are stored in a site's folder.

        Raises:
            StoreError: a file is damaged.
        """
        return cls(
            _read(
                folder / _INTENSITY,
                lambda content: IntensityRange(float(content["darkest"]), float(content["brightest"])),
                lost="does not compare images with those of the training",
            ),
            _read(
                folder / _PLANE,
                lambda content: _plane(content["plane"]),
                lost="may cut a volume in another plane than those of the training",
            ),
            _read(
                folder / _SEQUENCES,
                lambda content: int(content["sequences"]),
                lost="does not notice a case with another number of sequences than those of the training",
            ),
        )


def _read(path: Path, convert: Callable[[Any], T], *, lost: str) -> T | None:
    """The content of a file; None if there is no such file.

    Args:
        path: the file, which contains JSON.
        convert: the function from the content of the file to the result.
        lost: what `predict` does not do without the file, for the message, such as `does not compare images`.

    Raises:
        StoreError: the file is damaged.
    """
    if not path.exists():
        return None
    try:
        return convert(json.loads(read_regular(path)))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise StoreError(
            f"{path.name} of the site is damaged. Bring it back from a copy; without it `predict` works, but {lost}."
        ) from error


def _plane(text: object) -> Plane:
    """The plane with this name.

    Raises:
        ValueError: there is none.
    """
    planes: tuple[Plane, ...] = get_args(Plane)
    return planes[planes.index(text)]


def common(values: Iterable[T]) -> T | None:
    """The value that all of these are equal to; None if there are several values, or none."""
    found = set(values)
    return found.pop() if len(found) == 1 else None


def trained_sequences(site: Site) -> int | None:
    """The number of sequences of a site's training volumes; None if there are no volumes, or if their numbers differ."""
    return common(case.sequence_count for case in site.of("train") if case.volume)


def far_from_training(values: npt.NDArray[np.float32], training: IntensityRange) -> str | None:
    """The message about an image [H, W, 3] whose range is far from that of every training image; None for other images."""
    high = value_range(values)[1]
    darkest, brightest = max(training.darkest, _DARK), max(training.brightest, _DARK)
    if darkest / _FACTOR <= max(high, _DARK) <= brightest * _FACTOR:
        return None
    how = "darker" if high < darkest else "brighter"
    return (
        f"it is much {how} than the images that the site trained on: its values reach {percent(high)} of their type's range, theirs "
        f"{percent(training.darkest)} to {percent(training.brightest)}. The mask may be wrong or empty; export the image as those "
        "were, or train with data.image.contrast: percentile"
    )


def cut_as_trained(case: Case, image: ImageOptions, options: VolumeOptions, trained: Plane | None) -> VolumeOptions:
    """The options with which a case is cut in the plane of the training volumes, where `data.volume.axis` is `auto`.

    Args:
        case: the case.
        image: percentiles and limits of images.
        options: how volumes are read.
        trained: the plane of the training volumes; None if it is not known.

    Raises:
        DataError: the volume cannot be read, or has thick slices in another plane.
    """
    if trained is None or options.axis != "auto" or not case.volume:
        return options
    volume = open_case(case, image, options)
    plane, spacing = volume.slicing.plane, volume.spacing_mm
    thick = spacing is not None and spacing[0] > _THICK * min(spacing[1:])
    # Thick slices that are oblique, as those along the axes of the heart, have no plane that could be another one.
    if volume.shape[0] == 1 or plane in (None, trained) or (thick and volume.slicing.oblique):
        return options
    with about(case):
        if thick and spacing is not None:
            raise DataError(
                f"its slices are {plane} and {spacing[0]:.3g} mm apart, and the model was trained on {trained} ones; use a series of that "
                f"plane, or cut it nevertheless by --set data.volume.axis={plane} or {trained}"
            )
    _LOG.warning(
        "%s: it is cut in the %s plane, as the training volumes were; by its spacing alone it would be cut in the %s plane.",
        case.image.name,
        trained,
        plane,
    )
    return options.model_copy(update={"axis": trained})


def refuse_other_number(number: int, trained: int | None) -> None:
    """Refuse a case with another number of sequences than the training cases.

    Args:
        number: the number of sequences of the case.
        trained: the number of sequences of the training cases; None if it is not known, and nothing is refused.

    Raises:
        DataError: the numbers differ.
    """
    if trained is None or number == trained:
        return
    if trained == 1:
        raise DataError(
            f"the model was trained on one sequence for each case, and this is one of {number}; leave data.volume.channels empty"
        )
    example = [f"_t{k}" for k in range(1, trained + 1)]
    raise DataError(
        f"the model was trained on {trained} sequences for each case, and this is one of {number}; name the endings of the {trained} files "
        f'of a case in the order of the training, such as --set "data.volume.channels={example}", and give the first file'
    )


def other_kind(site: str, trained: bool | None, *, volume: bool) -> str | None:
    """The warning about an image of another kind than the training cases of a site; None for one of the same kind.

    Args:
        site: name of the site.
        trained: whether the training cases are volumes; None if it is not known.
        volume: whether the image is a volume.
    """
    if trained in (None, volume):
        return None
    return (
        f"the model of site {site!r} was trained on {_KINDS[not volume]} and is used on {_KINDS[volume]}, whose intensities are scaled in "
        "another way: the masks are probably wrong. Use a model that was trained on such images, or check every mask"
    )


def joins_other_kind(site: str, trained: bool | None, *, volume: bool) -> str | None:
    """The warning about a new site with cases of another kind than those of its federation; None for the same kind.

    Args:
        site: name of the new site.
        trained: whether the training cases of the federation are volumes; None if it is not known.
        volume: whether the cases of the new site are.
    """
    if trained in (None, volume):
        return None
    return (
        f"site {site!r} has {_KINDS[volume]}, and the federation was trained on {_KINDS[not volume]}, whose intensities are scaled in "
        "another way: its shared parameters may help little"
    )
