"""FedBN's idea with SAM (Li et al., "FedBN: Federated Learning on Non-IID Features via Local Batch Normalization", ICLR 2021).

Normalisation layers are local, all other trained parameters are averaged; both are trained in one phase. Ours differs: SAM has LayerNorms,
and the small U-Net of the output layers InstanceNorms, which store no statistics of the data, so that only their scales and shifts are
local, in the adapted encoder blocks, the neck, the decoder and its output layers. The shared parameters are those of our `fedavg`.
"""

from pfedsam.federation.methods.base import HEAD, Method, joint_training, local_end, place, plain
from pfedsam.model.options import ModelOptions
from pfedsam.model.partition import Placement


def adapt(options: ModelOptions) -> ModelOptions:
    """The model with trainable, local normalisation layers."""
    return plain(options).model_copy(update={"norms": "local"})


def placement(options: ModelOptions) -> Placement:
    """Normalisation layers are local, the other trained components shared."""
    return place(options, shared=("lora_a", "lora_b", *HEAD), local=("norms",))


METHOD = Method(
    name="fedbn",
    summary="LoRA, class tokens and output layers averaged, normalisation layers local (after FedBN: Li et al., 2021)",
    adapt=adapt,
    placement=placement,
    phases=joint_training,
    final=local_end,
)
