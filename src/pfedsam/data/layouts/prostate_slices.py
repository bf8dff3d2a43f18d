"""The six-site prostate benchmark as PNG slices, in which 0 is the prostate and 255 the background.

Slices are called `<patient>_<slice>.png` in `<SITE>/{train,test}/{image,mask}`. Both parts number their patients from 0, so a patient is
the part and the number together.
"""

from collections.abc import Iterator
from pathlib import Path

from pfedsam.data.layouts.base import Classes, FoundCase, Layout, pictures
from pfedsam.data.layouts.saml import SITES


def find(source: Path) -> Iterator[FoundCase]:
    """The slices of each part; whether a test part is kept apart is the user's choice, so no split is fixed."""
    for folder in sorted(path for path in source.iterdir() if path.is_dir() and path.name in SITES):
        for part in ("train", "test"):
            masks = {path.stem: path for path in pictures(folder / part / "mask")}
            for image in pictures(folder / part / "image"):
                if image.stem in masks:
                    patient = f"{part}_{image.stem.partition('_')[0]}"
                    yield FoundCase(folder.name, f"{part}_{image.stem}", patient, (image,), masks[image.stem])


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
