"""Pictures of a site's worst, median and best case, with the outlines of truth and prediction.

For a volume, the slice with the most wrong voxels and its two neighbours are drawn in their stored orientation. The letters at the edges
name the directions of the patient's body: R and L right and left, A and P front and back, S and I head and feet.

The pictures are in the site's own folder (`sites/<name>/overlays/`) and do not name the case: each PNG has its Dice as text, which is
used for the caption on the page. The report of a run on one machine contains the pictures of all sites, so only persons who may see the
images of all sites should get it. The coordinator of a study between hospitals has no such folders, so its report has no pictures.
"""

from collections.abc import Callable, Iterable
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
from pfedsam.data.labels import IGNORED, MAX_OVERLAPPING, class_pixels, ignored_pixels
from pfedsam.report.format import MISSING, format_value

TRUTH: Final = "#00e1ff"
PREDICTION: Final = "#ffb000"
RANKS: Final = ("worst", "median", "best")
_SIDE: Final = 384
_GAP: Final = 6
"""Width in pixels of the gap between the slices of a volume."""
_DICE_KEY: Final = "Dice"
_PLACE_KEY: Final = "Place"
_OPPOSITE: Final = {"R": "L", "L": "R", "A": "P", "P": "A", "S": "I", "I": "S"}
_PLANES: Final = {
    **dict.fromkeys("SI", "axial"),
    **dict.fromkeys("AP", "coronal"),
    **dict.fromkeys("RL", "sagittal"),
}
"""The name of the plane of the slices, by the body axis along which they are stacked."""


@dataclass(frozen=True)
class OverlayItem:
    """One case at native size: image [H, W, 3] in 0..1, labels [H, W], and its Dice (None where undefined)."""

    image: npt.NDArray[np.float32]
    truth: npt.NDArray[np.integer]
    prediction: npt.NDArray[np.integer]
    dice: float | None
    overlap: bool = False
    """Labels are sets of bits, one for each class."""


@dataclass(frozen=True)
class VolumeOverlay:
    """The slices of a volume that are drawn, and their position in it."""

    slices: tuple[OverlayItem, ...]
    """The slice with the largest error and its neighbours, in the order of the volume."""
    first: int
    """Index of the first of these slices, from 0."""
    shown: int
    """Index of the slice with the largest error."""
    total: int
    """Number of slices of the volume."""
    dice: float | None
    """Dice of the whole volume."""
    spacing_mm: tuple[float, float, float] | None
    """Spacing along (slices, rows, columns); None if it is not known."""
    axes: str | None
    """The directions in which the indices (slice, row, column) increase, such as `SPL`; None if they are not known."""

    @property
    def place(self) -> str:
        """The position and the size of the slices, as text for the report."""
        plane = "" if self.axes is None else f"{_PLANES[self.axes[0]]} "
        name = f"{plane}slice {self.shown + 1} of {self.total} between its neighbours"
        if self.spacing_mm is None:
            return f"{name}, spacing not known"
        between, row, column = (f"{value:.3g}" for value in self.spacing_mm)
        return f"{name}, pixels of {row} x {column} mm, slices {between} mm apart"


def volume_overlay(
    image_slice: Callable[[int], npt.NDArray[np.float32]],
    truth: npt.NDArray[np.integer],
    prediction: npt.NDArray[np.integer],
    dice: float | None,
    *,
    spacing_mm: tuple[float, float, float] | None,
    axes: str | None,
    overlap: bool = False,
) -> VolumeOverlay:
    """The slices of a volume that are drawn; no other slices are read. Pixels that are to be ignored are no errors.

    Args:
        image_slice: function from the index of a slice to its picture [H, W, 3] in 0..1.
        truth: class map [D, H, W].
        prediction: class map [D, H, W].
        dice: Dice of the volume; None if undefined.
        spacing_mm: spacing along (D, H, W); None if it is not known.
        axes: the directions in which the indices along (D, H, W) increase, one letter of RLAPSI each; None if they are not known.
        overlap: labels are sets of bits, one for each class.
    """
    counted = ~ignored_pixels(truth, overlap=overlap)
    wrong = np.count_nonzero((truth != prediction) & counted, axis=(1, 2))
    if not wrong.any():  # without an error, the slice with most of the structure is more informative than the first one
        wrong = np.count_nonzero((truth != 0) & counted, axis=(1, 2))
    shown, total = int(wrong.argmax()), len(truth)
    indices = range(max(0, shown - 1), min(total, shown + 2))
    slices = tuple(OverlayItem(image_slice(index), truth[index], prediction[index], dice, overlap) for index in indices)
    return VolumeOverlay(slices, indices.start, shown, total, dice, spacing_mm, axes)


