"""A plain 2-D U-Net from random weights with FedBN (Li et al., ICLR 2021): normalisation layers local, all others averaged.

Ours differs: the U-Net has instance normalisation, which stores no statistics of the data, so that only its scales and shifts are local.
"""

from pfedsam.federation.methods.base import Method, joint_training, local_end, place, plain_unet
from pfedsam.model.options import ModelOptions
from pfedsam.model.partition import Placement


def placement(options: ModelOptions) -> Placement:
    """The normalisation layers are local, the others shared."""
    return place(options, shared=("unet",), local=("unet_norms",))


METHOD = Method(
    name="unet-fedbn",
    summary="a plain U-Net from random weights averaged except for its local normalisation (FedBN: Li et al., 2021)",
    adapt=plain_unet,
    placement=placement,
    phases=joint_training,
    final=local_end,
)
