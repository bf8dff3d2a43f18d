import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.ndimage import rotate

from pfedsam.core import rng
from pfedsam.data.transforms import (
    FOR_PICTURES,
    FOR_SLICES,
    AugmentOptions,
    Frame,
    Moves,
    apply_view,
    labels_to_frame,
    logits_to_native,
    to_frame,
)

SIDES = st.integers(1, 90)
GEOMETRY = {"brightness": 0, "contrast": 0, "gamma": 0, "noise": 0}


def test_frame_by_hand():
    assert Frame.of((520, 696), 256) == Frame((520, 696), (191, 256), 256)  # 520 * 256 / 696 = 191.26
    assert Frame.of((3, 2), 9).resized == (9, 6)
    assert Frame.of((1, 1000), 64).resized == (1, 64)


def test_pixels_by_hand():
    # Four columns to two, antialiased: each output pixel weighs what lies within two input pixels of it by a triangle.
    image = np.zeros((2, 4, 3), np.float32)
    image[:, 2:] = 1
    pixels, frame = to_frame(image, 2)
    assert frame == Frame((2, 4), (1, 2), 2)
    assert pixels.dtype == torch.float32
    # Output pixel 0 is centred at 1.0 (between columns 0 and 1) with weights 3, 3, 1 on columns 0, 1, 2 out of 7.
    assert pixels[0].tolist() == [pytest.approx([1 / 7, 6 / 7]), [0, 0]]


def test_labels_by_hand():
    classes = np.array([[1, 2], [0, 3], [1, 1]], np.uint8)
    labels = labels_to_frame(classes, 6)
    assert labels.dtype == torch.uint8
    row = [[1, 1, 2, 2, 0, 0], [0, 0, 3, 3, 0, 0], [1, 1, 1, 1, 0, 0]]
    assert labels.tolist() == [row[0], row[0], row[1], row[1], row[2], row[2]]


@given(height=SIDES, width=SIDES, side=st.integers(8, 80))
def test_padding_is_zero_and_the_rest_is_filled(height, width, side):
    pixels, frame = to_frame(np.ones((height, width, 3), np.float32), side)
    labels = labels_to_frame(np.ones((height, width), np.uint8), side)
    expected = torch.zeros(side, side)
    expected[: frame.resized[0], : frame.resized[1]] = 1
    assert pixels.shape == (3, side, side)
    assert torch.allclose(pixels, expected.expand(3, -1, -1))
    assert torch.equal(labels, expected.to(torch.uint8))


