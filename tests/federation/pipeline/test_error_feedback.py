"""Error feedback: what arrives over many rounds adds up to what was trained."""

import pytest
import torch

from pfedsam.core.tensors import digest
from pfedsam.federation.codec import LOSSLESS, Codec
from pfedsam.federation.pipeline.base import Pipeline
from pfedsam.federation.pipeline.error_feedback import ErrorFeedback
from pfedsam.federation.update import Update, UpdateSpec, decode, encode


def send(update, codec, received, memory):
    """The message with error feedback, and what it leaves behind."""
    sent = Pipeline((ErrorFeedback(),), codec).send(update, received, memory)
    return sent.message, sent.memory


def drift(rounds, *, keep, codec):
    """How far the sum of what arrived is from the sum of what was trained, after each round, for changes that lean one way."""
    generator = torch.Generator().manual_seed(3)
    received = {"w": torch.zeros(4, 64)}
    trained, arrived, feedback, gaps = torch.zeros(4, 64, dtype=torch.float64), torch.zeros(4, 64).double(), {}, []
    for round_ in range(rounds):
        change = 0.02 + 0.1 * torch.randn(4, 64, generator=generator)
        update = Update("north", round_, {"w": received["w"] + change}, 5)
        message, lost = send(update, codec, received, feedback if keep else {})
        feedback = lost
        trained += change.double()
        arrived += (
            decode(message, UpdateSpec.of(received, codec), received).tensors["w"].double() - received["w"].double()
        )
        gaps.append((trained - arrived).abs().max().item())
    return gaps


@pytest.mark.parametrize("name", ["fp16", "int8", "int4"])
def test_with_feedback_the_sums_differ_by_one_rounds_loss_and_without_they_drift_apart(name):
    codec = Codec(name)
    kept, lost = drift(200, keep=True, codec=codec), drift(200, keep=False, codec=codec)
    one_round = lost[0]
    assert max(kept) < 3 * one_round
    assert lost[-1] > 3 * max(kept)
    assert kept[-1] / 200 < one_round / 50  # the mean change that arrived converges to the mean change that was trained


def test_the_first_loss_by_hand():
    """int4, scale 0.125: 0.3 is sent as 0.25 and lacks 0.05; with that the next 0.3 is 0.35, sent as 0.375."""
    received = {"w": torch.tensor([1.0, 1.0])}
    codec, spec = Codec("int4", 8), UpdateSpec.of(received, Codec("int4", 8))
    update = Update("north", 0, {"w": torch.tensor([1.875, 1.3])}, 5)
    message, feedback = send(update, codec, received, {})
    assert decode(message, spec, received).tensors["w"].tolist() == [1.875, 1.25]
    assert feedback["w"].tolist() == pytest.approx([0.0, 0.05], abs=1e-6)
    message, feedback = send(update, codec, received, feedback)
    assert decode(message, spec, received).tensors["w"].tolist() == [1.875, 1.375]
    assert feedback["w"].tolist() == pytest.approx([0.0, -0.025], abs=1e-6)


def test_the_lossless_codec_loses_nothing(updates):
    message, feedback = send(updates[0], LOSSLESS, updates[1].tensors, {})
    assert message == encode(updates[0])
    assert not any(value.any() for value in feedback.values())


def test_what_diverged_is_not_made_good_for(updates):
    broken = {**updates[0].tensors, "lora.b": torch.full((3, 4), float("nan"))}
    update = Update("east", 3, broken, 10)
    _, feedback = send(update, Codec("int8"), updates[1].tensors, {})
    assert feedback["lora.b"].tolist() == [[0.0] * 4] * 3
    assert all(value.isfinite().all() and value.dtype == torch.float32 for value in feedback.values())


def test_equal_rounds_give_equal_bits(updates):
    results = [send(updates[0], Codec("int4"), updates[1].tensors, {}) for _ in range(2)]
    assert results[0][0] == results[1][0]
    assert digest(results[0][1]) == digest(results[1][1])
