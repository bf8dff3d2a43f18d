"""The volume of a case, and its mask on the same slices; errors name site and case."""

import numpy as np
import numpy.typing as npt

from pfedsam.core.errors import DataError
from pfedsam.core.log import get_logger
from pfedsam.data.about import about
from pfedsam.data.images import ImageOptions
from pfedsam.data.labels import LabelMap
from pfedsam.data.manifest import MASK_REMEDY, Case
from pfedsam.data.readers import MaskReader, open_mask, open_volume
from pfedsam.data.readers.base import grid_difference
from pfedsam.data.volume import Scale, Volume
from pfedsam.data.volume_options import VolumeOptions

_LOG = get_logger(__name__)


def open_case(
    case: Case, image: ImageOptions, options: VolumeOptions, scales: tuple[Scale, ...] | None = None
) -> Volume:
    """The volume of a case, with its sequences as channels; only headers are read.

    Args:
        case: a case whose image is a volume.
        image: percentiles of the intensities, and the limit for masks that are pictures.
        options: how volumes are read.
        scales: the normalisation of its sequences, if it is known already.

    Raises:
        DataError: a file cannot be read, or the sequences differ in grid.
    """
    with about(case):
        readers = [open_volume(path, options, series=case.series) for path in (case.image, *case.sequences)]
        for path, reader in zip(case.sequences, readers[1:], strict=True):
            difference = grid_difference(readers[0].header(), reader.header(), word="sequence")
            if difference:
                raise DataError(
                    f"its sequence {path.name!r} has another grid than its first one ({difference}); resample it"
                )
        return Volume(
            readers,
            options,
            image,
            spacing_mm=case.spacing_mm,
            spacing_lost=case.spacing_lost,
            spacing_else=case.spacing_else,
            scales=scales,
        )


def open_case_mask(case: Case, volume: Volume, options: VolumeOptions) -> MaskReader:
    """The mask of a volume on its grid.

    Raises:
        DataError: there is no mask, it cannot be read, or has another grid.
    """
    with about(case, mask=True):
        if case.mask is None:
            raise DataError(f"the image has no mask; {MASK_REMEDY}")
        mask = open_mask(case.mask, volume.readers[0], options, max_megapixels=volume.image.max_megapixels)
    for note in mask.notes:
        _LOG.info("site %r, case %r: %s", case.site, case.id, note)
    return mask


def load_volume_truth(case: Case, volume: Volume, labels: LabelMap, options: VolumeOptions) -> npt.NDArray[np.uint8]:
    """The classes 0..C of all slices, [D, H, W].

    Raises:
        DataError: the mask cannot be read, has another grid or an unknown label.
    """
    mask = open_case_mask(case, volume, options)
    truth = np.empty(volume.shape, dtype=np.uint8)
    with about(case, mask=True):
        for number, ids in enumerate(volume.all_ids(mask)):
            truth[number] = labels.to_classes(ids)
    return truth
