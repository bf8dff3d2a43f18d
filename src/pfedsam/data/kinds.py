"""Whether a site's model was trained on pictures or on volumes, so that its use on images of the other kind is noticed.

The intensities of pictures are shares of the range of their type, and those of volumes are normalised (`data.volume.normalise`). The model
of one kind therefore segments the other kind without an error, and probably wrongly.
"""

from pathlib import Path
from typing import Final

from pfedsam.data.intensity import RANGE
from pfedsam.data.sequences import SEQUENCES

_NAMES: Final = {True: "volumes (NIfTI or DICOM)", False: "pictures (PNG, JPEG or TIFF)"}


def trained_on_volumes(folder: Path) -> bool | None:
    """Whether the training cases of a site are volumes, by the files in its folder; None if it is not known, as in runs of version 0.1."""
    if (folder / SEQUENCES).exists():
        return True
    return False if (folder / RANGE).exists() else None


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
        f"the model of site {site!r} was trained on {_NAMES[not volume]} and is used on {_NAMES[volume]}, whose intensities are scaled in "
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
        f"site {site!r} has {_NAMES[volume]}, and the federation was trained on {_NAMES[not volume]}, whose intensities are scaled in "
        "another way: its shared parameters may help little"
    )
