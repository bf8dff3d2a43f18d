"""The plane in which a site's training volumes are cut, stored with its model, so that other volumes are cut alike.

`data.volume.axis: auto` chooses the plane of each volume by its spacing alone. A model that was trained on axial slices would therefore
segment a volume whose largest spacing is along another axis in a plane that it has never seen, without an error, and wrongly.
"""

from pathlib import Path
from typing import Final, get_args

from pfedsam.core import atomic
from pfedsam.core.errors import DataError
from pfedsam.core.log import get_logger
from pfedsam.data.about import about
from pfedsam.data.facts import SiteFacts
from pfedsam.data.images import ImageOptions
from pfedsam.data.manifest import Case
from pfedsam.data.of_training import common, read_of_training
from pfedsam.data.volume_case import open_case
from pfedsam.data.volume_options import Plane, VolumeOptions

PLANE: Final = "plane.json"
_THICK: Final = 2.0
"""Distance of slices, divided by the size of a pixel, above which a volume is not cut across its slices."""
_LOG = get_logger(__name__)


def trained_plane(facts: SiteFacts) -> Plane | None:
    """The plane of a site's training volumes; None if there are none, or if they have several planes or none."""
    return common(one.plane for one in facts.cases if one.case.split == "train" and one.case.volume)


def write_plane(folder: Path, facts: SiteFacts) -> None:
    """Write the plane of a site's training volumes into its folder; no file is written if there is no such plane.

    Raises:
        StoreError: the file could not be written.
    """
    plane = trained_plane(facts)
    if plane is not None:
        atomic.write_json(folder / PLANE, {"schema": 1, "plane": plane})


def read_plane(folder: Path) -> Plane | None:
    """The plane in a site's folder; None if there is no such file, as for pictures and in runs of earlier versions.

    Raises:
        StoreError: the file is damaged.
    """
    return read_of_training(
        folder / PLANE,
        lambda content: _known(content["plane"]),
        lost="may cut a volume in another plane than those of the training",
    )


def _known(text: object) -> Plane:
    """The plane with this name.

    Raises:
        ValueError: there is none.
    """
    planes: tuple[Plane, ...] = get_args(Plane)
    return planes[planes.index(text)]


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
