"""Published layouts of data sets, and their conversion into sites that pFedSAM reads.

Each layout is one file of this package. It finds the cases of a downloaded folder, each with its site, its patient and its files.
`write_sites` then links (or copies) the files into one folder per site with a `manifest.csv`, and writes a `study.yaml` with the classes.
The source is not changed.
"""

import csv
import io
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy.typing as npt
import yaml
from PIL import Image

from pfedsam.core import atomic
from pfedsam.core.errors import DataError
from pfedsam.data.images import PICTURE_ERRORS
from pfedsam.data.manifest import MANIFEST, Split
from pfedsam.data.readers.nifti import NIFTI_ERRORS

STUDY: Final = "study.yaml"
Classes: TypeAlias = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class MadeFile:
    """A file that has to be made, because the published form cannot be read (masks in parts, GIF, one file for all times)."""

    ending: str
    """Such as `.png`."""
    write: Callable[[Path], None]
    """Write it to a path."""


UNREADABLE: Final = (*PICTURE_ERRORS, *NIFTI_ERRORS)
"""The errors of the libraries that read pictures and NIfTI files, for a damaged file."""
Source: TypeAlias = Path | MadeFile


@dataclass(frozen=True)
class FoundCase:
    """One case of a published data set."""

    site: str
    case: str
    """Unique at its site."""
    patient: str | None
    """None if the layout does not contain it; `patient_pattern` of the study can then derive it from the case."""
    images: tuple[Source, ...]
    """One file, or one per sequence (channel)."""
    mask: Source | None
    """None if the mask is missing; such a case is left out, and counted."""
    split: Split | None = None
    """The part of the split, if the publication defines one; a test part stays a test part."""


@dataclass(frozen=True)
class Layout:
    """A published layout."""

    name: str
    summary: str
    """Description in one line."""
    expects: str
    """The files that the layout needs, as paths below the given folder."""
    find: Callable[[Path], Iterator[FoundCase]]
    """Returns the cases in a folder; none if the folder has another layout."""
    classes: Callable[[Path], Classes]
    """Returns the classes and their ids in the masks."""
    options: Callable[[Path], Mapping[str, Any]] = lambda _: {}
    """Returns further keys of `data` for the study, such as `volume`."""


@dataclass(frozen=True)
class Imported:
    """The result of an import."""

    study: Path
    """The study that was written."""
    cases: Mapping[str, int]
    """Number of cases by site."""
    patients: Mapping[str, int]
    """Number of patients by site; 0 if the layout does not contain them."""
    without_mask: Mapping[str, Sequence[str]]
    """Names of the images by site that were left out, because they have no mask."""


def write_sites(
    layout: Layout, source: Path, out: Path, *, copy: bool = False, progress: Callable[[str], None] | None = None
) -> Imported:
    """Write one folder per site with a manifest, and a study with these sites.

    Args:
        layout: the layout of the source.
        source: the downloaded folder; only read.
        out: a new or empty folder.
        copy: whether to copy the files. Otherwise symbolic links are written, and the source must not be moved.
        progress: called with site and name of each case.

    Raises:
        DataError: the source has another layout, or the folder is not empty.
    """
    _check_folders(source, out)
    by_site, without_mask = _cases_by_site(layout, source)
    report = progress or (lambda _: None)
    for site, cases in by_site.items():
        _write_site(out / site, cases, copy=copy, progress=report)
    data = {
        "sites": {site: site for site in by_site},
        "classes": {name: list(ids) for name, ids in layout.classes(source).items()},
        **layout.options(source),
    }
    atomic.write_text(out / STUDY, yaml.safe_dump({"name": out.name, "data": data}, sort_keys=False))
    return Imported(
        out / STUDY,
        {site: len(cases) for site, cases in by_site.items()},
        {site: _count_patients(cases) for site, cases in by_site.items()},
        without_mask,
    )


def _check_folders(source: Path, out: Path) -> None:
    """Refuse a source that is missing, and a target that contains something.

    Raises:
        DataError: one of the folders cannot be used.
    """
    if not source.is_dir():
        raise DataError(f"the folder {str(source)!r} does not exist; give the folder that the data set was unpacked to")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"the folder {str(out)!r} is not empty; give a new or an empty one")


