"""The four public sets of retinal vessels in one folder: DRIVE, STARE, CHASE_DB1 and HRF, each unpacked into a folder of its name."""

import gzip
import io
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from pfedsam.data.layouts.base import Classes, FoundCase, Layout, as_png, pictures, subfolders

_VESSEL = 255
_Reader: TypeAlias = Callable[[Path], Iterator[FoundCase]]


def find(source: Path) -> Iterator[FoundCase]:
    """The cases of those of the four sets that the folder contains."""
    for folder in subfolders(source):
        reader = _set_in(folder)
        if reader is not None:
            yield from reader(folder)


def _set_in(folder: Path) -> _Reader | None:
    return _SETS.get(folder.name.lower().replace("-", "_"))


def _drive(folder: Path) -> Iterator[FoundCase]:
    for image in [*pictures(folder / "training" / "images"), *pictures(folder / "test" / "images")]:
        number = image.name.partition("_")[0]
        mask = image.parents[1] / "1st_manual" / f"{number}_manual1.gif"
        yield _case("drive", number, number, image, mask)


def _stare(folder: Path) -> Iterator[FoundCase]:
    for image in sorted(folder.rglob("im*.ppm*")):
        match = re.fullmatch(r"(im\d+)\.ppm(?:\.gz)?", image.name)
        if match:
            masks = sorted(folder.rglob(f"{match[1]}.ah.ppm*"))
            yield _case("stare", match[1], match[1], image, masks[0] if masks else None)


def _chase(folder: Path) -> Iterator[FoundCase]:
    for image in pictures(folder, (".jpg",)):
        match = re.fullmatch(r"(Image_\d+)[LR]", image.stem)
        mask = image.with_name(f"{image.stem}_1stHO.png")
        if match:
            yield _case("chase", image.stem, match[1], image, mask)  # both eyes of a child are one patient


def _hrf(folder: Path) -> Iterator[FoundCase]:
    for image in pictures(folder / "images"):
        mask = folder / "manual1" / f"{image.stem}.tif"
        yield _case("hrf", image.stem, image.stem, image, mask)  # 01_h, 01_dr and 01_g are different people


def _case(site: str, case: str, patient: str, image: Path, mask: Path | None) -> FoundCase:
    made = as_png(partial(_vessels, mask), (mask,)) if mask and mask.is_file() else None
    return FoundCase(site, case, patient, (as_png(partial(_read, image, "RGB")),), made)


def _read(path: Path, mode: str) -> npt.NDArray[np.uint8]:
    """The picture as [H, W, 3] or [H, W]; also from a `.gz`."""
    content = path.read_bytes()
    with Image.open(io.BytesIO(gzip.decompress(content) if path.suffix == ".gz" else content)) as image:
        return np.asarray(image.convert(mode))


def _vessels(path: Path) -> npt.NDArray[np.uint8]:
    """255 at vessels [H, W], 0 elsewhere."""
    return np.where(_read(path, "L") > 127, _VESSEL, 0).astype(np.uint8)


_SETS: dict[str, _Reader] = {
    "drive": _drive,
    "stare": _stare,
    "chase": _chase,
    "chase_db1": _chase,
    "chasedb1": _chase,
    "hrf": _hrf,
}


_MASKS: dict[_Reader, tuple[str, ...]] = {
    _drive: ("training/1st_manual/*_manual1.gif", "test/1st_manual/*_manual1.gif"),
    _stare: ("**/im*.ah.ppm*",),
    _chase: ("*_1stHO.png",),
    _hrf: ("manual1/*.tif",),
}
"""Patterns of the masks below the folder of each set."""


def masks(source: Path) -> list[Path]:
    """The masks of those of the four sets that the folder contains, of the first observer where there are two."""
    sets = ((folder, _set_in(folder)) for folder in subfolders(source))
    return [
        path for folder, reader in sets if reader for pattern in _MASKS[reader] for path in sorted(folder.glob(pattern))
    ]


def classes(_: Path) -> Classes:
    """The id in the masks that the import writes."""
    return {"vessel": [_VESSEL]}


LAYOUT = Layout(
    "retina",
    "retinal vessels: DRIVE, STARE, CHASE_DB1 and HRF, each a site",
    "DRIVE/training/{images,1st_manual}; STARE/**/im0001[.ah].ppm[.gz]; CHASE_DB1/Image_01L{.jpg,_1stHO.png}; HRF/{images,manual1}",
    find,
    classes,
    masks=masks,
)
