"""Generated sites for tests and the demonstration: an organ with a lesion inside, imaged by different scanners.

Every image shows a body with an organ (class 1) and mostly a lesion in it (class 2), and also distractors: bodies with the opposite
contrast to the organ, and spots inside the organ with the opposite contrast to the lesion. Sites differ in texture, blur, noise,
resolution, aspect ratio and shapes, and in one of two further ways (`SyntheticOptions.shift`):

* `contrasts`: four kinds of site have the four combinations of contrasts of organ and lesion, one of them by inverting the whole image. A
  model that fits one site is then wrong at another, and an averaged model has to recognise the site. Colours differ too.
* `scanners`: organ and lesion have the same contrasts everywhere, as one organ in one modality has. Sites differ in gain, contrast, field
  of view, noise and blur, and the fourth one inverts its images.

The same options and seed write the same bytes. Nothing here comes from a real image.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydantic import Field
from scipy.ndimage import gaussian_filter

from pfedsam.core import rng
from pfedsam.core.errors import DataError
from pfedsam.core.options import Options
from pfedsam.data.manifest import Site, read_site

LABELS: Final = {"organ": (1,), "lesion": (2,)}
"""The label map of the masks."""
PATIENT_PATTERN: Final = r"^(p\d+)"
"""The patient in the case ids `p0007_2`."""

_Array: TypeAlias = npt.NDArray[np.float64]
_Mask: TypeAlias = npt.NDArray[np.bool_]

# Per kind of site: contrast of the organ, of the lesion, whether the image is inverted, (height, width) in sides.
_KINDS: Final = (
    (+1, -1, False, (1.0, 1.0)),
    (+1, -1, True, (1.0, 4 / 3)),
    (+1, +1, False, (7 / 6, 7 / 6)),
    (-1, -1, False, (4 / 3, 7 / 6)),
)
_TINTS: Final = (  # dark and bright end of the scale; None is grey
    None,
    None,
    ((0.30, 0.10, 0.42), (0.98, 0.86, 0.93)),
    ((0.16, 0.05, 0.03), (1.00, 0.66, 0.38)),
)
_ORGAN_STEP, _LESION_STEP = 0.28, 0.22
_NO_LESION = 0.08  # share of patients without a lesion
_INVERTED_SITE = 3  # of sites that differ as scanners do


class SyntheticOptions(Options):
    """Number, size and differences of the generated sites."""

    sites: int = Field(default=4, ge=1, le=50, description="Sites; the first four differ most.")
    cases: int = Field(default=30, ge=1, le=9999, description="Images a site.")
    cases_per_patient: int = Field(default=1, ge=1, description="Images of one patient.")
    shift: Literal["contrasts", "scanners"] = Field(
        default="contrasts",
        description="How sites differ: in the contrasts of organ and lesion, or as scanners do (gain, contrast, view, noise, blur).",
    )
    side: int = Field(default=96, ge=32, le=1024, description="Smallest side in pixels; sites go up to 4/3 of it.")


@dataclass(frozen=True)
class _Style:
    """Properties of the images of a site: those of its scanner and the typical ones of its patients."""

    size: tuple[int, int]
    organ_step: float
    lesion_step: float
    inverted: bool
    tint: tuple[tuple[float, ...], tuple[float, ...]] | None
    ground: float
    texture: float
    grain: float
    blur: float
    noise: float
    speckle: float
    organ_size: float
    elongation: float
    bend: float
    waves: float
    lesion_size: float
    lesion_depth: float


@dataclass(frozen=True)
class _Blob:
    """A closed smooth outline: an ellipse, bent and with waves."""

    y: float
    x: float
    radius: float
    elongation: float
    angle: float
    bend: float
    waves: tuple[float, ...]
    phases: tuple[float, ...]

    def covers(self, y: _Array, x: _Array) -> _Mask:
        """Whether each of the points (y, x) is inside."""
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        along = ((y - self.y) * sin + (x - self.x) * cos) / (self.radius * self.elongation)
        across = (-(y - self.y) * cos + (x - self.x) * sin) / (self.radius / self.elongation)
        across = across - self.bend * (along**2 - 0.4)
        turn = np.arctan2(across, along)
        pairs = enumerate(zip(self.waves, self.phases, strict=True), start=2)
        outline = 1 + sum(size * np.cos(number * turn + phase) for number, (size, phase) in pairs)
        inside: _Mask = np.hypot(along, across) < outline
        return inside


def write_sites(folder: str | Path, options: SyntheticOptions, seed: int) -> tuple[Site, ...]:
    """Write `site_1`, `site_2`, ... into the folder, each with `images/` and `masks/`, and read them back.

    Raises:
        DataError: one of these folders exists already.
    """
    sites = []
    for index in range(options.sites):
        name = f"site_{index + 1}"
        target = Path(folder) / name
        if target.exists():
            raise DataError(f"site {name!r}: its folder exists already; remove it, or choose another folder")
        (target / "images").mkdir(parents=True)
        (target / "masks").mkdir()
        style = _STYLES[options.shift](index, options.side, seed)
        for number in range(options.cases):
            patient, picture = divmod(number, options.cases_per_patient)
            image, mask = _case(style, seed, name, patient, picture)
            file = f"p{patient + 1:04d}_{picture + 1}.png"
            Image.fromarray(image).save(target / "images" / file)
            Image.fromarray(mask).save(target / "masks" / file)
        sites.append(read_site(name, target, patient_pattern=PATIENT_PATTERN))
    return tuple(sites)


def _style(index: int, side: int, seed: int) -> _Style:
    draw = rng.numpy_generator(seed, "synthetic site", index)
    organ, lesion, inverted, (height, width) = _KINDS[index % len(_KINDS)]
    return _Style(
        size=(round(side * height), round(side * width)),
        organ_step=organ * _ORGAN_STEP * draw.uniform(0.9, 1.2),
        lesion_step=lesion * _LESION_STEP * draw.uniform(0.9, 1.2),
        inverted=inverted,
        tint=_TINTS[index % len(_TINTS)],
        ground=draw.uniform(0.42, 0.52),
        texture=draw.uniform(0.02, 0.06),
        grain=draw.uniform(0.015, 0.06),
        blur=draw.uniform(0.008, 0.022),
        noise=draw.uniform(0.015, 0.05),
        speckle=draw.uniform(0.0, 0.15),
        organ_size=draw.uniform(0.34, 0.48),
        elongation=draw.uniform(1.0, 1.35),
        bend=draw.uniform(0.0, 0.5),
        waves=draw.uniform(0.02, 0.09),
        lesion_size=draw.uniform(0.26, 0.42),
        lesion_depth=draw.uniform(0.1, 0.6),
    )


def _scanner(index: int, side: int, seed: int) -> _Style:
    """The style of a site that differs from the first as another scanner does."""
    draw = rng.numpy_generator(seed, "synthetic scanner", index)
    plain = _style(index, side, seed)
    contrast, view = draw.uniform(0.6, 1.1), draw.uniform(0.8, 1.2)
    return replace(
        plain,
        organ_step=_ORGAN_STEP * contrast,
        lesion_step=-_LESION_STEP * contrast * draw.uniform(0.9, 1.1),
        inverted=index == _INVERTED_SITE,
        tint=None,
        ground=draw.uniform(0.3, 0.55),
        noise=draw.uniform(0.02, 0.09),
        blur=draw.uniform(0.008, 0.03),
        organ_size=0.4 * view,
    )


_STYLES: Final = {"contrasts": _style, "scanners": _scanner}


def _case(
    style: _Style, seed: int, site: str, patient: int, picture: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """An image [H, W] or [H, W, 3] and its mask [H, W]; a patient keeps organ and lesion, not pose and noise."""
    organ, lesion = _anatomy(style, rng.numpy_generator(seed, site, "patient", patient))
    draw = rng.numpy_generator(seed, site, "picture", patient, picture)
    y, x = _grid(style.size)
    shift, turn, scale = draw.normal(0, 0.05, 2), draw.normal(0, 0.12), draw.uniform(0.93, 1.07)
    organ, *inner = _posed([organ, lesion, *_spots(style, organ, draw)], shift, turn, scale)
    organ_mask = organ.covers(y, x)
    lesion_mask, *spot_masks = (blob.covers(y, x) & organ_mask for blob in inner)
    body = _Blob(0, 0, 0.93, draw.uniform(0.98, 1.1), 0, 0, (0.03,), (draw.uniform(0, 6.3),)).covers(y, x)

    value = np.where(body, style.ground, 0.08)
    for blob in _decoys(style, organ, draw):
        value[blob.covers(y, x) & body] = style.ground - style.organ_step * draw.uniform(0.8, 1.1)
    inside = style.ground + style.organ_step
    value[organ_mask] = inside
    for spot in spot_masks:
        value[spot & ~lesion_mask] = inside - style.lesion_step * draw.uniform(0.7, 1.0)
    value[lesion_mask] = inside + style.lesion_step * draw.uniform(0.8, 1.1)

    mask = organ_mask.astype(np.uint8)
    mask[lesion_mask] = 2
    return _seen(value, style, draw), mask


def _anatomy(style: _Style, draw: np.random.Generator) -> tuple[_Blob, _Blob]:
    """Organ and lesion of a patient; a patient without a lesion has one with a radius of almost 0."""
    organ = _blob(draw, draw.normal(0, 0.1), draw.normal(0, 0.1), style.organ_size * draw.uniform(0.85, 1.15), style)
    where, depth = draw.uniform(0, 2 * np.pi), style.lesion_depth * draw.uniform(0.7, 1.3)
    radius = style.lesion_size * organ.radius * draw.uniform(0.65, 1.35)
    along, across = depth * np.cos(where) * organ.elongation, depth * np.sin(where) / organ.elongation
    cos, sin = np.cos(organ.angle), np.sin(organ.angle)
    y = organ.y + organ.radius * (along * sin - across * cos)
    x = organ.x + organ.radius * (along * cos + across * sin)
    lesion = replace(_blob(draw, y, x, radius, style), bend=0.0)
    return organ, lesion if draw.uniform() >= _NO_LESION else replace(lesion, radius=1e-9)


def _blob(draw: np.random.Generator, y: float, x: float, radius: float, style: _Style) -> _Blob:
    return _Blob(
        y=float(y),
        x=float(x),
        radius=float(radius),
        elongation=style.elongation * draw.uniform(0.9, 1.1),
        angle=draw.normal(0.5, 0.4),
        bend=style.bend * draw.uniform(0.6, 1.4),
        waves=tuple(draw.normal(0, style.waves / number) for number in (1, 1.5, 2, 3)),
        phases=tuple(draw.uniform(0, 2 * np.pi, 4)),
    )


def _posed(blobs: Sequence[_Blob], shift: _Array, turn: float, scale: float) -> list[_Blob]:
    """The blobs turned and scaled about the image's middle and shifted, together."""
    cos, sin = np.cos(turn), np.sin(turn)
    return [
        replace(
            blob,
            y=scale * (blob.y * cos + blob.x * sin) + float(shift[0]),
            x=scale * (blob.x * cos - blob.y * sin) + float(shift[1]),
            radius=blob.radius * scale,
            angle=blob.angle - turn,
        )
        for blob in blobs
    ]


