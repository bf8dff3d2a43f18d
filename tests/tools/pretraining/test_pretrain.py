"""Pretraining goes on after a stop as if there had been none."""

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from pfedsam.core.rng import generator
from pfedsam.core.tensors import load
from pfedsam.model.backbones.compact import compact_config, new_network
from pretraining.pretrain import CHECKPOINT, Pretrained, PretrainOptions, draw_batch, objective, pretrain, schedule


def test_a_resumed_training_ends_with_the_same_bits(tmp_path: Path) -> None:
    options = PretrainOptions(
        size="sam-toy", steps=4, crop=32, crop_steps=2, batch_size=2, prompts=2, warmup=1, save_every=2
    )

    def stop(step: int, _: dict[str, float]) -> None:
        if step == 3 and not (tmp_path / "stopped").exists():
            (tmp_path / "stopped").touch()
            raise KeyboardInterrupt

    pretrain(options, tmp_path / "straight")
    try:
        pretrain(options, tmp_path / "resumed", progress=stop)
    except KeyboardInterrupt:
        pretrain(options, tmp_path / "resumed", progress=stop)
    straight, resumed = (load(tmp_path / name / CHECKPOINT)[0] for name in ("straight", "resumed"))
    assert (tmp_path / "stopped").exists()
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)


def test_more_steps_on_crops_than_there_are_steps_are_refused() -> None:
    with pytest.raises(ValidationError, match="of 500 steps 1400 cannot be on crops"):
        PretrainOptions(steps=500)


def test_the_learning_rate_rises_then_falls_to_one_percent() -> None:
    options = PretrainOptions(steps=110, crop_steps=0, warmup=10)
    assert schedule(options, 0) == 0.1
    assert schedule(options, 10) == 1.0
    assert abs(schedule(options, 60) - 0.505) < 1e-9
    assert abs(schedule(options, 110) - 0.01) < 1e-9


def test_the_image_comes_back_from_its_embedding_at_half_its_resolution() -> None:
    trained = Pretrained(new_network(compact_config("sam-toy"), generator(0, "toy")))
    batch = draw_batch(PretrainOptions(steps=1, crop_steps=0, batch_size=2, prompts=2), 64, 0, 0)
    losses = objective(trained, batch)
    assert set(losses) == {"box", "point", "free", "appearance", "quality"}
    # The layer starts with a grey image, so that the loss is the mean distance of the halved image to 0.5.
    halved = batch.pixels.unflatten(3, (32, 2)).unflatten(2, (32, 2)).mean(dim=(3, 5))
    torch.testing.assert_close(losses["appearance"], (halved - 0.5).abs().mean())
    with torch.no_grad():
        trained.appearance.bias.copy_(torch.arange(3 * 64) // 64)  # red 0, green 1, blue 2
    assert trained.image(torch.zeros(1, 32, 4, 4))[0].flatten(1).unique(dim=1).tolist() == [[0], [1], [2]]
