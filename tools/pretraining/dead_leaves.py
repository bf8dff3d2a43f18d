"""Generated scenes for pretraining: occluding shapes on textured ground, after the dead leaves model (Matheron, 1968; Lee et al., 2001).

Every scene has one *kind* of object (blobs, ellipses, rings, polygons, branching tubes or the walls between cells, of similar size,
colour and texture); all objects of that kind are the foreground of the prompt-free task, each single one is the target of a box or a
point. Some scenes also hold fainter clutter, or a larger body around each object (as the cytoplasm around a nucleus), which are ground,
and some have a round field of view, as a microscope or a fundus camera has.
Nothing here comes from a real image.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter
from scipy.spatial import KDTree

Array = npt.NDArray[Any]
Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Scene:
    """A generated image and what is in it."""

    pixels: Array
    """`[S, S, 3]` float32 in 0..1."""
    instances: Array
    """`[S, S]` int32, 0 = ground, 1.. = objects of the foreground kind; a hidden part belongs to the object in front."""


@dataclass(frozen=True)
class _Kind:
    """What the objects of one kind have in common."""

    draw: Callable[[ImageDraw.ImageDraw, np.random.Generator, float, float, float, int], None]
    radius: float
    count: int


def scene(side: int, rng: np.random.Generator) -> Scene:
    """One random scene of `side` x `side` pixels."""
    kind = _random_kind(side, rng)
    instances, shade = _scatter(side, kind, rng)
    ground, figure = _two_colours(rng)
    pixels = ground + _texture(side, rng, strength=rng.uniform(0.0, 0.12))
    if rng.random() < 0.45:
        pixels = _add_clutter(pixels, side, figure - ground, rng)
    if kind.draw is not _tube and rng.random() < 0.4:
        pixels = _add_bodies(pixels, instances, figure - ground, rng)
    surface = figure + _texture(side, rng, strength=rng.uniform(0.0, 0.12))
    surface = surface + _per_object(instances, rng, strength=rng.uniform(0.0, 0.08)) + shade[..., None]
    surface = surface + _rim(instances, rng)[..., None] * (figure - ground)
    opacity = rng.uniform(0.75, 1.0)
    inside = (instances > 0)[..., None]
    pixels = np.where(inside, opacity * surface + (1 - opacity) * pixels, pixels)
    if rng.random() < 0.1:
        pixels, instances = _round_field(pixels, instances, rng)
    return Scene(_photograph(pixels, rng), instances)


def _random_kind(side: int, rng: np.random.Generator) -> _Kind:
    """A kind of object; small ones come in crowds, large ones alone."""
    radius = float(np.exp(rng.uniform(np.log(0.012), np.log(0.22)))) * side
    room = 0.6 * side * side / (np.pi * radius * radius)
    count = int(np.clip(rng.uniform(0.05, 0.7) * room, 1, 140))
    draw = _SHAPES[rng.choice(len(_SHAPES), p=_SHARES)]
    if draw is _tube:
        radius, count = float(np.exp(rng.uniform(np.log(0.002), np.log(0.02)))) * side, int(rng.integers(2, 12))
    if draw is _walls:
        radius, count = rng.uniform(0.03, 0.15) * side, 1
    return _Kind(draw, radius, count)


def _scatter(side: int, kind: _Kind, rng: np.random.Generator) -> tuple[Array, Array]:
    """Place the objects of a kind: instance map `[S, S]` int32 and a shading `[S, S]` (brighter or darker to the middle)."""
    canvas = Image.new("I", (side, side), 0)
    pen = ImageDraw.Draw(canvas)
    centres = np.zeros((kind.count + 1, 3))
    spread = rng.uniform(0.05, 0.5)
    for number in range(1, kind.count + 1):
        x, y = rng.uniform(0, side, size=2)
        radius = kind.radius * float(np.exp(rng.normal(0, spread)))
        kind.draw(pen, rng, x, y, radius, number)
        centres[number] = x, y, max(radius, 1.0)
    instances = np.asarray(canvas, dtype=np.int32)
    across, down = np.meshgrid(np.arange(side), np.arange(side))
    x, y, radius = np.moveaxis(centres[instances], -1, 0)
    distance = ((across - x) ** 2 + (down - y) ** 2) / np.maximum(radius, 1.0) ** 2
    return instances, rng.uniform(-0.12, 0.12) * np.clip(1 - distance, -0.5, 1.0)


def _outline(rng: np.random.Generator, x: float, y: float, radius: float, *, corners: int, wobble: float) -> Points:
    """A closed outline: an ellipse of random stretch and turn whose radius wobbles with low frequencies."""
    angle = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    distance = np.ones(corners)
    for order in range(2, 6):
        distance += wobble / order * rng.normal() * np.cos(order * angle + rng.uniform(0, 2 * np.pi))
    stretch, turn = np.exp(rng.normal(0, 0.25)), rng.uniform(0, np.pi)
    a, b = radius * stretch * distance * np.cos(angle), radius / stretch * distance * np.sin(angle)
    return list(zip(x + a * np.cos(turn) - b * np.sin(turn), y + a * np.sin(turn) + b * np.cos(turn), strict=True))


def _blob(pen: ImageDraw.ImageDraw, rng: np.random.Generator, x: float, y: float, radius: float, number: int) -> None:
    """A smooth irregular blob."""
    pen.polygon(_outline(rng, x, y, radius, corners=40, wobble=0.35), fill=number)


def _ellipse(
    pen: ImageDraw.ImageDraw, rng: np.random.Generator, x: float, y: float, radius: float, number: int
) -> None:
    """A plain ellipse."""
    pen.polygon(_outline(rng, x, y, radius, corners=40, wobble=0.0), fill=number)


def _polygon(
    pen: ImageDraw.ImageDraw, rng: np.random.Generator, x: float, y: float, radius: float, number: int
) -> None:
    """An angular shape of 3 to 7 corners."""
    pen.polygon(_outline(rng, x, y, radius, corners=int(rng.integers(3, 8)), wobble=0.2), fill=number)


def _ring(pen: ImageDraw.ImageDraw, rng: np.random.Generator, x: float, y: float, radius: float, number: int) -> None:
    """A closed band; its inside stays what it was."""
    outline = _outline(rng, x, y, radius, corners=48, wobble=0.15)
    pen.line([*outline, *outline[:2]], fill=number, width=max(2, int(radius * rng.uniform(0.08, 0.5))), joint="curve")


def _tube(pen: ImageDraw.ImageDraw, rng: np.random.Generator, x: float, y: float, radius: float, number: int) -> None:
    """A winding tube with branches, thinner from branch to branch, as a vessel."""
    branches = [(x, y, rng.uniform(0, 2 * np.pi), radius)]
    for _ in range(int(rng.integers(2, 7))):
        x, y, heading, thickness = branches[int(rng.integers(len(branches)))]
        path: Points = [(x, y)]
        for _ in range(int(rng.integers(8, 24))):
            heading += rng.normal(0, 0.22)
            x, y = x + 8 * np.cos(heading), y + 8 * np.sin(heading)
            path.append((x, y))
            if rng.random() < 0.12:
                branches.append((x, y, heading + rng.choice([-1, 1]) * rng.uniform(0.4, 1.1), thickness * 0.75))
        pen.line(path, fill=number, width=max(1, round(2 * thickness)), joint="curve")


def _walls(pen: ImageDraw.ImageDraw, rng: np.random.Generator, x: float, y: float, radius: float, number: int) -> None:
    """The walls between cells of about this radius all over the image, as membranes in a tissue: one object."""
    side = pen.im.size[0]
    cells = rng.uniform(-radius, side + radius, size=(max(3, int((side / (2 * radius)) ** 2)), 2))
    places = np.stack(np.meshgrid(np.arange(side), np.arange(side)), axis=-1) + np.array([x, y]) % 1
    nearest = KDTree(cells).query(places.reshape(-1, 2), k=2)[0].reshape(side, side, 2)
    wall = nearest[..., 1] - nearest[..., 0] < 2 * rng.uniform(0.004, 0.015) * side
    pen.bitmap((0, 0), Image.fromarray(wall), fill=number)


_SHAPES = (_blob, _ellipse, _polygon, _ring, _tube, _walls)
_SHARES = (0.32, 0.18, 0.08, 0.14, 0.21, 0.07)


def _two_colours(rng: np.random.Generator) -> tuple[Array, Array]:
    """Ground and figure colours `[3]`, grey or not, at a contrast between faint and strong, either one the brighter."""
    ground = rng.uniform(0.02, 0.98, size=3)
    if rng.random() < 0.5:
        ground[:] = ground[0]
    direction = rng.normal(size=3) + rng.choice([-1.0, 1.0]) * rng.uniform(0.3, 2.0)
    if rng.random() < 0.5:
        direction[:] = direction.mean()
    direction *= rng.uniform(0.08, 0.7) / (np.abs(direction).max() + 1e-6)
    if ((ground + direction < 0) | (ground + direction > 1)).mean() > 0.5:
        direction = -direction
    return ground, np.clip(ground + direction, 0, 1)


def _texture(side: int, rng: np.random.Generator, *, strength: float) -> Array:
    """Smooth random texture `[S, S, 3]` of zero mean: noise at two scales, grey or coloured."""
    total = np.zeros((side, side, 3))
    for cells in (int(rng.integers(2, 9)), int(rng.integers(12, 80))):
        channels = 3 if rng.random() < 0.3 else 1
        coarse = rng.normal(size=(cells, cells, channels)).astype(np.float32)
        layers = [
            np.asarray(Image.fromarray(coarse[..., i]).resize((side, side), Image.Resampling.BICUBIC))
            for i in range(channels)
        ]
        total += np.stack(layers, axis=-1)
    return strength * 0.5 * total


def _per_object(instances: Array, rng: np.random.Generator, *, strength: float) -> Array:
    """A colour offset for each object, `[S, S, 3]`."""
    offsets = rng.normal(0, strength, size=(int(instances.max()) + 1, 3)) * (1 if rng.random() < 0.4 else 0)
    offsets += rng.normal(0, strength, size=(offsets.shape[0], 1))
    return offsets[instances]


def _rim(instances: Array, rng: np.random.Generator) -> Array:
    """A brighter or darker rim along the borders of objects, `[S, S]`, in units of the contrast; often none."""
    if rng.random() < 0.5:
        return np.zeros(instances.shape)
    border = np.zeros(instances.shape, dtype=np.uint8)
    border[:-1] |= instances[:-1] != instances[1:]
    border[:, :-1] |= instances[:, :-1] != instances[:, 1:]
    soft = Image.fromarray(border * 255).filter(ImageFilter.GaussianBlur(rng.uniform(0.5, 2.0)))
    return rng.uniform(-0.8, 0.8) * np.asarray(soft) / 255


def _add_clutter(pixels: Array, side: int, contrast: Array, rng: np.random.Generator) -> Array:
    """Objects of another kind at a fraction of the foreground's contrast and mostly of another size: still ground."""
    other, _ = _scatter(side, _random_kind(side, rng), rng)
    colour = rng.uniform(-0.4, 0.4) * contrast + rng.normal(0, 0.04, size=3)
    return np.where((other > 0)[..., None], pixels + colour + _per_object(other, rng, strength=0.03), pixels)


