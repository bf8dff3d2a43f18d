"""A site on disk: its cases, their files and their patients.

A site is a folder that contains either `images/` and `masks/` with files of equal stems, or a `manifest.csv` with the
columns `image,mask,patient[,split][,case][,spacing][,series]`. An image is a picture, a NIfTI file, a DICOM file or a folder of DICOM
files. Nothing is decoded here; only the names and the formats of files are read.

A *patient* may have several cases (tiles of one slide, both eyes of a child). The patient comes from the manifest, or
from the case id by a regular expression, and decides how the site may be split (see `pfedsam.data.split`).
"""

import os
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import Final, Literal, TypeAlias

from pfedsam.core.errors import DataError, OptionError
from pfedsam.core.files import refuse_broken_link
from pfedsam.core.patterns import Pattern
from pfedsam.core.text import is_text, short_repr
from pfedsam.data.entries import (
    FOREIGN,
    Entry,
    find_entries,
    find_unread,
    group_sequences,
    refuse_loose_series,
)
from pfedsam.data.manifest_lines import MANIFEST, READABLE, UNKNOWN, Split, read_lines
from pfedsam.data.readers import PICTURES_REMEDY, holds_pictures

PatientSource: TypeAlias = Literal["manifest", "pattern", "name"]
"""Where a case's patient comes from: a cell of the manifest, the patient pattern, or the case id itself."""

_LIKE_MANIFEST: Final = re.compile(r"manifest.*\.(csv|tsv|xlsx?|xlsm|ods|numbers)", re.IGNORECASE)
"""Names of tables that are probably the manifest, such as `manifest.xlsx` or `manifest (1).csv`."""
_PART_NAMES: Final = frozenset({"train", "training", "val", "valid", "validation", "dev", "test", "testing"})
"""Names in lower case of folders that divide one data set."""
PARTS_REMEDY: Final = (
    "are parts of one data set by their names, and not hospitals; put their files into one site whose "
    f"{MANIFEST} has the column split"
)
"""The end of messages about sites whose names are those of parts."""
MASK_REMEDY: Final = (
    "add a mask of the same name to masks/, as a picture or a volume (outlines and boxes in JSON or XML are not read: export them as such "
    "masks), or take the image out"
)
"""What to do with an image that has no mask."""
_PARTS = ("images", "masks")
LONGEST_NAME: Final = 64
"""Characters of the name of a site, which is the name of files and folders, too."""
_NAME = re.compile(r"[^\W_][\w.\-]*")


@dataclass(frozen=True)
class Case:
    """One image or volume of a site, with its mask; the unit that is scored."""

    site: str
    id: str
    image: Path
    mask: Path | None
    patient: str
    split: Split | None = None
    spacing_mm: tuple[float, ...] | None = None
    """Spacing from the manifest in mm: height and width of a pixel; for a volume, the distance of its slices before them."""
    volume: bool = False
    """Whether the image is NIfTI or DICOM, with slices."""
    sequences: tuple[Path, ...] = ()
    """Further volumes on the same grid, which become channels beside the image."""
    series: str | None = None
    """Number or description of the series, if the DICOM folder contains several."""
    spacing_lost: bool = False
    """Whether the spacing in the file is wrong and must not be used; distances are then in pixels."""
    spacing_else: tuple[float, ...] | None = None
    """Spacing of a volume in mm along D, H, W that is used only if its file has none."""
    patient_source: PatientSource = "manifest"

    @property
    def sequence_count(self) -> int:
        """The number of volumes that make up the image."""
        return 1 + len(self.sequences)

    @property
    def files(self) -> tuple[Path | None, ...]:
        """The image, the mask (None if there is none), and the further sequences."""
        return self.image, self.mask, *self.sequences


