"""Pretraining goes on after a stop as if there had been none."""

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from pfedsam.core.tensors import load
from pretraining.pretrain import CHECKPOINT, PretrainOptions, pretrain, schedule


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
