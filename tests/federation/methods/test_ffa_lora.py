"""FFA-LoRA: B is averaged, A stands still and is the same everywhere."""

import torch


def test_b_and_the_head_are_averaged(make) -> None:
    made = make("ffa-lora")
    assert made.shared == made.lora("lora_B") | made.names("class_tokens", "output_layers.")
    assert made.lora("lora_A") <= set(made.partition.frozen)
    assert made.local == set()


def test_a_is_equal_at_every_site_and_not_zero(make) -> None:
    first, second = make("ffa-lora"), make("ffa-lora")
    for name in first.lora("lora_A"):
        assert torch.equal(first.model.get_parameter(name), second.model.get_parameter(name))
        assert first.model.get_parameter(name).count_nonzero() > 0