def write_overlays(folder: Path, items: Iterable[OverlayItem | VolumeOverlay]) -> list[Path]:
    """Write `worst.png`, `median.png` and `best.png` by Dice, and return the paths of the pictures that were written.

    For an even number of cases the lower median is taken. Cases without a Dice are left out. No case is shown twice, so fewer than three
    cases give fewer pictures. Pictures of an earlier evaluation are removed.

    Raises:
        StoreError: a picture could not be written.
    """
    ranked = sorted((item for item in items if item.dice is not None), key=lambda item: item.dice or 0.0)
    folder.mkdir(parents=True, exist_ok=True)
    for rank in RANKS:
        (folder / f"{rank}.png").unlink(missing_ok=True)
    paths = {folder / f"{rank}.png": ranked[position] for position, rank in _positions(len(ranked)).items()}
    for path, item in paths.items():
        write_bytes(path, draw_overlay(item))
    return list(paths)


def _positions(cases: int) -> dict[int, str]:
    """The positions of the pictures among so many ranked cases, with their ranks; the first rank of a position counts."""
    found: dict[int, str] = {}
    last = cases - 1
    for rank, position in zip(RANKS, (0, last // 2, last), strict=True):
        found.setdefault(position, rank)
    return found if cases else {}


@dataclass(frozen=True)
class StoredOverlay:
    """A picture that was read from a folder."""

    rank: str
    dice: str
    """As text."""
    place: str
    """The position and the size of the slices of a volume; empty for an image."""
    png: bytes


def read_overlays(folder: Path) -> list[StoredOverlay]:
    """The pictures in a folder, the worst first; an empty list if the folder does not exist.

    Raises:
        StoreError: a file there is not a picture.
    """
    found = []
    for rank in RANKS:
        path = folder / f"{rank}.png"
        if path.is_file():
            data = path.read_bytes()
            texts = _texts(data, path)
            found.append(StoredOverlay(rank, texts.get(_DICE_KEY, MISSING), texts.get(_PLACE_KEY, ""), data))
    return found


def draw_overlay(item: OverlayItem | VolumeOverlay) -> bytes:
    """The picture as PNG, with the outlines of all classes: truth cyan, prediction amber. The longer side of a slice has 384 pixels.

    The contrast is stretched to the percentiles 0.5 to 99.5 of all channels together, because fluorescence images are otherwise too dark
    to be seen on a screen.
    """
    slices = item.slices if isinstance(item, VolumeOverlay) else (item,)
    height, width = _drawn_size(item)
    total = len(slices) * width + (len(slices) - 1) * _GAP
    figure = Figure(figsize=(total / 100, height / 100), dpi=100, facecolor="black")
    FigureCanvasAgg(figure)
    limits = np.percentile(np.stack([one.image for one in slices]), (0.5, 99.5))
    for place, one in enumerate(slices):
        axes = figure.add_axes((place * (width + _GAP) / total, 0, width / total, 1))
        _draw_slice(axes, one, size=(height, width), limits=(float(limits[0]), float(limits[1])))
        if isinstance(item, VolumeOverlay):
            _write_labels(axes, item, item.first + place, size=(height, width))
    texts = {_DICE_KEY: format_value(item.dice), "Software": None}
    if isinstance(item, VolumeOverlay):
        texts[_PLACE_KEY] = item.place
    target = BytesIO()
    figure.savefig(target, format="png", metadata=texts, facecolor="black")
    return target.getvalue()


def _drawn_size(item: OverlayItem | VolumeOverlay) -> tuple[int, int]:
    """Height and width of one slice in pixels of the picture; the aspect ratio of the pixels of a volume follows their spacing."""
    one = item.slices[0] if isinstance(item, VolumeOverlay) else item
    lengths = [float(length) for length in one.truth.shape]
    if isinstance(item, VolumeOverlay) and item.spacing_mm is not None:
        lengths = [length * spacing for length, spacing in zip(lengths, item.spacing_mm[1:], strict=True)]
    height, width = (max(1, round(length * _SIDE / max(lengths))) for length in lengths)
    return height, width


def _draw_slice(axes: Axes, item: OverlayItem, *, size: tuple[int, int], limits: tuple[float, float]) -> None:
    """Draw one picture [H, W, 3] with its outlines; the values of `limits` are shown as black and white."""
    (height, width), (low, high) = size, limits
    stretched = np.clip((item.image - low) / max(high - low, 1e-6), 0, 1)
    picture = Image.fromarray((255 * stretched).astype(np.uint8)).resize((width, height), Image.Resampling.LANCZOS)
    axes.set_axis_off()
    axes.imshow(np.asarray(picture), extent=(0, width, height, 0), interpolation="nearest", aspect="auto")
    for classes, color, thickness in ((item.truth, TRUTH, 2.2), (item.prediction, PREDICTION, 1.6)):
        for mask in _class_masks(classes, overlap=item.overlap):
            _outline(axes, mask, color=color, width=thickness, size=size)
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)


def _write_labels(axes: Axes, item: VolumeOverlay, index: int, *, size: tuple[int, int]) -> None:
    """Write the number of a slice (bold for the slice with the largest error), and the directions of the body at the edges."""
    height, width = size
    halo = [withStroke(linewidth=2, foreground="black")]
    weight = "bold" if index == item.shown else "normal"
    axes.text(
        4, height - 4, f"slice {index + 1}", color="white", fontsize=9, weight=weight, va="bottom", path_effects=halo
    )
    if item.axes is None:
        return
    rows, columns = item.axes[1], item.axes[2]
    edges = {
        (width / 2, 3, "center", "top"): _OPPOSITE[rows],
        (width / 2, height - 3, "center", "bottom"): rows,
        (4, height / 2, "left", "center"): _OPPOSITE[columns],
        (width - 4, height / 2, "right", "center"): columns,
    }
    for (x, y, across, along), letter in edges.items():
        axes.text(x, y, letter, color="white", fontsize=11, weight="bold", ha=across, va=along, path_effects=halo)


def _class_masks(labels: npt.NDArray[np.integer], *, overlap: bool) -> list[npt.NDArray[np.bool_]]:
    """The mask of each class in labels [H, W], without pixels that are to be ignored."""
    numbers = range(1, MAX_OVERLAPPING + 1) if overlap else [int(n) for n in np.unique(labels) if n not in (0, IGNORED)]
    masks = (class_pixels(labels, number, overlap=overlap) for number in numbers)
    return [mask for mask in masks if mask.any()]


def _outline(axes: Axes, mask: npt.NDArray[np.bool_], *, color: str, width: float, size: tuple[int, int]) -> None:
    """Draw the outline of a class over a picture of `size`; an outline that touches the picture's edge is closed there."""
    scale = size[0] / mask.shape[0], size[1] / mask.shape[1]
    padded = np.pad(mask, 1)
    y, x = (np.clip((np.arange(n + 2) - 0.5) * k, 1, n * k - 1) for n, k in zip(mask.shape, scale, strict=True))
    halo: list[AbstractPathEffect] = [withStroke(linewidth=width + 1.0, foreground="#00000066")]
    drawn = axes.contour(x, y, padded.astype(float), levels=[0.5], colors=color, linewidths=width)
    drawn.set_path_effects(halo)


def _texts(data: bytes, path: Path) -> dict[str, str]:
    """The text entries in the PNG file of a picture.

    Raises:
        StoreError: the file is not a PNG.
    """
    try:
        with Image.open(BytesIO(data), formats=("PNG",)) as picture:
            return {str(key): str(value) for key, value in picture.info.items()}
    except (OSError, SyntaxError) as error:
        raise StoreError(f"overlays/{path.name} is not a picture. Make it again with `pfedsam evaluate`.") from error
