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
from pfedsam.core.errors import DataError, OptionError
from pfedsam.core.files import read_regular
from pfedsam.core.text import is_text, some_of
from pfedsam.data.images import PICTURE_ERRORS
from pfedsam.data.labels import LabelMap
from pfedsam.data.manifest import LONGEST_NAME, check_name
from pfedsam.data.manifest_lines import CASE_NAME, MANIFEST, Split
from pfedsam.data.readers import PICTURES
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
    made_from: tuple[Path, ...] = ()
    """The files of the data set that it is made from; needed only of a mask."""


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
    spacing: str = ""
    """As in the column of `manifest.csv`; empty: that of the files."""
    series: str = ""
    """As in the column of `manifest.csv`; empty: the image holds one series."""
    endings: tuple[str, ...] = ()
    """What the names of several sequences end with, such as `_t1`; empty: `_0`, `_1` and so on."""

    @property
    def channels(self) -> tuple[str, ...]:
        """The endings of the names of the sequences in the imported folder, one for each; none for one image."""
        if len(self.images) == 1:
            return ()
        return self.endings or tuple(f"_{number}" for number in range(len(self.images)))


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
    notes: Callable[[Path], Sequence[str]] = lambda _: ()
    """Returns a sentence about each kind of thing in a folder that is left out, other than images and masks without the other."""
    masks: Callable[[Path], Iterable[Path]] = lambda _: ()
    """Returns the masks in a folder, also those without an image, which an import reports; none if `find` refuses such masks."""


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
    notes: Sequence[str]
    """Sentences about everything else that was left out."""


def write_sites(
    layout: Layout, source: Path, out: Path, *, copy: bool = False, progress: Callable[[str], None] | None = None
) -> Imported:
    """Write one folder per site with a manifest, and a study with these sites.

    The whole source is checked first. If a file cannot be written after that, everything that was written is removed again.

    Args:
        layout: the layout of the source.
        source: the downloaded folder; only read.
        out: a new or empty folder.
        copy: whether to copy the files. Otherwise symbolic links are written, and the source must not be moved.
        progress: called with site and name of each case.

    Raises:
        DataError: the source has another layout or cannot be used, or the folder is not empty.
        StoreError: the study cannot be written.
    """
    refuse_missing(source)
    _refuse_filled(out)
    by_site, without_mask = _cases_by_site(layout, source)
    data = {
        "sites": {site: site for site in by_site},
        "classes": {name: list(ids) for name, ids in layout.classes(source).items()},
        **layout.options(source),
    }
    channels = {case.channels for cases in by_site.values() for case in cases}
    if len(channels) == 1 and channels != {()}:  # `predict` finds the sequences of a case by these endings
        data["volume"] = {**data.get("volume", {}), "channels": list(channels.pop())}
    _check_classes(data)
    notes = (*layout.notes(source), *_unused_masks(layout, source, by_site))
    try:
        for site, cases in by_site.items():
            _write_site(out / site, cases, copy=copy, progress=progress or (lambda _: None))
        atomic.write_text(out / STUDY, yaml.safe_dump({"name": out.name, "data": data}, sort_keys=False))
    except BaseException:  # after an interrupt, too, the next import must be able to use the folder
        _remove(out, by_site)
        raise
    return Imported(
        out / STUDY,
        {site: len(cases) for site, cases in by_site.items()},
        {site: _count_patients(cases) for site, cases in by_site.items()},
        without_mask,
        notes,
    )


def _unused_masks(layout: Layout, source: Path, by_site: Mapping[str, Sequence[FoundCase]]) -> list[str]:
    """A sentence about the masks of a data set that no case has; none if there are no such masks."""
    used: set[Path] = set()
    for case in (case for cases in by_site.values() for case in cases):
        used.update(case.mask.made_from if isinstance(case.mask, MadeFile) else [case.mask] if case.mask else [])
    unused = (path for path in layout.masks(source) if path not in used and not path.name.startswith("."))
    left = [path.relative_to(source).as_posix() for path in unused]
    if not left:
        return []
    return [
        f"{len(left)} mask(s) without an image, or without a line in the table of the data set, are left out: {some_of(left, 3)}"
    ]


def _check_classes(data: Mapping[str, Any]) -> None:
    """Refuse classes that no study can have.

    Raises:
        DataError: there are such classes.
    """
    try:
        LabelMap(data["classes"], ignore=tuple(data.get("ignore", ())), overlap=data.get("overlap", False))
    except OptionError as error:
        raise DataError(f"the classes of the data set cannot be used: {error}") from error


def _remove(out: Path, sites: Iterable[str]) -> None:
    """Remove the folders of the sites, which an import that failed began to write; linked files stay as they are."""
    for site in sites:
        shutil.rmtree(out / site, ignore_errors=True)


def refuse_missing(source: Path) -> None:
    """Refuse a source that is not a folder.

    Raises:
        DataError: the source is not a folder.
    """
    if not source.is_dir():
        raise DataError(f"the folder {str(source)!r} does not exist; give the folder that the data set was unpacked to")