@dataclass(frozen=True)
class Site:
    """One hospital's cases."""

    name: str
    folder: Path
    cases: tuple[Case, ...]

    def of(self, split: Split) -> tuple[Case, ...]:
        """The cases of one part, in the site's order."""
        return tuple(case for case in self.cases if case.split == split)

    def patients(self) -> dict[str, tuple[Case, ...]]:
        """The cases of each patient, patients in alphabetical order."""
        grouped: dict[str, list[Case]] = {}
        for case in self.cases:
            grouped.setdefault(case.patient, []).append(case)
        return {patient: tuple(grouped[patient]) for patient in sorted(grouped)}


def read_site(
    name: str,
    folder: str | Path,
    *,
    patient_pattern: str | None = None,
    masks_required: bool = True,
    channels: Sequence[str] = (),
) -> Site:
    """The site in `folder`, cases sorted by id.

    Args:
        name: name of the site in the configuration; also the name of its folder in a run.
        folder: contains `manifest.csv`, or `images/` and `masks/`.
        patient_pattern: a regular expression searched in the case id; the patient is its group named `patient`, else
            its first group. If it does not match, the case id is the patient. A patient in the manifest takes precedence.
        masks_required: refuse a case without a mask. Without it, such a case has `mask=None`: for prediction, and for
            `check_sites`, which reports every such case.
        channels: endings of the names of two or three sequences that make up a case.

    Raises:
        DataError: the folder is missing, empty or ambiguous, its path is not UTF-8, or the manifest is not a file, has another name, or
            has a wrong line.
        OptionError: the name or the pattern cannot be used.
    """
    check_name(name)
    pattern = _compile(patient_pattern)
    folder = Path(folder)
    if not os.path.isdir(folder):
        raise DataError(
            f"site {name!r}: there is no folder {str(folder)!r}; correct its path in the configuration (relative to that file)"
        )
    if not is_text(str(folder.absolute())):
        raise DataError(
            f"site {name!r}: the path {str(folder.absolute())!r} contains bytes that are not UTF-8, which no file of a run can hold; "
            "rename that folder, for example to ASCII letters and digits"
        )
    found = (
        _from_manifest(name, folder, pattern)
        if _is_listed(name, folder)
        else _from_folders(name, folder, pattern, channels)
    )
    cases = tuple(sorted(found, key=lambda case: case.id))
    if not cases:
        _refuse_folders_of_pictures(name, folder)
        raise DataError(
            f"site {name!r} has no cases: put images ({READABLE}) into images/ and their masks into masks/, "
            f"or list them in {MANIFEST}"
        )
    _check_unique(name, cases)
    if masks_required:
        _check_masks(name, folder, cases)
    return Site(name, folder, cases)


def _refuse_folders_of_pictures(name: str, folder: Path) -> None:
    """Refuse a site without a case whose `images/` holds folders with pictures, such as one for each patient.

    Raises:
        DataError: there is such a folder.
    """
    found = sorted(path.name for path in (folder / "images").glob("[!.]*") if holds_pictures(path))
    if found:
        raise DataError(
            f"site {name!r} has no cases, and images/ holds folders of pictures, such as {found[0]!r}; {PICTURES_REMEDY}"
        )


def check_name(name: str) -> None:
    """Refuse a name of a site that cannot name a folder.

    Raises:
        OptionError: the name cannot be used.
    """
    if not _NAME.fullmatch(name) or len(name) > LONGEST_NAME:
        raise OptionError(
            f"site name {short_repr(name)} cannot name a folder: use letters, digits, '_', '-' and '.', "
            f"beginning with a letter or digit, and at most {LONGEST_NAME} characters"
        )


def are_parts(names: Collection[str]) -> bool:
    """Whether the names of two or more sites are all those of the parts of one data set, such as `train` and `test`."""
    return len(names) > 1 and all(name.lower() in _PART_NAMES for name in names)


