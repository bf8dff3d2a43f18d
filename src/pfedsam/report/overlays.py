"""Pictures of a site's worst, median and best case, with the outlines of truth and prediction.

With one class, both outlines are in one picture. With several classes, each has its own colour, and the prediction is below the truth.

For a volume, the slice with the most wrong voxels and its two neighbours are drawn in their stored orientation. The letters at the edges
name the directions of the patient's body: R and L right and left, A and P front and back, S and I head and feet.

The pictures are in the site's own folder (`sites/<name>/overlays/`) and do not name the case: each PNG has its Dice as text, which is
used for the caption on the page. The report of a run on one machine contains the pictures of all sites, so only persons who may see the
images of all sites should get it. The coordinator of a study between hospitals has no such folders, so its report has no pictures.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import product
from pathlib import Path
from typing import Final, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import AbstractPathEffect, withStroke
from matplotlib.transforms import TransformedPath
from PIL import Image

from pfedsam.core.atomic import write_bytes
from pfedsam.core.errors import StoreError
from pfedsam.data.labels import IGNORED, MAX_OVERLAPPING, class_pixels, ignored_pixels
from pfedsam.report.class_styles import color_and_dashes
from pfedsam.report.format import MISSING, format_value

TRUTH: Final = "#00e1ff"
PREDICTION: Final = "#ffb000"
RANKS: Final = ("worst", "median", "best")
_SIDE: Final = 384
_GAP: Final = 6
"""Width in pixels of the gap between the slices of a volume."""
_DICE_KEY: Final = "Dice"
_PLACE_KEY: Final = "Place"
_CLASSES_KEY: Final = "Classes"
_INSIDE: Final = 1.8
"""Width in pixels of the outline of a class, which is drawn inside of the class, so that neighbours do not cover each other."""
_WIDER: Final = 1.2
"""By how much an outline is wider than that of the next smaller class, where classes overlap and their outlines may coincide."""
_Row: TypeAlias = Literal["both", "truth", "prediction"]
"""What a row of a picture shows: all classes of truth and prediction in two colours, or the classes of one of them in their colours."""
_HALO: Final = (withStroke(linewidth=2, foreground="black"),)
"""Black around a text, so that it can be read on every picture."""
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
    prediction: npt.NDArray[np.integer] | None
    """None if there is only the truth to show."""
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


def write_overlays(
    folder: Path, items: Iterable[OverlayItem | VolumeOverlay], classes: Sequence[str] = ()
) -> list[Path]:
    """Write `worst.png`, `median.png` and `best.png` by Dice, and return the paths of the pictures that were written.

    For an even number of cases the lower median is taken. Cases without a Dice are left out. No case is shown twice, so fewer than three
    cases give fewer pictures. Pictures of an earlier evaluation are removed.

    Args:
        folder: folder of the pictures, which is made if it does not exist.
        items: the cases.
        classes: names of the classes 1..C, for the legend; without names, all classes have the same colour.

    Raises:
        StoreError: a picture could not be written.
    """
    ranked = sorted((item for item in items if item.dice is not None), key=lambda item: item.dice or 0.0)
    folder.mkdir(parents=True, exist_ok=True)
    for rank in RANKS:
        (folder / f"{rank}.png").unlink(missing_ok=True)
    paths = {folder / f"{rank}.png": ranked[position] for position, rank in _positions(len(ranked)).items()}
    for path, item in paths.items():
        write_bytes(path, draw_overlay(item, classes))
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
    classes: tuple[str, ...]
    """Names of the classes, each in its own colour; empty if truth and prediction are in one picture with one colour each."""
    png: bytes


def read_overlays(folder: Path) -> list[StoredOverlay]:
    """The pictures in a folder, the worst first; an empty list if the folder does not exist.

    Raises:
        StoreError: a file there is not a picture of this kind.
    """
    found = []
    for rank in RANKS:
        path = folder / f"{rank}.png"
        if path.is_file():
            data = path.read_bytes()
            texts = _texts(data, path)
            classes = tuple(_names(texts.get(_CLASSES_KEY, "[]"), path))
            found.append(StoredOverlay(rank, texts.get(_DICE_KEY, MISSING), texts.get(_PLACE_KEY, ""), classes, data))
    return found


def draw_overlay(item: OverlayItem | VolumeOverlay, classes: Sequence[str] = ()) -> bytes:
    """The picture as PNG, with the outlines of all classes. The longer side of a slice has 384 pixels.

    With the names of several classes, each class has its own colour (`class_styles`), and the prediction is below the truth. Otherwise both
    are in one picture, truth cyan and prediction amber. Without a prediction, there is only the truth, each class in its colour.

    The contrast is stretched to the percentiles 0.5 to 99.5 of all channels together, because fluorescence images are otherwise too dark
    to be seen on a screen.
    """
    slices = item.slices if isinstance(item, VolumeOverlay) else (item,)
    height, width = _drawn_size(item)
    rows = _rows(slices, classes)
    across, down = (number * (length + _GAP) - _GAP for number, length in ((len(slices), width), (len(rows), height)))
    figure = Figure(figsize=(across / 100, down / 100), dpi=100, facecolor="black")
    FigureCanvasAgg(figure)
    limits = np.percentile(np.stack([one.image for one in slices]), (0.5, 99.5))
    for (above, row), (place, one) in product(enumerate(reversed(rows)), enumerate(slices)):
        left, bottom = place * (width + _GAP) / across, above * (height + _GAP) / down
        axes = figure.add_axes((left, bottom, width / across, height / down))
        _draw_slice(axes, one, row, size=(height, width), limits=(float(limits[0]), float(limits[1])))
        if isinstance(item, VolumeOverlay):
            _write_labels(axes, item, item.first + place, size=(height, width))
        if len(rows) > 1 and place == 0:
            axes.text(4, 3, row, color="white", fontsize=9, va="top", path_effects=_HALO)
    texts = {_DICE_KEY: format_value(item.dice), "Software": None}
    if len(rows) > 1:
        texts[_CLASSES_KEY] = json.dumps(list(classes))
    if isinstance(item, VolumeOverlay):
        texts[_PLACE_KEY] = item.place
    target = BytesIO()
    figure.savefig(target, format="png", metadata=texts, facecolor="black")
    return target.getvalue()


def _rows(slices: Sequence[OverlayItem], classes: Sequence[str]) -> tuple[_Row, ...]:
    """The rows of a picture, the upper one first."""
    if any(one.prediction is None for one in slices):
        return ("truth",)
    return ("truth", "prediction") if len(classes) > 1 else ("both",)


def _drawn_size(item: OverlayItem | VolumeOverlay) -> tuple[int, int]:
    """Height and width of one slice in pixels of the picture; the aspect ratio of the pixels of a volume follows their spacing."""
    one = item.slices[0] if isinstance(item, VolumeOverlay) else item
    lengths = [float(length) for length in one.truth.shape]
    if isinstance(item, VolumeOverlay) and item.spacing_mm is not None:
        lengths = [length * spacing for length, spacing in zip(lengths, item.spacing_mm[1:], strict=True)]
    height, width = (max(1, round(length * _SIDE / max(lengths))) for length in lengths)
    return height, width


def _draw_slice(
    axes: Axes, item: OverlayItem, row: _Row, *, size: tuple[int, int], limits: tuple[float, float]
) -> None:
    """Draw one picture [H, W, 3] with the outlines of a row; the values of `limits` are shown as black and white."""
    (height, width), (low, high) = size, limits
    stretched = np.clip((item.image - low) / max(high - low, 1e-6), 0, 1)
    picture = Image.fromarray((255 * stretched).astype(np.uint8)).resize((width, height), Image.Resampling.LANCZOS)
    axes.set_axis_off()
    axes.imshow(np.asarray(picture), extent=(0, width, height, 0), interpolation="nearest", aspect="auto")
    for outline in _outlines(item, row):
        _draw_outline(axes, outline, size=size)
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)


def _write_labels(axes: Axes, item: VolumeOverlay, index: int, *, size: tuple[int, int]) -> None:
    """Write the number of a slice (bold for the slice with the largest error), and the directions of the body at the edges."""
    height, width = size
    weight = "bold" if index == item.shown else "normal"
    axes.text(
        4, height - 4, f"slice {index + 1}", color="white", fontsize=9, weight=weight, va="bottom", path_effects=_HALO
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
        axes.text(x, y, letter, color="white", fontsize=11, weight="bold", ha=across, va=along, path_effects=_HALO)


@dataclass(frozen=True)
class _Outline:
    """The outline of a class in a picture."""

    mask: npt.NDArray[np.bool_]
    color: str
    dashes: tuple[float, ...]
    """Lengths of strokes and gaps in line widths; empty for a solid line."""
    width: float
    inside: bool = False
    """Whether it is drawn inside of the mask, and not along its border."""


def _outlines(item: OverlayItem, row: _Row) -> Iterator[_Outline]:
    """The outlines of a row, in the order in which they are drawn."""
    if row == "both":
        for labels, color, width in ((item.truth, TRUTH, 2.2), (item.prediction, PREDICTION, 1.6)):
            for _, mask in _class_masks(labels, overlap=item.overlap):
                yield _Outline(mask, color, (), width)
        return
    masks = _class_masks(item.truth if row == "truth" else item.prediction, overlap=item.overlap)
    masks.sort(key=lambda found: -np.count_nonzero(found[1]))
    for smaller, (number, mask) in zip(reversed(range(len(masks))), masks, strict=True):
        width = _INSIDE + (_WIDER * smaller if item.overlap else 0.0)
        yield _Outline(mask, *color_and_dashes(number), width, inside=True)


def _class_masks(labels: npt.NDArray[np.integer] | None, *, overlap: bool) -> list[tuple[int, npt.NDArray[np.bool_]]]:
    """Number and mask of each class in labels [H, W], without pixels that are to be ignored; empty without labels."""
    if labels is None:
        return []
    numbers = range(1, MAX_OVERLAPPING + 1) if overlap else [int(n) for n in np.unique(labels) if n not in (0, IGNORED)]
    masks = ((number, class_pixels(labels, number, overlap=overlap)) for number in numbers)
    return [(number, mask) for number, mask in masks if mask.any()]


def _draw_outline(axes: Axes, outline: _Outline, *, size: tuple[int, int]) -> None:
    """Draw an outline over a picture of `size`; where the mask touches the picture's edge, the outline is closed there."""
    mask = outline.mask
    # The outer half of a line inside of the mask is cut off.
    width = 2 * outline.width if outline.inside else outline.width
    scale = size[0] / mask.shape[0], size[1] / mask.shape[1]
    padded = np.pad(mask, 1)
    y, x = (np.clip((np.arange(n + 2) - 0.5) * k, 1, n * k - 1) for n, k in zip(mask.shape, scale, strict=True))
    halo: list[AbstractPathEffect] = [withStroke(linewidth=width + 1.0, foreground="#00000066")]
    drawn = axes.contour(x, y, padded.astype(float), levels=[0.5], colors=outline.color, linewidths=width)
    drawn.set_path_effects(halo)
    if outline.dashes:
        drawn.set_linestyle((0, outline.dashes))
    if outline.inside:
        drawn.set_clip_path(TransformedPath(drawn.get_paths()[0], axes.transData))


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


def _names(text: str, path: Path) -> list[str]:
    """The names of classes in a text entry of a picture.

    Raises:
        StoreError: the entry is not a list of names.
    """
    try:
        names = json.loads(text)
    except ValueError:
        names = None
    if not isinstance(names, list):
        raise StoreError(f"overlays/{path.name} has no list of its classes. Make it again with `pfedsam evaluate`.")
    return [str(name) for name in names]