def _spots(style: _Style, organ: _Blob, draw: np.random.Generator) -> list[_Blob]:
    """Spots inside the organ that are not lesions, with the opposite contrast."""
    spots = []
    for _ in range(draw.integers(1, 4)):
        aside = draw.normal(0, 0.4 * organ.radius, 2)
        spots.append(
            replace(
                _blob(draw, organ.y + aside[0], organ.x + aside[1], organ.radius * draw.uniform(0.14, 0.3), style),
                bend=0.0,
            )
        )
    return spots


def _decoys(style: _Style, organ: _Blob, draw: np.random.Generator) -> list[_Blob]:
    """Bodies around the organ with the opposite contrast to it; the organ is drawn over them."""
    start = draw.uniform(0, 2 * np.pi)
    decoys = []
    for number in range(draw.integers(2, 5)):
        angle, far = start + 1.7 * number, organ.radius * draw.uniform(1.5, 1.9)
        y, x = organ.y + far * np.sin(angle), organ.x + far * np.cos(angle)
        decoys.append(_blob(draw, y, x, organ.radius * draw.uniform(0.35, 0.7), style))
    return decoys


def _seen(value: _Array, style: _Style, draw: np.random.Generator) -> npt.NDArray[np.uint8]:
    """The 8-bit image of a scene [H, W] as the site's scanner would show it: with texture, uneven light, blur, noise and colour."""
    side = min(style.size)
    y, x = _grid(style.size)
    value = value + style.texture * _field(style.size, style.grain * side, draw)
    light = 1 + 0.12 * (y * draw.uniform(-1, 1) + x * draw.uniform(-1, 1))
    value = gaussian_filter(value * light, style.blur * side)
    value = value * (1 + style.speckle * _field(style.size, 0.006 * side, draw))
    value = np.clip(value + style.noise * draw.standard_normal(style.size), 0, 1)
    value = 1 - value if style.inverted else value
    if style.tint is not None:
        dark, bright = (np.array(end) for end in style.tint)
        value = dark + value[..., None] * (bright - dark)
        value = value + 0.25 * style.noise * draw.standard_normal(value.shape)
    return np.clip(np.rint(255 * value), 0, 255).astype(np.uint8)


def _field(size: tuple[int, int], grain: float, draw: np.random.Generator) -> _Array:
    """Smooth noise of mean 0 and deviation 1 whose grains have about this radius in pixels."""
    field: _Array = gaussian_filter(draw.standard_normal(size), grain, mode="wrap")
    standard: _Array = (field - field.mean()) / field.std()
    return standard


def _grid(size: tuple[int, int]) -> tuple[_Array, _Array]:
    """Pixel centres (y, x); the shorter side goes from -1 to 1."""
    height, width = size
    y, x = (np.arange(length) - (length - 1) / 2 for length in (height, width))
    grids = np.meshgrid(2 * y / min(size), 2 * x / min(size), indexing="ij")
    return grids[0], grids[1]
