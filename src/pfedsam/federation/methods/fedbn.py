"""FedBN's idea with LayerNorm (Li et al., "FedBN: Federated Learning on Non-IID Features via Local Batch Normalization", ICLR 2021).

Normalisation is the site's own, everything else that is trained is averaged, in one phase. Ours differs: SAM has LayerNorms, which keep no
statistics of the data, so that only their scales and shifts are local: those of the adapted encoder blocks, the neck, the decoder and
its output layers; the rest is what our `fedavg` averages.
"""

from pfedsam.federation.methods.base import HEAD, Method, joint_training, local_end, place, plain
from pfedsam.model.options import ModelOptions
from pfedsam.model.partition import Placement


def adapt(options: ModelOptions) -> ModelOptions:
    """LayerNorms of the site's own."""
    return plain(options).model_copy(update={"norms": "local"})


def placement(options: ModelOptions) -> Placement:
    """LayerNorms stay, the rest is averaged."""
    return place(options, shared=("lora_a", "lora_b", *HEAD), local=("norms",))


METHOD = Method(
    name="fedbn",
    summary="LoRA, class tokens and output layers averaged, LayerNorms local (after FedBN: Li et al., 2021)",
    adapt=adapt,
    placement=placement,
    phases=joint_training,
    final=local_end,
)
