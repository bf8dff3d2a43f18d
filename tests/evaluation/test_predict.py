from pathlib import Path

import numpy as np
import pytest
import torch

from pfedsam.data.examples import Example
from pfedsam.data.manifest import Case
from pfedsam.data.tiling import TilingOptions
from pfedsam.data.transforms import Frame
from pfedsam.evaluation.predict import logits_to_classes, predict, predict_tiled, tiled_logits


def example(name: str, native: tuple[int, int], *, side: int = 16) -> Example:
    case = Case(site="s", id=name, image=Path("i.png"), mask=None, patient=name)
    return Example(case=case, pixels=torch.full((3, side, side), 0.5), labels=None, frame=Frame.of(native, side))


def test_background_has_logit_zero_and_the_highest_class_wins():
    # A 2 x 2 map in a frame that changes no size: all below 0; class 1; class 2; a tie with background.
    logits = torch.tensor([[[-1.0, 2.0], [1.0, 0.0]], [[-2.0, 1.0], [3.0, -1.0]]])
    classes = logits_to_classes(logits, Frame.of((2, 2), 2))
    assert classes.dtype == np.uint8
    assert classes.tolist() == [[0, 1], [2, 0]]


def test_padding_is_cut_off_and_the_map_has_native_size():
    # A picture of 20 x 40 lies in the upper half of a frame of 16: the lower half, all class 1, must not show.
    logits = torch.full((1, 4, 4), -9.0)
    logits[:, 2:] = 9.0
    logits[:, :2, 2:] = 9.0
    classes = logits_to_classes(logits, Frame.of((20, 40), 16))
    assert classes.shape == (20, 40)
    assert classes[:10, :15].max() == 0  # far from the lower half, whose logits blend into the last rows
    assert classes[:, 25:].min() == 1


def test_half_precision_logits_are_accepted():
    assert logits_to_classes(torch.full((1, 4, 4), 3.0, dtype=torch.bfloat16), Frame.of((8, 8), 16)).min() == 1


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_predict_keeps_the_order_and_never_asks_for_gradients(batch_size):
    batches = []

    def forward(pixels: torch.Tensor) -> torch.Tensor:
        batches.append(len(pixels))
        assert torch.is_inference_mode_enabled()
        return torch.ones(len(pixels), 2, 4, 4)

    examples = [example(str(index), (8 + index, 16)) for index in range(5)]
    results = list(predict(forward, examples, batch_size=batch_size))
    assert [one.case.id for one, _ in results] == ["0", "1", "2", "3", "4"]
    assert [classes.shape for _, classes in results] == [(8 + index, 16) for index in range(5)]
    assert sum(batches) == 5
    assert max(batches) == batch_size
    assert not torch.is_inference_mode_enabled()


def test_the_caller_is_not_left_in_inference_mode_between_images():
    generator = predict(lambda pixels: torch.ones(len(pixels), 1, 4, 4), [example("a", (8, 8))] * 2, batch_size=1)
    next(generator)
    assert not torch.is_inference_mode_enabled()


def picture(pixels: torch.Tensor) -> Example:
    case = Case(site="s", id="a", image=Path("i.png"), mask=None, patient="a")
    return Example(case=case, pixels=pixels, labels=None, frame=Frame.of(tuple(pixels.shape[-2:]), 32))


def pointwise(pixels: torch.Tensor) -> torch.Tensor:
    """Logits of two classes from each pixel alone: the first where red is bright, the second where green is."""
    return 10 * pixels[:, :2] - 5


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5])
@pytest.mark.parametrize("size", [(32, 32), (50, 77), (20, 100), (9, 11)])
def test_a_pointwise_model_answers_the_same_tiled_and_untiled(size, overlap):
    pixels = torch.rand(3, *size, generator=torch.Generator().manual_seed(1))
    tiling = TilingOptions(side=32, overlap=overlap)
    ((_, found),) = predict_tiled(pointwise, [picture(pixels)], side=32, tiling=tiling, batch_size=3)
    best, index = pointwise(pixels[None])[0].max(dim=0)
    assert found.dtype == np.uint8
    assert found.tolist() == torch.where(best > 0, index + 1, 0).tolist()


def test_tiles_are_scaled_to_the_models_side_and_back():
    # A step from dark to bright between two pixels stays there, although the model sees tiles of twice the size.
    pixels = torch.zeros(3, 40, 60)
    pixels[0, :, 30:] = 1
    seen = []

    def forward(tiles: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(tiles.shape[1:]))
        return pointwise(tiles)

    tiling = TilingOptions(side=16, overlap=0.5)
    ((_, found),) = predict_tiled(forward, [picture(pixels)], side=32, tiling=tiling, batch_size=4)
    assert set(seen) == {(3, 32, 32)}
    assert found[:, :30].max() == 0
    assert found[:, 30:].min() == 1


@pytest.mark.parametrize("size", [(41, 67), (9, 100), (16, 16)])
@pytest.mark.parametrize("overlap", [0.0, 0.4, 0.9])
def test_weights_sum_to_one_everywhere(size, overlap):
    logits = tiled_logits(
        lambda tiles: torch.full((len(tiles), 2, 4, 4), -3.25),
        torch.zeros(3, *size),
        side=32,
        tiling=TilingOptions(side=16, overlap=overlap),
        batch_size=4,
    )
    assert torch.allclose(logits, torch.full((2, *size), -3.25), rtol=1e-5)


def test_tiled_predictions_keep_the_order_and_leave_inference_mode():
    pictures = [picture(torch.rand(3, 20 + n, 40)) for n in range(3)]
    tiling = TilingOptions(side=16)
    for n, (_, found) in enumerate(predict_tiled(pointwise, pictures, side=16, tiling=tiling, batch_size=2)):
        assert found.shape == (20 + n, 40)
        assert not torch.is_inference_mode_enabled()
