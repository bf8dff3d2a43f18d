"""The six-site prostate benchmark as volumes (Liu et al., "Shape-aware Meta-learning", MICCAI 2020): `<site>/Case00.nii.gz` with masks."""

import re
from collections.abc import Iterator
from pathlib import Path

from pfedsam.data.layouts.base import Classes, FoundCase, Layout, by_stem, stem_of, subfolders, volumes

SITES = {"BIDMC", "BMC", "HK", "I2CVB", "HCRUDB", "RUNMC", "UCL"}
_RENAMED = {"HCRUDB": "I2CVB"}
_MASK = re.compile(r"^(?P<case>.+?)_segmentation$", re.IGNORECASE)


def find(source: Path) -> Iterator[FoundCase]:
    """Every image with a `_segmentation` of the same name in its folder; HCRUDB is another name of I2CVB."""
    for folder in _folders(source):
        name = folder.name.upper()
        yield from _cases(folder, _RENAMED.get(name, name))


def _folders(source: Path) -> list[Path]:
    return [folder for folder in subfolders(source) if folder.name.upper() in SITES]


def _cases(folder: Path, site: str) -> Iterator[FoundCase]:
    files = {stem.lower(): path for stem, path in by_stem(volumes(folder)).items()}
    for stem, image in files.items():
        if not _MASK.match(stem):
            yield FoundCase(site, stem_of(image), stem_of(image), (image,), files.get(f"{stem}_segmentation"))


def masks(source: Path) -> list[Path]:
    """All masks."""
    return [path for folder in _folders(source) for path in volumes(folder) if _MASK.match(stem_of(path))]


def classes(_: Path) -> Classes:
    """Some sites number the two zones of the prostate 1 and 2; both are prostate."""
    return {"prostate": [1, 2]}


LAYOUT = Layout(
    "saml",
    "prostate T2 MRI of six sites, as volumes (Liu et al., 2020)",
    "<SITE>/Case00.nii.gz and <SITE>/Case00_segmentation.nii.gz, SITE one of BIDMC, BMC, HK, I2CVB (or HCRUDB), RUNMC, UCL",
    find,
    classes,
    masks=masks,
)
