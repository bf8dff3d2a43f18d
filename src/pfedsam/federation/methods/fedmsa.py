"""FedMSA (Liu et al., "FedFMS", MICCAI 2024, arXiv:2403.05408): Medical SAM Adapter's adapters and the decoder, averaged.

Two adapters in every encoder block (Wu et al., 2023) and the whole mask decoder are trained and averaged; the encoder is frozen. Ours
differs: adapters start at zero (in the paper at random); no prompt is used, so that the IoU prediction head is left out and the decoder's
four hyper-networks are replaced by one per class; Dice + cross-entropy and AdamW as for every method; the decoder has FedFMS's learning
rate.
"""

from pfedsam.federation.methods.base import HEAD, Method, no_phases, place, plain, shared_training
from pfedsam.model.components.adapters import AdapterOptions
from pfedsam.model.options import ModelOptions
from pfedsam.model.partition import Placement


def adapt(options: ModelOptions) -> ModelOptions:
    """The model with adapters in every block and without LoRA."""
    adapters = options.adapters or AdapterOptions()
    return plain(options).model_copy(update={"adapters": adapters, "adapt_last": None, "lora": None})


def placement(options: ModelOptions) -> Placement:
    """Adapters and decoder are shared."""
    return place(options, shared=("adapters", "decoder", *HEAD))


METHOD = Method(
    name="fedmsa",
    summary="two adapters a block and the whole decoder averaged (FedFMS: Liu et al., 2024); nothing is personal",
    adapt=adapt,
    placement=placement,
    phases=shared_training,
    final=no_phases,
)