def _cases_by_site(layout: Layout, source: Path) -> tuple[dict[str, list[FoundCase]], dict[str, list[str]]]:
    """The cases of each site, sites and cases in alphabetical order; and the names of the images of each site that have no mask.

    Raises:
        DataError: there is no case, or two cases of a site have the same name.
    """
    everything = sorted(layout.find(source), key=lambda case: (case.site, case.case))
    found = [case for case in everything if case.mask is not None]
    if not found:
        raise DataError(f"{str(source)!r} holds nothing of the layout {layout.name!r}; it looks for {layout.expects}")
    _check_unique(found)
    missing = groupby((case for case in everything if case.mask is None), key=lambda case: case.site)
    without_mask = {site: [case.case for case in cases] for site, cases in missing}
    return {site: list(cases) for site, cases in groupby(found, key=lambda case: case.site)}, without_mask


def _count_patients(cases: Sequence[FoundCase]) -> int:
    return len({case.patient for case in cases if case.patient})


def _write_site(folder: Path, cases: Sequence[FoundCase], *, copy: bool, progress: Callable[[str], None]) -> None:
    rows = []
    for case in cases:
        progress(f"{case.site}: {case.case}")
        images = [
            _place(image, folder / "images", case.case if len(case.images) == 1 else f"{case.case}_{number}", copy=copy)
            for number, image in enumerate(case.images)
        ]
        mask = _place(case.mask, folder / "masks", case.case, copy=copy) if case.mask else ""
        rows.append(
            [
                ";".join(f"images/{name}" for name in images),
                f"masks/{mask}" if mask else "",
                case.patient or "",
                case.split or "",
                case.case,
            ]
        )
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", "mask", "patient", "split", "case"])
    writer.writerows(rows)
    atomic.write_text(folder / MANIFEST, text.getvalue())


def _place(source: Source, folder: Path, stem: str, *, copy: bool) -> str:
    """Links, copies or makes a file in a folder under a new stem, and returns its name there.

    Raises:
        DataError: the file cannot be read or written.
    """
    ending = source.ending if isinstance(source, MadeFile) else ending_of(source)
    target = folder / f"{stem}{ending}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if isinstance(source, MadeFile):
            source.write(target)
        elif copy:
            shutil.copytree(source, target) if source.is_dir() else shutil.copyfile(source, target)
        else:
            os.symlink(source.resolve(), target)
    except UNREADABLE as error:
        said = error.strerror if isinstance(error, OSError) else None
        raise DataError(
            f"{target.name!r} cannot be written: {said or 'a file of the data set is damaged; restore it'}"
        ) from error
    return target.name


def _check_unique(found: Sequence[FoundCase]) -> None:
    for before, case in pairwise(found):
        if (before.site, before.case) == (case.site, case.case):
            raise DataError(
                f"site {case.site!r}: two cases are called {case.case!r}; the folder holds the data set twice"
            )


def ending_of(path: Path) -> str:
    """The ending of a file name, `.nii.gz` as one; empty for a folder."""
    if path.is_dir():
        return ""
    name = path.name.lower()
    return ".nii.gz" if name.endswith(".nii.gz") else path.suffix.lower()


def stem_of(path: Path) -> str:
    """The file name without its ending, `.nii.gz` as one."""
    return path.name[: len(path.name) - len(ending_of(path))]


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder, sorted."""
    return sorted(path for path in folder.iterdir() if path.is_dir())


def volumes(folder: Path) -> list[Path]:
    """The NIfTI files in a folder, sorted, without hidden ones; none if the folder does not exist."""
    return _files(folder, (".nii", ".nii.gz"))


def pictures(folder: Path, endings: Iterable[str] = (".png", ".jpg", ".jpeg", ".tif", ".tiff")) -> list[Path]:
    """The pictures in a folder, sorted, without hidden ones; none if the folder does not exist."""
    return _files(folder, tuple(endings))


def _files(folder: Path, endings: tuple[str, ...]) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(
        path for path in folder.iterdir() if path.name.lower().endswith(endings) and not path.name.startswith(".")
    )


def with_masks(images: Iterable[Path], masks: Iterable[Path]) -> Iterator[tuple[str, Path, Path | None]]:
    """Stem and image of each image, and the mask of the same stem, or None."""
    by_stem = {stem_of(mask): mask for mask in masks}
    for image in images:
        stem = stem_of(image)
        yield stem, image, by_stem.get(stem)


def site_name(text: str) -> str:
    """A text with every character replaced that the name of a site must not contain."""
    return re.sub(r"[^\w.\-]+", "_", text).strip("_.-") or "site"


def as_png(read: Callable[[], npt.NDArray[Any]]) -> MadeFile:
    """An 8-bit PNG made from an array [H, W] or [H, W, 3], which `read` returns when the file is written."""
    return MadeFile(".png", lambda path: Image.fromarray(read()).save(path))
