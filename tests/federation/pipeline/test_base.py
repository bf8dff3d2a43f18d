"""The steps of the pipeline run in order, and each learns what arrived of what it returned."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from pfedsam.core.tensors import NamedTensors
from pfedsam.federation.codec import LOSSLESS, Codec
from pfedsam.federation.pipeline.base import Pipeline
from pfedsam.federation.pipeline.clip import Clip
from pfedsam.federation.pipeline.error_feedback import ErrorFeedback
from pfedsam.federation.update import Update, UpdateSpec, decode, encode

RECEIVED = {"w": torch.tensor([1.0, 2.0])}


@dataclass(frozen=True)
class Affine:
    """A step that multiplies and adds."""

    factor: float
    term: float

    def __str__(self) -> str:
        return f"{self.factor} x + {self.term}"

    def apply(self, values: NamedTensors, received: NamedTensors, memory: NamedTensors) -> dict[str, Tensor]:
        return {name: value * self.factor + self.term for name, value in values.items()}

    def remember(self, values: NamedTensors, arrived: NamedTensors) -> dict[str, Tensor]:
        return {f"{self}": torch.stack([values["w"], arrived["w"]])}


def arrived(message: bytes, codec: Codec) -> list[float]:
    return decode(message, UpdateSpec.of(RECEIVED, codec), RECEIVED).tensors["w"].tolist()


def test_without_steps_the_message_is_the_codecs() -> None:
    update = Update("north", 1, {"w": torch.tensor([3.0, 4.0])}, 5)
    sent = Pipeline((), LOSSLESS).send(update, RECEIVED, {})
    assert (sent.message, sent.memory) == (encode(update), {})


def test_steps_run_in_order_and_learn_what_arrived() -> None:
    update = Update("north", 1, {"w": torch.tensor([3.0, 4.0])}, 5)
    sent = Pipeline((Affine(2.0, 0.0), Affine(1.0, 1.0)), LOSSLESS).send(update, RECEIVED, {})
    assert arrived(sent.message, LOSSLESS) == [7.0, 9.0]
    assert sent.memory["2.0 x + 0.0"].tolist() == [[6.0, 8.0], [7.0, 9.0]]
    assert sent.memory["1.0 x + 1.0"].tolist() == [[7.0, 9.0], [7.0, 9.0]]


@pytest.mark.parametrize("name", ["fp16", "int8", "int4"])
def test_what_a_step_is_told_is_what_the_server_reads(name: str) -> None:
    codec = Codec(name, 8)  # type: ignore[arg-type]
    update = Update("north", 1, {"w": torch.tensor([1.1234567, 2.7654321])}, 5)
    sent = Pipeline((Affine(1.0, 0.0),), codec).send(update, RECEIVED, {})
    assert sent.memory["1.0 x + 0.0"][1].tolist() == arrived(sent.message, codec)


def test_what_clipping_cuts_off_is_not_taken_for_an_error_of_rounding() -> None:
    """int4 holds the clipped change (0.875, 0) exactly, so nothing is left for the next round."""
    update = Update("north", 1, {"w": torch.tensor([8.0, 2.0])}, 5)
    sent = Pipeline((Clip(0.875), ErrorFeedback()), Codec("int4", 8)).send(update, RECEIVED, {})
    assert arrived(sent.message, Codec("int4", 8)) == [1.875, 2.0]
    assert sent.memory["w"].tolist() == pytest.approx([0.0, 0.0], abs=1e-6)


def test_the_steps_are_listed_with_their_numbers() -> None:
    assert Pipeline((Clip(1.5), ErrorFeedback()), Codec("int4", 64)).describe() == (
        "scale the change down to an L2 norm of 1.5",
        "add what rounding took from the last update",
        "encode as int4/64",
    )