def _is_listed(name: str, folder: Path) -> bool:
    """Whether a folder has a manifest.

    Raises:
        DataError: the manifest cannot be read, or a file is probably the manifest and has another name, so that the patients and the
            split in it would be ignored.
    """
    if (folder / MANIFEST).is_file():
        return True
    names = sorted(path.name for path in folder.iterdir())
    if MANIFEST in names:
        raise DataError(
            f"site {name!r}: {MANIFEST} is not a file but a folder, a pipe, or a link to a file that is not there; put the file there, or "
            "take the entry out"
        )
    renamed = [one for one in names if one.lower().startswith(MANIFEST)]
    alike = renamed or [one for one in names if _LIKE_MANIFEST.fullmatch(one)]
    if alike:
        remedy = f"rename it to {MANIFEST}" if renamed else f"save it as {MANIFEST} (CSV UTF-8, separated by commas)"
        raise DataError(
            f"site {name!r}: its folder holds {alike[0]!r} and no {MANIFEST}, so that the patients and the split in that file would be "
            f"ignored; {remedy}, or take it out of the folder"
        )
    return False


def orphan_masks(site: Site) -> tuple[str, ...]:
    """Files in `masks/` that belong to no case, usually because of a misspelt name; none for a site with a manifest."""
    if has_manifest(site):
        return ()
    known = {case.id for case in site.cases}
    return tuple(entry.path.name for entry in find_entries(site.folder / "masks") if entry.stem not in known)


def unread_files(site: Site) -> tuple[str, ...]:
    """What `images/` and `masks/` hold that may be a case and is not read, as `folder/name`; none for a site with a manifest.

    These are files of other formats, archives, and folders without a DICOM file or a stack of masks.
    """
    if has_manifest(site):
        return ()
    found = chain.from_iterable(find_unread(site.folder / part) for part in _PARTS)
    return tuple(f"{path.parent.name}/{path.name}" for path in found)


def images_of_no_case(site: Site) -> tuple[str, ...]:
    """Images in `images/` that are in no case, because their names have no ending of a sequence; none for a site with a manifest."""
    if has_manifest(site):
        return ()
    known = set(chain.from_iterable(case.files for case in site.cases))
    return tuple(entry.path.name for entry in find_entries(site.folder / "images") if entry.path not in known)


def unlisted_files(site: Site) -> tuple[str, ...]:
    """Readable files in `images/` and `masks/` that the manifest does not list, as `folder/name`; none without a manifest."""
    if not has_manifest(site):
        return ()
    listed = set(chain.from_iterable(case.files for case in site.cases))
    found = (entry.path for part in _PARTS for entry in find_entries(site.folder / part) if entry.path not in listed)
    return tuple(f"{path.parent.name}/{path.name}" for path in found)


def has_manifest(site: Site) -> bool:
    """Whether the site's cases are listed in a manifest."""
    return (site.folder / MANIFEST).is_file()


def _from_folders(name: str, folder: Path, pattern: Pattern | None, channels: Sequence[str]) -> Iterator[Case]:
    if not (folder / "images").is_dir():
        raise DataError(
            f"site {name!r}: its folder has neither {MANIFEST} nor images/; "
            "put the images into images/ and masks of equal names into masks/"
        )
    _check_foreign(name, folder)
    images, of_masks = (find_entries(folder / part) for part in _PARTS)
    _check_utf8(name, [*images, *of_masks])
    _check_links(name, folder)
    masks: dict[str, Path] = {}
    for entry in of_masks:
        if entry.stem in masks:
            raise DataError(
                f"site {name!r}, case {entry.stem!r}: two masks, {masks[entry.stem].name!r} and {entry.path.name!r}; keep one"
            )
        masks[entry.stem] = entry.path
    try:
        refuse_loose_series(images)
        groups = group_sequences(images, channels)
    except DataError as exc:
        raise DataError(f"site {name!r}: {exc}") from exc
    for stem, (first, *others) in groups:
        patient, source = _patient(pattern, stem)
        yield Case(
            name,
            stem,
            first.path,
            masks.get(stem),
            patient,
            volume=first.volume,
            sequences=tuple(entry.path for entry in others),
            patient_source=source,
        )


