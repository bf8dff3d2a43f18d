"""Generated scenes: what they promise about pixels, objects and repeatability."""

import numpy as np
from scipy.ndimage import label

from pretraining.dead_leaves import _add_bodies, _Kind, _round_field, _scatter, _walls, scene


def test_a_scene_is_a_function_of_its_generator() -> None:
    first, again = (scene(64, np.random.default_rng(3)) for _ in range(2))
    other = scene(64, np.random.default_rng(4))
    assert np.array_equal(first.pixels, again.pixels)
    assert np.array_equal(first.instances, again.instances)
    assert not np.array_equal(first.pixels, other.pixels)


def test_pixels_are_between_0_and_1_and_most_scenes_hold_objects_and_ground() -> None:
    scenes = [scene(64, np.random.default_rng(seed)) for seed in range(40)]
    assert all(s.pixels.shape == (64, 64, 3) and s.pixels.dtype == np.float32 for s in scenes)
    assert min(s.pixels.min() for s in scenes) >= 0
    assert max(s.pixels.max() for s in scenes) <= 1
    both = [0 < (s.instances > 0).mean() < 1 for s in scenes]
    assert sum(both) >= 36


def test_a_body_lies_around_its_object_and_between_ground_and_figure() -> None:
    instances = np.zeros((64, 64), dtype=np.int32)
    instances[28:36, 28:36] = 1
    contrast = np.array([1.0, 1.0, 1.0])
    changed = [
        _add_bodies(np.zeros((64, 64, 3)), instances, contrast, np.random.default_rng(seed)) for seed in range(20)
    ]
    areas = [(c.mean(axis=-1) != 0).sum() for c in changed]
    assert min(areas) > 64  # larger than the 8 x 8 object
    middle = np.mean([c[c.mean(axis=-1) != 0].mean() for c in changed])
    assert 0.2 < middle < 0.7  # 0.45 expected: the middle of 0.15 .. 0.75 of the contrast


def test_walls_divide_the_image_into_cells() -> None:
    walls, _ = _scatter(128, _Kind(_walls, 16.0, 1), np.random.default_rng(0))
    assert set(np.unique(walls)) == {0, 1}
    cells, count = label(walls == 0)
    # (128 / 32) ** 2 = 16 points, some of them outside of the image; a wall is thin, so most of the image lies in a cell.
    assert 4 <= count <= 30
    assert 0.5 < (cells > 0).mean() < 0.95


def test_outside_of_a_round_field_there_is_dark_ground() -> None:
    for seed in range(10):
        pixels, instances = _round_field(
            np.ones((64, 64, 3)), np.ones((64, 64), dtype=np.int32), np.random.default_rng(seed)
        )
        inside = instances > 0
        assert inside[32, 32]
        corners = inside[[0, 0, -1, -1], [0, -1, 0, -1]]
        assert not corners.all()  # the farthest is at least 0.7 sides from the middle, and the radius at most 0.6
        assert (pixels[inside] == 1).all()
        assert pixels[~inside].max(initial=0) <= 0.08
