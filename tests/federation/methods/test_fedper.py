"""FedPer: the encoder's LoRA travels, the decoder stays."""

from pfedsam.federation.methods import METHODS
from pfedsam.training.options import TrainingOptions

DECODER = ("sam.mask_decoder.transformer.", "sam.mask_decoder.iou_token.", "sam.mask_decoder.mask_tokens.")


def test_the_encoder_is_shared_and_the_decoder_local(make) -> None:
    made = make("fedper")
    assert made.shared == made.lora("lora_A") | made.lora("lora_B")
    assert all(name.startswith("sam.vision_encoder.layers.1.") for name in made.shared)
    assert made.local == made.names(*DECODER, "class_tokens", "output_layers.")


def test_both_are_trained_together() -> None:
    (phase,) = METHODS["fedper"].phases(TrainingOptions())
    assert (phase.trains, phase.supervised) == (("shared", "local"), ("personal",))
