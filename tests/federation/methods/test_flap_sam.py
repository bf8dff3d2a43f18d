"""FLAP-SAM: LoRA and output layers, no class tokens."""


def test_lora_and_output_layers_are_averaged(make) -> None:
    made = make("flap-sam")
    assert made.shared == made.lora("lora_A") | made.lora("lora_B") | made.names("output_layers.")
    assert made.local == set()
    assert "class_tokens" in made.partition.frozen
    assert any("mask_decoder" in name for name in made.lora("lora_A"))
