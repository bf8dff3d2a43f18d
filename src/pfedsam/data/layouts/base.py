"""Published layouts of data sets, and how one becomes sites that pFedSAM reads.

A layout is one file of this package. It finds the cases of a downloaded folder and says, for each, its site, its patient and where its
files lie. `write_sites` then links (or copies) the files into one folder per site with a `manifest.csv`, and writes a `study.yaml` with
the classes. Nothing of the source is changed.
"""

import csv
import io
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy.typing as npt
import yaml
from PIL import Image

from pfedsam.core import atomic
from pfedsam.core.errors import DataError
from pfedsam.data.manifest import MANIFEST, Split

STUDY: Final = "study.yaml"
Classes: TypeAlias = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class MadeFile:
    """A file that has to be made, because the published form is not one that is read (masks in parts, GIF, one file for all times)."""

    ending: str
    """Such as `.png`."""
    write: Callable[[Path], None]
    """Writes it to a path."""


Source: TypeAlias = Path | MadeFile


@dataclass(frozen=True)
class FoundCase:
    """One case of a published data set."""

    site: str
    case: str
    """Unique at its site."""
    patient: str | None
    """None where the layout does not say: the study's `patient_pattern` can then name it from the case."""
    images: tuple[Source, ...]
    """One file, or one per sequence (channel)."""
    mask: Source
    split: Split | None = None
    """Where the publication fixes it; a test part stays a test part."""


@dataclass(frozen=True)
class Layout:
    """A published layout."""

    name: str
    summary: str
    """What it is, in one line."""
    expects: str
    """The files that are looked for, as paths below the folder that is given."""
    find: Callable[[Path], Iterator[FoundCase]]
    """The cases in a folder; finds none where it is another layout."""
    classes: Callable[[Path], Classes]
    """The classes and their ids in the masks."""
    options: Callable[[Path], Mapping[str, Any]] = lambda _: {}
    """Further keys of `data` in the study, such as `volume`."""


@dataclass(frozen=True)
class Imported:
    """What an import wrote."""

    study: Path
    cases: Mapping[str, int]
    """By site."""
    patients: Mapping[str, int]
    """By site; 0 where the layout does not name them."""


def write_sites(
    layout: Layout, source: Path, out: Path, *, copy: bool = False, progress: Callable[[str], None] | None = None
) -> Imported:
    """Write one folder per site with a manifest, and a study that names them.

    Args:
        layout: Of the source.
        source: The downloaded folder; only read.
        out: A new or empty folder.
        copy: Copy the files; else they are symbolic links to the source, which then has to stay where it is.
        progress: Called with site and name of each case.

    Raises:
        DataError: The source is no such layout, or the folder is not empty.
    """
    if not source.is_dir():
        raise DataError(f"the folder {str(source)!r} does not exist; give the folder that the data set was unpacked to")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"the folder {str(out)!r} is not empty; give a new or an empty one")
    found = sorted(layout.find(source), key=lambda case: (case.site, case.case))
    if not found:
        raise DataError(f"{str(source)!r} holds nothing of the layout {layout.name!r}; it looks for {layout.expects}")
    _check_unique(found)
    by_site: dict[str, list[FoundCase]] = {}
    for case in found:
        by_site.setdefault(case.site, []).append(case)
    for site, cases in by_site.items():
        _write_site(out / site, cases, copy=copy, progress=progress or (lambda _: None))
    data = {
        "sites": {site: site for site in by_site},
        "classes": {name: list(ids) for name, ids in layout.classes(source).items()},
        **layout.options(source),
    }
    atomic.write_text(out / STUDY, yaml.safe_dump({"name": out.name, "data": data}, sort_keys=False))
    return Imported(
        out / STUDY,
        {site: len(cases) for site, cases in by_site.items()},
        {site: len({case.patient for case in cases if case.patient}) for site, cases in by_site.items()},
    )


def _write_site(folder: Path, cases: Sequence[FoundCase], *, copy: bool, progress: Callable[[str], None]) -> None:
    rows = []
    for case in cases:
        progress(f"{case.site}: {case.case}")
        images = [
            _place(image, folder / "images", case.case if len(case.images) == 1 else f"{case.case}_{number}", copy=copy)
            for number, image in enumerate(case.images)
        ]
        mask = _place(case.mask, folder / "masks", case.case, copy=copy)
        rows.append(
            [
                ";".join(f"images/{name}" for name in images),
                f"masks/{mask}",
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
    """Put a file into a folder under a new stem; gives its name there.

    Raises:
        DataError: It is not there, or cannot be written.
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
    except OSError as error:
        raise DataError(f"{target.name!r} cannot be written: {error.strerror}") from error
    return target.name


def _check_unique(found: Sequence[FoundCase]) -> None:
    seen: set[tuple[str, str]] = set()
    for case in found:
        if (case.site, case.case) in seen:
            raise DataError(
                f"site {case.site!r}: two cases are called {case.case!r}; the folder holds the data set twice"
            )
        seen.add((case.site, case.case))


def ending_of(path: Path) -> str:
    """The ending of a file name, `.nii.gz` as one; empty for a folder."""
    if path.is_dir():
        return ""
    name = path.name.lower()
    return ".nii.gz" if name.endswith(".nii.gz") else path.suffix.lower()


def stem_of(path: Path) -> str:
    """The file name without its ending, `.nii.gz` as one."""
    return path.name[: len(path.name) - len(ending_of(path))]


def volumes(folder: Path) -> list[Path]:
    """The NIfTI files in a folder, sorted, without hidden ones; none where there is no such folder."""
    if not folder.is_dir():
        return []
    return sorted(
        path
        for path in folder.iterdir()
        if path.name.lower().endswith((".nii", ".nii.gz")) and not path.name.startswith(".")
    )


def pictures(folder: Path, endings: Iterable[str] = (".png", ".jpg", ".jpeg", ".tif", ".tiff")) -> list[Path]:
    """The pictures in a folder, sorted, without hidden ones; none where there is no such folder."""
    if not folder.is_dir():
        return []
    wanted = tuple(endings)
    return sorted(
        path for path in folder.iterdir() if path.name.lower().endswith(wanted) and not path.name.startswith(".")
    )


def site_name(text: str) -> str:
    """Text as the name of a site: letters, digits, `_`, `-` and `.`."""
    return re.sub(r"[^\w.\-]+", "_", text).strip("_.-") or "site"


def as_png(read: Callable[[], npt.NDArray[Any]]) -> MadeFile:
    """An 8-bit PNG made from an array [H, W] or [H, W, 3] that `read` gives when it is needed."""
    return MadeFile(".png", lambda path: Image.fromarray(read()).save(path))
