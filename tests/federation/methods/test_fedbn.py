"""FedBN's idea: normalisation layers stay, all else that is trained travels."""

from torch import nn

from pfedsam.federation.methods import METHODS
from pfedsam.training.options import TrainingOptions


def test_every_norm_after_the_prefix_stays(make) -> None:
    made = make("fedbn")
    head = made.names("class_tokens", "output_layers.")
    of_unet = ".adn.N."  # MONAI's name of a U-Net's normalisation
    named = [name for name, _ in made.model.named_parameters() if not name.startswith("norms.")]
    norms = {name for name in named if "norm" in name or of_unet in name}
    assert any(of_unet in name for name in norms)
    before_the_first_adapted = {name for name in norms if ".vision_encoder.layers.0." in name}
    unused = {n for n in norms if n.startswith(("sam.prompt_encoder", "sam.mask_decoder.upscale"))}
    assert set(made.model.norms.origins.values()) == norms - before_the_first_adapted - unused
    assert made.local == made.names("norms.")
    assert made.shared == made.lora("lora_A") | made.lora("lora_B") | (head - norms)


def test_no_shared_norm_is_left_in_what_travels(make) -> None:
    made = make("fedbn")
    modules = dict(made.model.named_modules())
    assert not [n for n in made.shared if isinstance(modules[n.rpartition(".")[0]], nn.LayerNorm | nn.InstanceNorm2d)]


def test_one_phase_for_both() -> None:
    (phase,) = METHODS["fedbn"].phases(TrainingOptions())
    assert phase.trains == ("shared", "local")
