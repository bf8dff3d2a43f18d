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
    for folder in subfolders(source):
        domain = _DOMAIN.fullmatch(folder.name)
        if domain is None:
            continue
        site = NAMES.get(domain[1], f"domain_{domain[1]}")
        for part in ("train", "test"):
            rois = folder / part / "ROIs"
            for stem, image, mask in with_masks(pictures(rois / "image"), pictures(rois / "mask")):
                yield FoundCase(site, stem, _patient(stem), (image,), mask)


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
)
