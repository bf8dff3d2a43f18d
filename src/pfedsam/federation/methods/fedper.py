"""FedPer (Arivazhagan et al., 2019, arXiv:1912.00818): base layers averaged, last layers local, trained together.

The base layers are SAM's encoder, adapted by LoRA; the personal layers are the whole mask decoder with its class tokens and output layers.
Ours differs: LoRA instead of the base layers themselves; the decoder has no LoRA, its weights are trained at the learning rate of
SAM's own weights; after the last aggregation the personal layers are trained for `training.final_steps` steps, as in every personal method.
"""

from pfedsam.federation.methods.base import HEAD, Method, joint_training, local_end, place, plain
from pfedsam.model.options import ModelOptions
from pfedsam.model.partition import Placement


def adapt(options: ModelOptions) -> ModelOptions:
    """The model with LoRA only in the encoder, and a trainable, local decoder."""
    options = plain(options)
    lora = options.lora.model_copy(update={"decoder": False}) if options.lora else None
    layers = "frozen" if options.output_layers == "frozen" else "local"
    return options.model_copy(update={"lora": lora, "output_layers": layers})


def placement(options: ModelOptions) -> Placement:
    """The encoder's LoRA is shared, the decoder local."""
    return place(options, shared=("lora_a", "lora_b"), local=("decoder", *HEAD))


METHOD = Method(
    name="fedper",
    summary="the encoder's LoRA averaged, the decoder local, trained together (Arivazhagan et al., 2019)",
    adapt=adapt,
    placement=placement,
    phases=joint_training,
    final=local_end,
)
