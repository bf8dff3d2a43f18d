"""FedSAM (Liu et al., "FedFMS", MICCAI 2024, arXiv:2403.05408): every weight of SAM is trained and averaged.

Ours differs: no prompt is used, so that the parts that only prompts need are left out (the encoders of points, boxes and masks, and the IoU
prediction head), and the decoder's four hyper-networks are replaced by one per class; Dice + cross-entropy and AdamW as for every method;
SAM's own weights have the learning rate of FedFMS. The random positional encoding is constant, as in SAM itself. Nothing is frozen, so that
no frozen features can be cached and every step computes the whole encoder.
"""

from pfedsam.federation.methods.base import HEAD, Method, no_phases, place, plain, shared_training
from pfedsam.model.options import ModelOptions
from pfedsam.model.partition import Placement


def adapt(options: ModelOptions) -> ModelOptions:
    """The model without additions to SAM; all of SAM is trained."""
    return plain(options).model_copy(update={"train_encoder": True, "adapt_last": None, "lora": None})


def placement(options: ModelOptions) -> Placement:
    """Encoder, decoder and the embedding that replaces the prompt are shared."""
    return place(options, shared=("encoder", "decoder", "no_prompt", *HEAD))


METHOD = Method(
    name="fedsam",
    summary="all weights of SAM averaged (FedFMS: Liu et al., 2024); nothing is personal",
    adapt=adapt,
    placement=placement,
    phases=shared_training,
    final=no_phases,
)
