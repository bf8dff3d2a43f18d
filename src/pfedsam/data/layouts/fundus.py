"""The four-site fundus benchmark (Wang et al., "DoFE", 2020): optic disc and cup; 0 is the cup, 128 the rim, 255 the background."""

import re
from collections.abc import Iterator
from pathlib import Path

from pfedsam.data.layouts.base import Classes, FoundCase, Layout, pictures, subfolders, with_masks

_DOMAIN = re.compile(r"domain(\d+)", re.IGNORECASE)
_EYE = re.compile(r"^([A-Z]-\d+)-[LR]$")
NAMES = {"1": "drishti_gs", "2": "rim_one_r3", "3": "refuge_train", "4": "refuge_val"}


def find(source: Path) -> Iterator[FoundCase]:
    """Pictures of `Domain1` to `Domain4`; both eyes of a person (`G-1-L`, `G-1-R`) are one patient."""
    for site, rois in _parts(source):
        for stem, image, mask in with_masks(pictures(rois / "image"), pictures(rois / "mask")):
            yield FoundCase(site, stem, _patient(stem), (image,), mask)


def masks(source: Path) -> list[Path]:
    """All masks."""
    return [mask for _, rois in _parts(source) for mask in pictures(rois / "mask")]


def _parts(source: Path) -> Iterator[tuple[str, Path]]:
    """The site and the folder of each part of each domain."""
    for folder in subfolders(source):
        domain = _DOMAIN.fullmatch(folder.name)
        if domain:
            for part in ("train", "test"):
                yield NAMES.get(domain[1], f"domain_{domain[1]}"), folder / part / "ROIs"


def _patient(stem: str) -> str:
    eye = _EYE.match(stem)
    return eye[1] if eye else stem


def classes(_: Path) -> Classes:
    """The rim is the disc without the cup, so that the classes exclude each other."""
    return {"rim": [128], "cup": [0], "background": [255]}


LAYOUT = Layout(
    "fundus",
    "optic disc and cup of four sites, with 0 = cup, 128 = rim and 255 = background (Wang et al., 2020)",
    "Domain1/train/ROIs/image/x.png and Domain1/train/ROIs/mask/x.png (also test; Domain1 to Domain4)",
    find,
    classes,
    masks=masks,
)
