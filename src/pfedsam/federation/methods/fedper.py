"""FedPer (Arivazhagan et al., 2019, arXiv:1912.00818): base layers are averaged, the last layers stay; both are trained together.

The base is SAM's encoder, adapted by LoRA; the personal layers are the whole mask decoder with its class tokens and output layers.
Ours differs: LoRA instead of the base layers themselves, and none in the decoder, which is trained itself, at the learning rate of
SAM's own weights; `training.final_steps` steps of the personal layers after the last aggregation, as every personal method gets.
"""

from pfedsam.federation.methods.base import HEAD, Method, joint_training, local_end, place, plain
from pfedsam.model.options import ModelOptions
from pfedsam.model.partition import Placement


def adapt(options: ModelOptions) -> ModelOptions:
    """LoRA in the encoder alone; the decoder is the site's own."""
    options = plain(options)
    lora = options.lora.model_copy(update={"decoder": False}) if options.lora else None
    layers = "frozen" if options.output_layers == "frozen" else "local"
    return options.model_copy(update={"lora": lora, "output_layers": layers})


def placement(options: ModelOptions) -> Placement:
    """The encoder's LoRA is averaged; the decoder stays."""
    return place(options, shared=("lora_a", "lora_b"), local=("decoder", *HEAD))


METHOD = Method(
    name="fedper",
    summary="the encoder's LoRA averaged, the decoder local, trained together (Arivazhagan et al., 2019)",
    adapt=adapt,
    placement=placement,
    phases=joint_training,
    final=local_end,
)
