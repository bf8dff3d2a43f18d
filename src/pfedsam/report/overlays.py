"""Pictures of a site's worst, median and best case, with the outlines of truth and prediction.

They lie in the site's own folder (`sites/<name>/overlays/`), and name no case: each file carries only its Dice, as
text in the PNG, for the caption on the page. The report of a run on one machine holds them once more, those of all sites:
it is for whoever may see all sites' images. A coordinator of sites elsewhere has no such folders, so its report has none.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import AbstractPathEffect, withStroke
from PIL import Image

from pfedsam.core.atomic import write_bytes
from pfedsam.core.errors import StoreError
from pfedsam.data.labels import IGNORED, MAX_OVERLAPPING, class_pixels
from pfedsam.report.format import MISSING, format_value

TRUTH: Final = "#00e1ff"
PREDICTION: Final = "#ffb000"
RANKS: Final = ("worst", "median", "best")
_SIDE: Final = 384
_DICE_KEY: Final = "Dice"


@dataclass(frozen=True)
class OverlayItem:
    """One case at native size: image [H, W, 3] in 0..1, labels [H, W], and its Dice (None where undefined)."""

    image: npt.NDArray[np.float32]
    truth: npt.NDArray[np.integer]
    prediction: npt.NDArray[np.integer]
    dice: float | None
    overlap: bool = False
    """Labels are sets of bits, one for each class."""


def write_overlays(folder: Path, items: Iterable[OverlayItem]) -> list[Path]:
    """Writes `worst.png`, `median.png` and `best.png` by Dice, and says which were written.

    The lower of two medians is taken; cases without a Dice are left out; no case is shown twice, so that fewer than
    three cases give fewer pictures. Pictures of an earlier evaluation are removed.

    Raises:
        StoreError: a picture could not be written.
    """
    ranked = sorted((item for item in items if item.dice is not None), key=lambda item: item.dice or 0.0)
    last = len(ranked) - 1
    chosen: dict[int, str] = {}
    if ranked:
        for rank, position in zip(RANKS, (0, last // 2, last), strict=True):
            chosen.setdefault(position, rank)
    folder.mkdir(parents=True, exist_ok=True)
    for rank in RANKS:
        (folder / f"{rank}.png").unlink(missing_ok=True)
    paths = {folder / f"{rank}.png": ranked[position] for position, rank in chosen.items()}
    for path, item in paths.items():
        write_bytes(path, draw_overlay(item))
    return list(paths)


def read_overlays(folder: Path) -> list[tuple[str, str, bytes]]:
    """The pictures in a folder, worst first: rank, Dice as text, PNG bytes; none where there is no such folder.

    Raises:
        StoreError: a file there is not a picture.
    """
    found = []
    for rank in RANKS:
        path = folder / f"{rank}.png"
        if path.is_file():
            data = path.read_bytes()
            found.append((rank, _dice_text(data, path), data))
    return found


def draw_overlay(item: OverlayItem) -> bytes:
    """The picture as PNG, its longer side 384 pixels, with the outlines of all classes: truth cyan, prediction amber.

    The contrast is stretched for the display (percentiles 0.5 to 99.5 of all channels together): fluorescence is so
    dark that a screen would show nothing.
    """
    height, width = (max(1, round(length * _SIDE / max(item.truth.shape))) for length in item.truth.shape)
    low, high = np.percentile(item.image, (0.5, 99.5))
    stretched = np.clip((item.image - low) / max(float(high - low), 1e-6), 0, 1)
    picture = Image.fromarray((255 * stretched).astype(np.uint8)).resize((width, height), Image.Resampling.LANCZOS)
    figure = Figure(figsize=(width / 100, height / 100), dpi=100)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.imshow(np.asarray(picture), extent=(0, width, height, 0), interpolation="nearest")
    for classes, color, thickness in ((item.truth, TRUTH, 2.2), (item.prediction, PREDICTION, 1.6)):
        for mask in _class_masks(classes, overlap=item.overlap):
            _outline(axes, mask, color=color, width=thickness, size=(height, width))
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    target = BytesIO()
    figure.savefig(target, format="png", metadata={_DICE_KEY: format_value(item.dice), "Software": None})
    return target.getvalue()


def _class_masks(labels: npt.NDArray[np.integer], *, overlap: bool) -> list[npt.NDArray[np.bool_]]:
    """The mask of each class that labels [H, W] hold, without pixels that are to be ignored."""
    numbers = range(1, MAX_OVERLAPPING + 1) if overlap else [int(n) for n in np.unique(labels) if n not in (0, IGNORED)]
    masks = (class_pixels(labels, number, overlap=overlap) for number in numbers)
    return [mask for mask in masks if mask.any()]


def _outline(axes: Axes, mask: npt.NDArray[np.bool_], *, color: str, width: float, size: tuple[int, int]) -> None:
    """Draws the border of a class over a picture of `size`; one that touches the picture's edge is closed there."""
    scale = size[0] / mask.shape[0], size[1] / mask.shape[1]
    padded = np.pad(mask, 1)
    y, x = (np.clip((np.arange(n + 2) - 0.5) * k, 1, n * k - 1) for n, k in zip(mask.shape, scale, strict=True))
    halo: list[AbstractPathEffect] = [withStroke(linewidth=width + 1.0, foreground="#00000066")]
    drawn = axes.contour(x, y, padded.astype(float), levels=[0.5], colors=color, linewidths=width)
    drawn.set_path_effects(halo)


def _dice_text(data: bytes, path: Path) -> str:
    """The Dice that a picture carries.

    Raises:
        StoreError: it is not a PNG.
    """
    try:
        with Image.open(BytesIO(data), formats=("PNG",)) as picture:
            return str(picture.info.get(_DICE_KEY, MISSING))
    except (OSError, SyntaxError) as error:
        raise StoreError(f"overlays/{path.name} is not a picture. Make it again with `pfedsam evaluate`.") from error