@given(height=SIDES, width=SIDES, side=st.integers(16, 80))
@settings(deadline=None)
def test_logits_to_native_inverts_to_frame(height, width, side):
    # Bilinear resizing keeps a plane as it is, except within a pixel of the border, where it is held constant;
    # and the zero padding is cut off before it could leak in.
    y, x = np.meshgrid((np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width, indexing="ij")
    plane = np.stack([y, x, (y + x) / 2], -1).astype(np.float32)
    pixels, frame = to_frame(plane, side)
    back = logits_to_native(pixels, frame)
    assert back.shape == (3, height, width)
    coarse = 1 / min(height, width, *frame.resized)
    assert np.abs(back.permute(1, 2, 0).numpy() - plane).max() <= coarse + 1e-5


@given(height=SIDES, width=SIDES)
@settings(deadline=None)
def test_labels_survive_the_way_there_and_back(height, width):
    assume(min(height, width) > 4)
    rows, columns = np.indices((height, width))
    classes = ((2 * rows >= height) + (2 * columns >= width)).astype(np.uint8)
    labels = labels_to_frame(classes, 128)  # larger than any native picture: nothing may be lost
    one_hot = torch.nn.functional.one_hot(labels.long(), 3).permute(2, 0, 1).float()
    back = logits_to_native(one_hot, Frame.of((height, width), 128)).argmax(0).numpy()
    assert (back == classes).mean() >= 1 - 2 / min(height, width)


def test_coarse_logits_are_those_of_the_whole_frame():
    # 4 x 4 logits of an 8 x 8 frame whose lower half is padding; what the model says there must not be seen.
    logits = torch.full((1, 4, 4), -100.0)
    logits[:, :2] = torch.tensor([1.0, 1.0, 5.0, 5.0])
    back = logits_to_native(logits, Frame.of((2, 4), 8))
    assert back.shape == (1, 2, 4)
    # Upscaled to 8 columns: 1 1 1 2 4 5 5 5; two of them make a native one.
    assert back[0, 0].tolist() == pytest.approx([1, 1.5, 4.5, 5])


def _image(side=12):
    generator = torch.Generator().manual_seed(7)
    labels = torch.randint(0, 3, (side, side), generator=generator, dtype=torch.uint8)
    return torch.stack([labels / 2] * 3), labels


def test_view_0_is_the_image_and_draws_nothing():
    pixels, labels = _image()
    generator = rng.generator(0, "x")
    before = generator.get_state()
    same = apply_view(pixels, labels, view=0, generator=generator, options=AugmentOptions())
    assert torch.equal(same[0], pixels)
    assert torch.equal(same[1], labels)
    assert torch.equal(generator.get_state(), before)


@given(seed=st.integers(0, 500), flips=st.booleans(), rotations=st.booleans())
def test_labels_and_pixels_stay_aligned(seed, flips, rotations):
    pixels, labels = _image()
    options = AugmentOptions(flips=flips, rotations=rotations, **GEOMETRY)
    seen, turned = apply_view(pixels, labels, view=1, generator=rng.generator(seed), options=options)
    assert torch.allclose(seen, torch.stack([turned / 2] * 3), atol=1e-6)
    assert turned.is_contiguous()


@pytest.mark.parametrize(
    ("flips", "rotations", "corners"),
    [
        (False, False, {"abcd"}),
        (True, False, {"abcd", "badc", "cdab", "dcba"}),
        (False, True, {"abcd", "bdac", "dcba", "cadb"}),
        (True, True, {"abcd", "badc", "cdab", "dcba", "bdac", "cadb", "acbd", "dbca"}),
    ],
)
def test_which_symmetries_there_are(flips, rotations, corners):
    labels = torch.tensor([[0, 1], [2, 3]], dtype=torch.uint8)  # a b over c d
    options = AugmentOptions(flips=flips, rotations=rotations)
    seen = set()
    for seed in range(100):
        _, turned = apply_view(torch.zeros(3, 2, 2), labels, view=1, generator=rng.generator(seed), options=options)
        seen.add("".join("abcd"[value] for value in turned.flatten().tolist()))
    assert seen == corners


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, Moves(flips=False, rotations=False, angle=15.0, zoom=0.15)),
        ({"flips": True, "zoom": 0.0}, Moves(flips=True, rotations=False, angle=15.0, zoom=0.0)),
    ],
)
def test_what_an_option_leaves_open_is_as_usual(options, expected):
    assert Moves.of(AugmentOptions(**options), FOR_SLICES) == expected
    assert Moves.of(AugmentOptions(flips=False), FOR_PICTURES) == Moves(
        flips=False, rotations=True, angle=0.0, zoom=0.0
    )


def test_a_slice_is_neither_mirrored_nor_turned_by_a_right_angle():
    labels = torch.zeros(64, 64, dtype=torch.uint8)
    labels[28:36, 8:16] = 1  # left of the middle, as a heart's right ventricle is of its left one
    for seed in range(50):
        _, moved = apply_view(
            torch.zeros(3, 64, 64),
            labels,
            view=1,
            generator=rng.generator(seed),
            options=AugmentOptions(),
            usual=FOR_SLICES,
        )
        rows, columns = np.nonzero(moved.numpy())
        # 20 pixels from the centre: turned by at most 15 degrees and enlarged by at most exp(0.15)
        assert abs(rows.mean() - 31.5) <= 20 * math.exp(0.15) * math.sin(math.radians(15)) + 1
        assert 20 * math.exp(-0.15) * math.cos(math.radians(15)) - 1 <= 31.5 - columns.mean()


