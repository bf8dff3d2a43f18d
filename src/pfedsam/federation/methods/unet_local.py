"""A plain 2-D U-Net from random weights, trained by every site alone: the baseline without a foundation model and without a federation."""

from pfedsam.federation.methods.base import Method, local_end, local_training, place, plain_unet
from pfedsam.model.options import ModelOptions
from pfedsam.model.partition import Placement


def placement(options: ModelOptions) -> Placement:
    """All layers are local."""
    return place(options, local=("unet", "unet_norms"))


METHOD = Method(
    name="unet-local",
    summary="every site trains a plain U-Net from random weights alone; nothing is sent",
    adapt=plain_unet,
    placement=placement,
    phases=local_training,
    final=local_end,
)
