"""FLAP-SAM (Asokan et al., 2024, arXiv:2407.21739): LoRA and the decoder's output layers are averaged.

The difference to our `fedavg` are the class tokens, which are frozen copies of SAM's mask token here: the paper finds that the rest of
the decoder is best kept frozen. Ours differs from the paper: two dimensions instead of three; no prompt; one hyper-network per class;
LoRA in the layers that `model.lora` names (fused qkv of the adapted encoder blocks, all linear layers of the decoder's transformer).
"""

from dataclasses import replace

from pfedsam.federation.methods import fedavg
from pfedsam.federation.methods.base import place
from pfedsam.model.options import ModelOptions
from pfedsam.model.partition import Placement


def placement(options: ModelOptions) -> Placement:
    """LoRA and output layers are shared."""
    return place(options, shared=("lora_a", "lora_b", "output_layers"))


METHOD = replace(
    fedavg.METHOD,
    name="flap-sam",
    summary="LoRA and output layers averaged, class tokens frozen (Asokan et al., 2024); nothing is personal",
    placement=placement,
)