def _refuse_filled(out: Path) -> None:
    """Refuse a target that contains something.

    Raises:
        DataError: the target contains something, or is a file.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"the folder {str(out)!r} is not empty; give a new or an empty one")


def _cases_by_site(layout: Layout, source: Path) -> tuple[dict[str, list[FoundCase]], dict[str, list[str]]]:
    """The cases of each site, sites and cases in alphabetical order; and the names of the images of each site that have no mask.

    Raises:
        DataError: there is no case, two cases of a site have the same name, or a name cannot be used.
    """
    everything = sorted(layout.find(source), key=lambda case: (case.site, case.case))
    found = [case for case in everything if case.mask is not None]
    if not found:
        raise DataError(f"{str(source)!r} holds nothing of the layout {layout.name!r}; it looks for {layout.expects}")
    _check_names(found)
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
            _place(image, folder / "images", f"{case.case}{ending}", copy=copy)
            for image, ending in zip(case.images, case.channels or ("",), strict=True)
        ]
        mask = _place(case.mask, folder / "masks", case.case, copy=copy) if case.mask else ""
        rows.append(
            {
                "image": ";".join(f"images/{name}" for name in images),
                "mask": f"masks/{mask}" if mask else "",
                "patient": case.patient or "",
                "split": case.split or "",
                "case": case.case,
                "spacing": case.spacing,
                "series": case.series,
            }
        )
    unused = {column for column in ("spacing", "series") if not any(row[column] for row in rows)}
    text = io.StringIO()
    writer = csv.DictWriter(
        text, [column for column in rows[0] if column not in unused], extrasaction="ignore", lineterminator="\n"
    )
    writer.writeheader()
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


def _check_names(found: Sequence[FoundCase]) -> None:
    """Refuse names that cannot name a folder or be written into a manifest and read back, and a site with the name of the study's file.

    A site that is a path, such as `../north`, would be written, and after an error removed, outside the folder of the import.

    Raises:
        DataError: there is such a name, or a case has another number of images than of endings of their names.
    """
    for case in found:
        try:
            check_name(case.site)
        except OptionError as error:
            raise DataError(f"{error}; the layout has to make such a name (`site_name` does)") from error
        if case.site == STUDY:
            raise DataError(
                f"a site cannot be called {STUDY!r}, which is the name of the study's file; rename the folder"
            )
        if not _can_be_listed(case.case):
            raise DataError(
                f"site {case.site!r}: the case {case.case!a} cannot be listed in {MANIFEST}. A name is one line of UTF-8 text without ';', "
                "'/', '\\' and control characters, and begins with no '.' and neither begins nor ends with a space; rename its files"
            )
        if len(case.images) != max(1, len(case.channels)):
            raise DataError(
                f"site {case.site!r}: the layout gives the case {case.case!r} {len(case.images)} image(s) and {len(case.endings)} "
                "ending(s) of their names; it has to give one image, or an ending for each image"
            )


def _can_be_listed(name: str) -> bool:
    """Whether the manifest can hold a name in one cell and one line, and reads it as the name of a case."""
    in_one_cell = name == name.strip() and ";" not in name and len(name.splitlines()) == 1
    return in_one_cell and is_text(name) and CASE_NAME.fullmatch(name) is not None


def _check_unique(found: Sequence[FoundCase]) -> None:
    for before, case in pairwise(found):
        if (before.site, before.case) == (case.site, case.case):
            raise DataError(
                f"site {case.site!r}: two cases are called {case.case!r}; the folder holds the data set twice"
            )


def read_rows(table: Path) -> list[dict[str, str]]:
    """The rows of a CSV file with names of columns in its first line.

    Raises:
        OSError: the file cannot be read.
    """
    return list(csv.DictReader(read_regular(table).decode("utf-8-sig", "replace").splitlines()))


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
    """The folders in a folder, sorted, without hidden ones."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def volumes(folder: Path) -> list[Path]:
    """The NIfTI files in a folder, sorted, without hidden ones; none if the folder does not exist."""
    return _files(folder, (".nii", ".nii.gz"))


def pictures(folder: Path, endings: Iterable[str] = PICTURES) -> list[Path]:
    """The pictures in a folder, sorted, without hidden ones; none if the folder does not exist."""
    return _files(folder, tuple(endings))


def _files(folder: Path, endings: tuple[str, ...]) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(
        path for path in folder.iterdir() if path.name.lower().endswith(endings) and not path.name.startswith(".")
    )


def with_masks(images: Iterable[Path], masks: Iterable[Path]) -> Iterator[tuple[str, Path, Path | None]]:
    """Stem and image of each image, and the mask of the same stem, or None.

    Raises:
        DataError: two masks have the same stem.
    """
    known = by_stem(masks)
    for image in images:
        stem = stem_of(image)
        yield stem, image, known.get(stem)


def by_stem(paths: Iterable[Path]) -> dict[str, Path]:
    """Files by their stem.

    Raises:
        DataError: two of them have the same stem.
    """
    found: dict[str, Path] = {}
    for path in paths:
        before = found.setdefault(stem_of(path), path)
        if before != path:
            raise DataError(
                f"{path.parent.name}/ holds {before.name!r} and {path.name!r}, which have the same name but for the ending; keep one"
            )
    return found


def site_name(text: str) -> str:
    """A text with every character replaced that the name of a site must not contain, and cut to the length of one."""
    return re.sub(r"[^\w.\-]+", "_", text).strip("_.-")[:LONGEST_NAME].rstrip("_.-") or "site"


def as_png(read: Callable[[], npt.NDArray[Any]], made_from: Iterable[Path] = ()) -> MadeFile:
    """An 8-bit PNG made from an array [H, W] or [H, W, 3], which `read` returns when the file is written."""
    return MadeFile(".png", lambda path: Image.fromarray(read()).save(path), tuple(made_from))