def _add_bodies(pixels: Array, instances: Array, contrast: Array, rng: np.random.Generator) -> Array:
    """A larger body around each object, between ground and figure in colour: still ground, so a mask has to stop at the object."""
    side = instances.shape[0]
    canvas = Image.new("I", (side, side), 0)
    pen = ImageDraw.Draw(canvas)
    areas = np.bincount(instances.ravel())
    reach, drift = rng.uniform(1.4, 4.5), rng.uniform(0, 0.6)
    for number in np.flatnonzero(areas):
        if number:
            rows, columns = np.nonzero(instances == number)
            radius = float(np.sqrt(areas[number] / np.pi)) * max(1.15, reach * float(np.exp(rng.normal(0, 0.2))))
            x, y = np.array([columns.mean(), rows.mean()]) + drift * radius * rng.uniform(-1, 1, size=2)
            pen.polygon(_outline(rng, x, y, radius, corners=24, wobble=0.4), fill=int(number))
    bodies = np.asarray(canvas, dtype=np.int32)
    colour = rng.uniform(0.15, 0.75) * contrast + rng.normal(0, 0.03, size=3)
    colour = colour + _texture(side, rng, strength=rng.uniform(0.0, 0.12)) + _per_object(bodies, rng, strength=0.06)
    return np.where((bodies > 0)[..., None], pixels + colour, pixels)


