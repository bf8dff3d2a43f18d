from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from pfedsam.core.errors import DataError
from pfedsam.data.images import ImageOptions
from pfedsam.data.labels import LabelMap
from pfedsam.data.loader import view_of
from pfedsam.data.manifest import read_site
from pfedsam.data.split import SplitOptions, split_site
from pfedsam.data.tiling import TilingOptions, load_pictures, load_tiles, tile_starts
from pfedsam.data.transforms import AugmentOptions, Frame

LABELS = LabelMap({"nucleus": [1]})


def tiles(cases, side=16, **tiling):
    options = TilingOptions(**{"side": 16, **tiling})
    return load_tiles(cases, labels={"north": LABELS}, image=ImageOptions(), side=side, tiling=options)


@pytest.fixture
def site(tmp_path):
    """Two cases of 40 x 24 pixels (H x W) whose grey value is the column, and whose mask is the left half."""
    folder = tmp_path / "north"
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    columns = np.tile(np.arange(24, dtype=np.uint8) * 10, (40, 1))
    for case in ("p_1", "p_2"):
        Image.fromarray(columns).save(folder / "images" / f"{case}.png")
        Image.fromarray((columns < 120).astype(np.uint8)).save(folder / "masks" / f"{case}.png")
    return read_site("north", folder, patient_pattern="^(.)_")


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("length", [1, 16, 17, 31, 100, 384])
def test_every_pixel_is_covered_and_neighbours_overlap_enough(length, overlap):
    starts = tile_starts(length, 16, overlap)
    covered = {pixel for start in starts for pixel in range(start, start + 16)}
    assert covered >= set(range(length))
    assert starts[0] == 0
    assert starts[-1] + 16 == max(length, 16)
    # Rounding to whole pixels may cost one.
    assert all(b - a <= 16 * (1 - overlap) + 1 for a, b in pairwise(starts))


def test_starts_by_hand():
    assert tile_starts(384, 128, 0.0) == [0, 128, 256]
    assert tile_starts(384, 128, 0.25) == [0, 85, 171, 256]  # strides of 96 at most: three of them, evenly
    assert tile_starts(361, 128, 0.0) == [0, 116, 233]  # 116.5 rounds to the even 116


def test_tiles_are_parts_of_the_picture_at_native_scale(site):
    found = tiles(site.cases[:1])
    assert [one.tile for one in found] == list(range(6))  # 3 rows, 2 columns
    first, second = found[:2]
    assert first.frame == Frame((16, 16), (16, 16), 16)
    assert torch.allclose(first.pixels[0, 5], torch.arange(16) / 25.5)
    assert torch.allclose(second.pixels[0, 5], torch.arange(8, 24) / 25.5)
    assert second.labels[3].tolist() == [1] * 4 + [0] * 12
    assert tiles(site.cases[:1], side=32)[0].pixels.shape == (3, 32, 32)


def test_small_pictures_are_padded_below_and_right(site):
    options = TilingOptions(side=64)
    (only,) = load_tiles(site.cases[:1], labels={"north": LABELS}, image=ImageOptions(), side=64, tiling=options)
    assert only.pixels.shape == (3, 64, 64)
    assert only.pixels[:, :40, 1:24].min() > 0
    assert not only.pixels[:, 40:].any()
    assert not only.pixels[:, :, 24:].any()
    assert not only.labels[40:].any()


def test_the_padding_of_a_small_picture_is_not_augmented(site):
    """40 x 24 pixels (H x W) in a tile of 64, at half the scale: 20 x 12 of the 32 x 32 pixels are picture."""
    options = TilingOptions(side=64)
    (only,) = load_tiles(site.cases[:1], labels={"north": LABELS}, image=ImageOptions(), side=32, tiling=options)
    assert only.frame.resized == (20, 12)
    strong = AugmentOptions(flips=False, rotations=False, brightness=0.5, contrast=0.5, noise=0.5)
    for view in range(1, 6):
        pixels, _ = view_of(only, view, seed=0, options=strong)
        assert not torch.equal(pixels[:, :20, :12], only.pixels[:, :20, :12])
        # The antialiased pixels beside the border contain a part of the picture; they stay as they are in prediction.
        assert torch.equal(pixels[:, 20:], only.pixels[:, 20:])
        assert torch.equal(pixels[:, :, 12:], only.pixels[:, :, 12:])
        assert not pixels[:, 21:].any()
        assert not pixels[:, :, 13:].any()


def test_at_most_so_many_tiles_always_the_same(site):
    few = tiles(site.cases[:1], max_tiles=3)
    assert [one.tile for one in few] == [0, 1, 2]
    again = tiles(site.cases[:1], max_tiles=3)
    assert all(torch.equal(a.pixels, b.pixels) for a, b in zip(few, again, strict=True))


def test_a_patients_tiles_stay_on_one_side(site):
    parts = split_site(site, SplitOptions(), 0)
    sides = {one.case.patient: one.case.split for one in tiles(parts.cases)}
    assert all(one.case.split == sides[one.case.patient] for one in tiles(parts.cases))


def test_each_tile_has_its_own_views(site):
    first, second = (replace(one, pixels=torch.full((3, 16, 16), 0.5)) for one in tiles(site.cases[:1])[:2])
    options = AugmentOptions(noise=0.1)
    a, b = (view_of(one, 1, seed=0, options=options)[0] for one in (first, second))
    assert not torch.equal(a, b)
    assert torch.equal(a, view_of(first, 1, seed=0, options=options)[0])


def test_a_mask_of_another_size_is_refused(site):
    Image.fromarray(np.zeros((5, 6), np.uint8)).save(site.cases[0].mask)
    with pytest.raises(DataError, match="case 'p_1': the image has 24 x 40 pixels, its mask 6 x 5"):
        tiles(site.cases)


def test_pictures_keep_their_size(site):
    (picture, _) = load_pictures([replace(case, mask=None) for case in site.cases], image=ImageOptions(), side=16)
    assert picture.pixels.shape == (3, 40, 24)
    assert picture.frame.native == (40, 24)
    assert picture.labels is None
