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
    for folder in subfolders(source):
        site = folder.name.upper()
        if site not in SITES:
            continue
        for part in ("train", "test"):
            for stem, image, mask in with_masks(pictures(folder / part / "image"), pictures(folder / part / "mask")):
                patient = f"{part}_{stem.partition('_')[0]}"
                yield FoundCase(site, f"{part}_{stem}", patient, (image,), mask)


def classes(_: Path) -> Classes:
    """In the published files 0 is the prostate."""
    return {"prostate": [0], "background": [255]}


LAYOUT = Layout(
    "prostate-slices",
    "prostate T2 MRI of six sites, as PNG slices with 0 = prostate and 255 = background",
    "<SITE>/train/image/00_00.png and <SITE>/train/mask/00_00.png (also test), SITE one of BIDMC, BMC, HK, I2CVB, RUNMC, UCL",
    find,
    classes,
)
