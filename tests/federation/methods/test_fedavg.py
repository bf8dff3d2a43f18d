"""FedAvg on LoRA: all that is trained is averaged."""

from pfedsam.federation.methods import fedavg
from pfedsam.training.options import TrainingOptions


def test_lora_class_tokens_and_output_layers_are_averaged(make) -> None:
    made = make("fedavg")
    assert made.shared == made.lora("lora_A") | made.lora("lora_B") | made.names("class_tokens", "output_layers.")
    assert made.local == set()


def test_one_phase_without_a_pull() -> None:
    (phase,) = fedavg.METHOD.phases(TrainingOptions())
    assert (phase.trains, phase.supervised, phase.proximal, phase.taught) == (("shared",), ("shared",), 0.0, None)
