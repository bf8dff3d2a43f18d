"""A plain 2-D U-Net from random weights, of which every layer is averaged (McMahan et al., AISTATS 2017)."""

from pfedsam.federation.methods.base import Method, no_phases, place, plain_unet, shared_training
from pfedsam.model.options import ModelOptions
from pfedsam.model.partition import Placement


def placement(options: ModelOptions) -> Placement:
    """All layers are shared."""
    return place(options, shared=("unet", "unet_norms"))


METHOD = Method(
    name="unet-fedavg",
    summary="a plain U-Net from random weights averaged (McMahan et al., 2017); nothing is personal",
    adapt=plain_unet,
    placement=placement,
    phases=shared_training,
    final=no_phases,
)
