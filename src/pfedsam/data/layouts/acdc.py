"""ACDC (Bernard et al., 2018): cardiac MRI of one hospital, `patient001/patient001_frame01.nii.gz` with `_gt` masks."""

import re
from collections.abc import Iterator
from pathlib import Path

from pfedsam.data.layouts.base import Classes, FoundCase, Layout, by_stem, stem_of, volumes

_FRAME = re.compile(r"^(?P<patient>patient\d+)_frame\d+$")
_MASK = re.compile(r"^patient\d+_frame\d+_gt$")


def find(source: Path) -> Iterator[FoundCase]:
    """Each frame, with its mask if there is one; both frames of a heart belong to one patient.

    Raises:
        DataError: two files have the same name.
    """
    for folder in _folders(source):
        files = by_stem(volumes(folder))
        for stem, image in files.items():
            match = _FRAME.match(stem)
            if match:
                yield FoundCase("acdc", stem, match["patient"], (image,), files.get(f"{stem}_gt"))


def _folders(source: Path) -> list[Path]:
    return [path for path in sorted(source.rglob("patient*")) if path.is_dir()]


def masks(source: Path) -> list[Path]:
    """All masks."""
    return [path for folder in _folders(source) for path in volumes(folder) if _MASK.match(stem_of(path))]


def classes(_: Path) -> Classes:
    """ACDC numbers the right ventricle 1 and the left one 3; M&Ms does it the other way round."""
    return {"left_ventricle": [3], "myocardium": [2], "right_ventricle": [1]}


LAYOUT = Layout(
    "acdc",
    "ACDC: cardiac MRI of one hospital (Bernard et al., 2018)",
    "training/patient001/patient001_frame01.nii.gz and patient001_frame01_gt.nii.gz",
    find,
    classes,
    masks=masks,
)
