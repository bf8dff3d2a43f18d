"""After FedDPA: two LoRAs on the same layers, one of which travels."""

from pfedsam.federation.methods import feddpa
from pfedsam.training.options import TrainingOptions


def test_one_lora_is_averaged_and_the_other_stays(make) -> None:
    made = make("feddpa")
    assert made.shared == made.lora("lora_A") | made.lora("lora_B") | made.names("class_tokens", "output_layers.")
    assert made.local == made.names("local_lora.")
    assert len(made.local) == len(made.lora("lora_A") | made.lora("lora_B"))
    count = {
        kind: sum(made.model.get_parameter(n).numel() for n in names)
        for kind, names in (("shared", made.lora("lora_A") | made.lora("lora_B")), ("local", made.local))
    }
    assert count["local"] == count["shared"]  # the same rank unless another is asked for


def test_the_rank_of_the_local_one_can_be_chosen(make) -> None:
    made = make("feddpa", local_lora=5)
    assert {min(made.model.get_parameter(n).shape) for n in made.local} == {5}


def test_the_local_lora_is_trained_over_the_received_one() -> None:
    first, second = feddpa.phases(TrainingOptions())
    assert (first.trains, first.supervised) == (("shared",), ("shared",))
    assert (second.trains, second.supervised, second.shared_from) == (("local",), ("personal",), "received")
    assert second.taught is None
