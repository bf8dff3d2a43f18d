"""Folders that already have pFedSAM's form, `<site>/{images,masks}`; the import only adds the study with the ids in the masks."""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import numpy as np

from pfedsam.core.errors import DataError
from pfedsam.data.images import read_mask
from pfedsam.data.layouts.base import Classes, FoundCase, Layout, pictures, site_name, subfolders, volumes, with_masks
from pfedsam.data.readers.nifti import NiftiReader


def find(source: Path) -> Iterator[FoundCase]:
    """Images, each with the mask of the same name; patients are not known."""
    for folder in subfolders(source):
        for stem, image, mask in with_masks(_files(folder / "images"), _files(folder / "masks")):
            yield FoundCase(site_name(folder.name), stem, None, (image,), mask)


def _files(folder: Path) -> list[Path]:
    return [*pictures(folder), *volumes(folder)]


def classes(source: Path) -> Classes:
    """A class for each id above 0 in the masks, called `class_<id>`; the user can rename them in the study.

    Raises:
        DataError: no mask contains an id above 0.
    """
    ids: set[int] = set()
    for case in find(source):
        if isinstance(case.mask, Path):
            ids |= _ids(case.mask)
    found = sorted(number for number in ids if number)
    if not found:
        raise DataError("the masks hold background alone, so there is no class; export them again")
    return {f"class_{number}": [number] for number in found}


def _ids(path: Path) -> set[int]:
    """The ids in a mask file.

    Raises:
        DataError: the file is damaged, or its values are no ids.
    """
    if path.name.lower().endswith((".nii", ".nii.gz")):
        mask = NiftiReader(path)
        planes = (np.unique(mask.mask_slice(index)).tolist() for index in range(mask.header().shape[2]))
        return set(chain.from_iterable(planes))
    return {int(value) for value in np.unique(read_mask(path)).tolist()}


LAYOUT = Layout(
    "folders",
    "folders of pictures or volumes that have pFedSAM's form already",
    "<site>/images/x.png (or x.nii.gz) and <site>/masks/x.png (or x.nii.gz)",
    find,
    classes,
)
