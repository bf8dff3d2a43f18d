"""FedSA-LoRA: A is averaged, B and the head stay."""

from pfedsam.federation.methods import METHODS
from pfedsam.training.options import TrainingOptions


def test_a_alone_is_averaged(make) -> None:
    made = make("fedsa-lora")
    assert made.shared == made.lora("lora_A")
    assert made.local == made.lora("lora_B") | made.names("class_tokens", "output_layers.")


def test_both_are_trained_together() -> None:
    (phase,) = METHODS["fedsa-lora"].phases(TrainingOptions())
    assert phase.trains == ("shared", "local")
