"""The range of brightness of a site's training images, stored with its model, so that `predict` notices images with another range.

A picture of 12 bits in a file of 16 bits is almost black to a model that was trained on 8 bits, and the predicted mask is empty.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from pfedsam.core import atomic
from pfedsam.data.facts import SiteFacts, value_range
from pfedsam.data.of_training import read_of_training

RANGE: Final = "intensity.json"
_FACTOR: Final = 4.0
"""Ratio of brightness to every training image from which a picture is reported."""
_DARK: Final = 1 / 255


@dataclass(frozen=True)
class IntensityRange:
    """Lowest and highest 99th percentile of a site's training images, as shares of the range of their type."""

    darkest: float
    brightest: float


def training_range(facts: SiteFacts) -> IntensityRange | None:
    """The range of a site's training images; None if none could be read."""
    highs = [one.high for one in facts.cases if one.case.split == "train" and one.high is not None]
    return IntensityRange(min(highs), max(highs)) if highs else None


def write_range(folder: Path, found: IntensityRange | None) -> None:
    """Write the range into a site's folder; no file is written if there is none.

    Raises:
        StoreError: the file could not be written.
    """
    if found is not None:
        atomic.write_json(folder / RANGE, {"schema": 1, **asdict(found)})


def read_range(folder: Path) -> IntensityRange | None:
    """The range in a site's folder; None if there is no such file, as in runs of earlier versions.

    Raises:
        StoreError: the file is damaged.
    """
    return read_of_training(
        folder / RANGE,
        lambda content: IntensityRange(float(content["darkest"]), float(content["brightest"])),
        lost="does not compare images with those of the training",
    )


def far_from_training(values: npt.NDArray[np.float32], training: IntensityRange) -> str | None:
    """The message about an image [H, W, 3] whose range is far from that of every training image; None for other images."""
    high = value_range(values)[1]
    darkest, brightest = max(training.darkest, _DARK), max(training.brightest, _DARK)
    if darkest / _FACTOR <= max(high, _DARK) <= brightest * _FACTOR:
        return None
    how = "darker" if high < darkest else "brighter"
    return (
        f"it is much {how} than the images that the site trained on: its values reach {_percent(high)} of their type's range, theirs "
        f"{_percent(training.darkest)} to {_percent(training.brightest)}. The mask may be wrong or empty; export the image as those "
        "were, or train with data.image.contrast: percentile"
    )


def _percent(part: float) -> str:
    return f"{100 * part:.2g} %"
