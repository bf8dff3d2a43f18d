"""FLAP-SAM (Asokan et al., 2024, arXiv:2407.21739): LoRA and the decoder's output layers are averaged, the rest of SAM stays as it is.

It differs from our `fedavg` in the class tokens, which are frozen copies of SAM's mask token here: the paper finds that the rest of
the decoder is best left alone. Ours differs from the paper: two dimensions instead of three, no prompt, one hyper-network per class,
and LoRA where `model.lora` puts it (fused qkv of the adapted encoder blocks, all linear layers of the decoder's transformer).
"""

from dataclasses import replace

from pfedsam.federation.methods import fedavg
from pfedsam.federation.methods.base import place
from pfedsam.model.options import ModelOptions
from pfedsam.model.partition import Placement


def placement(options: ModelOptions) -> Placement:
    """LoRA and output layers are averaged."""
    return place(options, shared=("lora_a", "lora_b", "output_layers"))


METHOD = replace(
    fedavg.METHOD,
    name="flap-sam",
    summary="LoRA and output layers averaged, class tokens frozen (Asokan et al., 2024); nothing is personal",
    placement=placement,
)
