"""Clipping, by hand."""

import math

import pytest
import torch

from pfedsam.federation.pipeline.clip import Clip

RECEIVED = {"a": torch.tensor([1.0, 1.0]), "b": torch.tensor([[0.0]])}


def test_a_change_beyond_the_norm_is_scaled_down_to_it_as_a_whole() -> None:
    """The change (3, 0, 4) has the norm 5; a tenth of it is left."""
    clipped = Clip(0.5).apply({"a": torch.tensor([4.0, 1.0]), "b": torch.tensor([[4.0]])}, RECEIVED, {})
    assert clipped["a"].tolist() == pytest.approx([1.3, 1.0])
    assert clipped["b"].tolist() == [[pytest.approx(0.4)]]


@pytest.mark.parametrize("large", [5.0, 50.0, math.inf])
def test_a_change_within_the_norm_keeps_its_bits(large: float) -> None:
    values = {"a": torch.tensor([4.0, 1.0]), "b": torch.tensor([[4.0]])}
    clipped = Clip(large).apply(values, RECEIVED, {})
    assert all(torch.equal(clipped[name], value) for name, value in values.items())


def test_values_that_diverged_are_left_for_the_server_to_refuse() -> None:
    clipped = Clip(1.0).apply({"a": torch.tensor([math.nan, 1.0]), "b": torch.tensor([[4.0]])}, RECEIVED, {})
    assert clipped["a"].isnan().tolist() == [True, False]
    assert clipped["b"].tolist() == [[4.0]]


def test_nothing_is_kept_for_the_next_round() -> None:
    assert Clip(1.0).remember(RECEIVED, RECEIVED) == {}
