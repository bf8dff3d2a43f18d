"""The six-site prostate benchmark as PNG slices, in which 0 is the prostate and 255 the background.

Slices are called `<patient>_<slice>.png` in `<SITE>/{train,test}/{image,mask}`. Both parts number their patients from 0, so a patient is
the part and the number together.
"""

from collections.abc import Iterator
from pathlib import Path

from pfedsam.data.layouts.base import Classes, FoundCase, Layout, pictures, subfolders, with_masks
from pfedsam.data.layouts.saml import SITES


def find(source: Path) -> Iterator[FoundCase]:
    """The slices of each part. No split is set: whether the published test part is kept as such is the user's choice."""
    for folder in _parts(source):
        site, part = folder.parent.name.upper(), folder.name
        for stem, image, mask in with_masks(pictures(folder / "image"), pictures(folder / "mask")):
            yield FoundCase(site, f"{part}_{stem}", f"{part}_{stem.partition('_')[0]}", (image,), mask)


def masks(source: Path) -> list[Path]:
    """All masks."""
    return [mask for folder in _parts(source) for mask in pictures(folder / "mask")]


def _parts(source: Path) -> list[Path]:
    sites = (folder for folder in subfolders(source) if folder.name.upper() in SITES)
    return [folder / part for folder in sites for part in ("train", "test")]


def classes(_: Path) -> Classes:
    """In the published files 0 is the prostate."""
    return {"prostate": [0], "background": [255]}


LAYOUT = Layout(
    "prostate-slices",
    "prostate T2 MRI of six sites, as PNG slices with 0 = prostate and 255 = background",
    "<SITE>/train/image/00_00.png and <SITE>/train/mask/00_00.png (also test), SITE one of BIDMC, BMC, HK, I2CVB, RUNMC, UCL",
    find,
    classes,
    masks=masks,
)