@given(seed=st.integers(0, 500))
def test_same_generator_same_view_within_0_to_1_and_grey_stays_grey(seed):
    pixels, labels = _image()
    original = pixels.clone()
    first, again = (
        apply_view(pixels, labels, view=1, generator=rng.generator(seed), options=AugmentOptions(noise=0.5))
        for _ in range(2)
    )
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert 0 <= first[0].min() <= first[0].max() <= 1
    # Not equal to the bit: the end of a row may go through another instruction, which rounds a power differently.
    assert torch.allclose(first[0][0], first[0][2], rtol=0, atol=1e-6)
    assert torch.equal(pixels, original)


@pytest.mark.parametrize("option", ["brightness", "contrast", "gamma", "noise"])
def test_each_intensity_change_alone(option):
    pixels, labels = _image()
    pixels = pixels * 0.4 + 0.3
    view = {"view": 1, "generator": rng.generator(4)}
    changed, _ = apply_view(
        pixels, labels, **view, options=AugmentOptions(**{**GEOMETRY, option: 0.05}, flips=False, rotations=False)
    )
    assert 0 < (changed - pixels).abs().max() < 0.25
    if option == "brightness":
        assert torch.allclose(changed - pixels, (changed - pixels)[0, 0, 0].expand_as(pixels), atol=1e-6)
    if option == "contrast":
        assert changed.mean() == pytest.approx(pixels.mean().item(), abs=1e-5)


def test_padding_keeps_its_zeros():
    pixels, frame = to_frame(np.full((4, 8, 3), 0.5, np.float32), 8)
    options = AugmentOptions(flips=False, rotations=False, brightness=0.3)
    for seed in range(10):
        generator = rng.generator(seed)
        seen, _ = apply_view(pixels, torch.zeros(8, 8), view=1, generator=generator, options=options, frame=frame)
        assert (seen[:, 4:] == 0).all()
        assert not torch.allclose(seen[:, :4], pixels[:, :4], atol=1e-3)


def _moved(labels, **changes):
    """The labels after a view of which only the named changes are left."""
    options = AugmentOptions(flips=False, rotations=False, **GEOMETRY, **changes)
    pixels = labels.float().expand(3, -1, -1) / 255
    seen, moved = apply_view(pixels, labels, view=1, generator=rng.generator(3), options=options)
    return seen, moved


def test_turned_as_by_another_library():
    """SciPy turns the labels in the same way, for one angle in the range."""
    labels = torch.zeros(33, 33, dtype=torch.uint8)
    labels[4:12, 6:26] = 200
    _, moved = _moved(labels, angle=40)
    found = min(
        ((rotate(labels.numpy(), angle, reshape=False, order=0) != moved.numpy()).mean(), angle)
        for angle in range(-40, 41)
    )
    assert found[0] < 0.02
    assert found[1] != 0


def test_enlarged_about_the_centre():
    labels = torch.zeros(64, 64, dtype=torch.uint8)
    labels[24:40, 24:40] = 7
    _, moved = _moved(labels, zoom=0.7)
    rows, columns = torch.nonzero(moved, as_tuple=True)
    assert moved.unique().tolist() == [0, 7]
    assert len(rows) != 16 * 16
    assert abs(rows.float().mean() - 31.5) <= 0.5
    assert abs(columns.float().mean() - 31.5) <= 0.5
    assert 16 / math.exp(0.7) - 1 <= rows.max() - rows.min() + 1 <= 16 * math.exp(0.7) + 1


@pytest.mark.parametrize("changes", [{"angle": 30}, {"zoom": 0.3}, {"angle": 90, "zoom": 0.5}])
def test_moved_labels_and_pixels_stay_aligned(changes):
    labels = torch.zeros(64, 64, dtype=torch.uint8)
    labels[10:30, 20:50] = 255
    seen, moved = _moved(labels, **changes)
    assert ((seen[0] > 0.5) == (moved > 0)).float().mean() > 0.99
    assert not torch.equal(moved, labels)