def _check_foreign(name: str, folder: Path) -> None:
    for part in _PARTS:
        found = [path for path in _visible(folder / part) if path.name.lower().endswith(FOREIGN) and path.is_file()]
        if found:
            raise DataError(
                f"site {name!r}: {part}/ holds {found[0].name!r} ({len(found)} such file(s)), which is not read: "
                "convert volumes to NIfTI (.nii.gz), and take the file out"
            )


def _check_utf8(name: str, entries: Sequence[Entry]) -> None:
    """Refuse names that are not UTF-8 and could not be written to a text file; Python reads such bytes as lone surrogates.

    Raises:
        DataError: there is such a name.
    """
    found = [entry.path for entry in entries if not is_text(entry.path.name)]
    if found:
        raise DataError(
            f"site {name!r}: {found[0].parent.name}/ holds {found[0].name!a} ({len(found)} such file(s)), whose name is not UTF-8; "
            "rename it, for example to ASCII letters and digits"
        )


def _check_links(name: str, folder: Path) -> None:
    """Refuse links without a target, whose cases would be missing without a message.

    Raises:
        DataError: there is such a link.
    """
    try:
        for path in chain.from_iterable(_visible(folder / part) for part in _PARTS):
            refuse_broken_link(path)
    except DataError as exc:
        raise DataError(f"site {name!r}: {exc}") from exc


def _from_manifest(name: str, folder: Path, pattern: Pattern | None) -> Iterator[Case]:
    for line in read_lines(name, folder):
        patient, source = _patient(pattern, line.case, given=line.patient)
        yield Case(
            site=name,
            id=line.case,
            image=line.image.path,
            mask=line.mask,
            patient=patient,
            split=line.split,
            spacing_mm=line.spacing_mm,
            volume=line.image.volume,
            sequences=line.sequences,
            series=line.series,
            spacing_lost=line.spacing_lost,
            patient_source=source,
        )


def spacing_cell(case: Case) -> str:
    """The cell `spacing` of a manifest with which the case has its spacing; empty: that of its file."""
    return UNKNOWN if case.spacing_lost else "x".join(map(repr, case.spacing_mm or ()))


def _compile(patient_pattern: str | None) -> Pattern | None:
    return None if patient_pattern is None else Pattern(patient_pattern, "patient_pattern")


def _patient(pattern: Pattern | None, case: str, *, given: str = "") -> tuple[str, PatientSource]:
    """The patient of a case, and the source of that name: the one given in a manifest, else the match of the pattern, else the case."""
    if given:
        return given, "manifest"
    group = pattern.group(case, "patient") if pattern else None
    return (group, "pattern") if group else (case, "name")


def _visible(folder: Path) -> list[Path]:
    """What a folder contains, sorted, without hidden files (a Mac puts `._a.png` beside `a.png`); empty if there is no folder."""
    return sorted(folder.glob("[!.]*"))


def _check_unique(name: str, cases: Sequence[Case]) -> None:
    for before, case in pairwise(cases):
        if before.id == case.id:
            raise DataError(
                f"site {name!r}, case {case.id!r}: two images, {before.image.name!r} and {case.image.name!r}; "
                f"keep one, rename one, or tell them apart by the column 'case' of {MANIFEST}"
            )


def _check_masks(name: str, folder: Path, cases: tuple[Case, ...]) -> None:
    missing = [case for case in cases if case.mask is None]
    if missing:
        more = f" ({len(missing)} such cases)" if len(missing) > 1 else ""
        raise DataError(f"site {name!r}, case {missing[0].id!r}: the image has no mask{more}; {MASK_REMEDY}")
    orphans = orphan_masks(Site(name, folder, cases))
    if orphans:
        raise DataError(
            f"site {name!r}: mask {orphans[0]!r} has no image ({len(orphans)} such masks); "
            "name it like its image in images/, or take it out"
        )
