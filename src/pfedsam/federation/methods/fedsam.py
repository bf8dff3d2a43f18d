"""FedSAM (Liu et al., "FedFMS", MICCAI 2024, arXiv:2403.05408): every weight of SAM is trained and averaged.

Ours differs: no prompt is used, so what only prompts need is left out (the encoders of points, boxes and masks, the head that guesses
an IoU; the decoder's four hyper-networks give way to one per class); Dice + cross-entropy and AdamW as for every method, SAM's own
weights at the learning rate of FedFMS. The fixed random code of positions is a constant, as in SAM itself. Nothing is frozen, so
there is no prefix to cache: every step begins at the pixels.
"""

from pfedsam.federation.methods.base import HEAD, Method, no_phases, place, plain, shared_training
from pfedsam.model.options import ModelOptions
from pfedsam.model.partition import Placement


def adapt(options: ModelOptions) -> ModelOptions:
    """SAM itself, without additions."""
    return plain(options).model_copy(update={"train_encoder": True, "adapt_last": None, "lora": None})


def placement(options: ModelOptions) -> Placement:
    """Encoder, decoder and what stands for the prompt are averaged."""
    return place(options, shared=("encoder", "decoder", "no_prompt", *HEAD))


METHOD = Method(
    name="fedsam",
    summary="all weights of SAM averaged (FedFMS: Liu et al., 2024); nothing is personal",
    adapt=adapt,
    placement=placement,
    phases=shared_training,
    final=no_phases,
)
