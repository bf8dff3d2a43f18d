from pathlib import Path

import numpy as np
import pytest
import torch

from pfedsam.data.loader import Example
from pfedsam.data.manifest import Case
from pfedsam.data.transforms import Frame
from pfedsam.evaluation.predict import logits_to_classes, predict


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
