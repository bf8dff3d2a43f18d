"""Folders that already have pFedSAM's form, a site in each; the import adds the study with the ids in the masks.

The sites are read as in a run. A `manifest.csv` keeps its patients, split, spacing and series; without one the patients are not known.
"""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import numpy as np

from pfedsam.core.errors import DataError
from pfedsam.core.text import some_of
from pfedsam.data.about import about
from pfedsam.data.images import ImageOptions
from pfedsam.data.layouts.base import Classes, FoundCase, Layout, site_name, subfolders
from pfedsam.data.loader import load_ids
from pfedsam.data.manifest import (
    PARTS_REMEDY,
    Case,
    Site,
    are_parts,
    orphan_masks,
    read_site,
    spacing_cell,
    unlisted_files,
    unread_files,
)
from pfedsam.data.manifest_lines import MANIFEST
from pfedsam.data.readers import MaskReader
from pfedsam.data.readers.nifti import NiftiReader
from pfedsam.data.volume_case import open_case, open_case_mask
from pfedsam.data.volume_options import VolumeOptions


def find(source: Path) -> Iterator[FoundCase]:
    """The cases of each folder that is a site.

    Raises:
        DataError: a site cannot be read, or two folders would become the same site.
    """
    for case in chain.from_iterable(site.cases for site in _sites(source)):
        yield FoundCase(
            case.site,
            case.id,
            case.patient if case.patient_source == "manifest" else None,
            (case.image, *case.sequences),
            case.mask,
            case.split,
            spacing_cell(case),
            case.series or "",
        )


def _sites(source: Path) -> Iterator[Site]:
    """The sites, without a split.

    Raises:
        DataError: a site cannot be read, two folders would become the same site, or the folders are parts of one data set.
    """
    taken: dict[str, str] = {}
    folders = list(filter(_is_site, subfolders(source)))
    if are_parts([folder.name for folder in folders]):
        raise DataError(f"the folders {', '.join(repr(folder.name) for folder in folders)} {PARTS_REMEDY}")
    for folder in folders:
        name = site_name(folder.name)
        if name in taken:
            raise DataError(
                f"the folders {taken[name]!r} and {folder.name!r} would both become the site {name!r}; rename one"
            )
        taken[name] = folder.name
        yield read_site(name, folder, masks_required=False)


def _is_site(folder: Path) -> bool:
    return (folder / MANIFEST).is_file() or (folder / "images").is_dir()


def classes(source: Path) -> Classes:
    """A class for each id above 0 in the masks, called `class_<id>`; the user can rename them in the study.

    Raises:
        DataError: no mask contains an id above 0, or a mask cannot be read.
    """
    cases = chain.from_iterable(site.cases for site in _sites(source))
    ids = set(chain.from_iterable(_ids(case) for case in cases if case.mask is not None))
    found = sorted(number for number in ids if number)
    if not found:
        raise DataError("the masks hold background alone, so there is no class; export them again")
    return {f"class_{number}": [number] for number in found}


def _ids(case: Case) -> set[int]:
    """The ids in the mask of a case.

    Raises:
        DataError: the file is damaged, or its values are no ids.
    """
    if not case.volume:
        return set(np.unique(load_ids(case)).tolist())
    if case.mask and case.mask.name.lower().endswith((".nii", ".nii.gz")):
        with about(case):
            return _ids_of(NiftiReader(case.mask))
    options = VolumeOptions(resample=True)  # the other forms cannot be read without the grid of their image
    mask = open_case_mask(case, open_case(case, ImageOptions(), options), options)
    with about(case):
        return _ids_of(mask)


def _ids_of(mask: NiftiReader | MaskReader) -> set[int]:
    planes = (np.unique(mask.mask_slice(index)).tolist() for index in range(mask.header().shape[2]))
    return set(chain.from_iterable(planes))


def notes(source: Path) -> list[str]:
    """What the folders contain beside cases.

    Raises:
        DataError: a site cannot be read.
    """
    found = [
        f"the folder {one.name!r} is left out, because it has neither {MANIFEST} nor images/" for one in _others(source)
    ]
    for site in _sites(source):
        left = [*(f"masks/{name}" for name in orphan_masks(site)), *unread_files(site), *unlisted_files(site)]
        if left:
            found.append(
                f"site {site.name!r}: {len(left)} file(s) or folder(s) are left out, because they are masks without an image, are not "
                f"listed in {MANIFEST}, or have a format that is not read: {some_of([repr(name) for name in left], 3)}"
            )
    return found


def _others(source: Path) -> list[Path]:
    return [folder for folder in subfolders(source) if not _is_site(folder)]


LAYOUT = Layout(
    "folders",
    "folders of pictures or volumes that have pFedSAM's form already",
    "<site>/images/x.png (or x.nii.gz) and <site>/masks/x.png (or x.nii.gz), or <site>/manifest.csv",
    find,
    classes,
    notes=notes,
)