def _round_field(pixels: Array, instances: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """Pixels and objects inside a circle; outside it is dark ground."""
    side = instances.shape[0]
    across, down = np.meshgrid(np.arange(side), np.arange(side))
    x, y = rng.uniform(0.4, 0.6, size=2) * side
    outside = (across - x) ** 2 + (down - y) ** 2 > (rng.uniform(0.4, 0.6) * side) ** 2
    return np.where(outside[..., None], rng.uniform(0, 0.08), pixels), np.where(outside, 0, instances)


def _photograph(pixels: Array, rng: np.random.Generator) -> Array:
    """What a camera does: uneven light, blur, gamma, noise; `[S, S, 3]` float32 in 0..1."""
    side = pixels.shape[0]
    ramp = np.linspace(-1, 1, side)
    light = 1 + rng.uniform(-0.25, 0.25) * ramp[:, None] + rng.uniform(-0.25, 0.25) * ramp[None, :]
    image = Image.fromarray((np.clip(pixels * light[..., None], 0, 1) * 255).astype(np.uint8))
    if rng.random() < 0.7:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.8)))
    seen = np.asarray(image, dtype=np.float32) / 255
    seen = seen ** np.float32(np.exp(rng.uniform(-0.5, 0.5)))
    grain = rng.normal(0, rng.uniform(0, 0.06), size=(side, side, 3 if rng.random() < 0.5 else 1))
    return np.clip(seen + grain, 0, 1).astype(np.float32)
