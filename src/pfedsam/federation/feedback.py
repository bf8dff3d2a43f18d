"""Error feedback: what rounding took from an update stays at its site and is added to the next one.

Seide et al., "1-Bit Stochastic Gradient Descent", Interspeech 2014; Karimireddy et al., "Error Feedback Fixes SignSGD", ICML 2019,
algorithm 2. Over many rounds the sum of what arrived then differs from the sum of what was trained by the last round's loss alone.
"""

from dataclasses import replace

import torch
from torch import Tensor

from pfedsam.core.tensors import NamedTensors
from pfedsam.federation.codec import Codec
from pfedsam.federation.update import Update, UpdateSpec, decode, encode


def encode_with_feedback(
    update: Update, codec: Codec, *, received: NamedTensors, feedback: NamedTensors
) -> tuple[bytes, dict[str, Tensor]]:
    """The message of an update that makes good for what earlier messages lost, and what this one loses.

    Args:
        update: with the tensors as the site trained them.
        codec: of the run.
        received: the shared tensors that the site started the round from.
        feedback: what earlier messages lost, float32 by name; a name that is missing has lost nothing.

    Returns:
        The message, and the next `feedback`: local to the site, none where nothing is lost. Where training diverged there is
        nothing to make good for, and it is 0.
    """
    if codec.lossless:
        return encode(update, codec, received), {}
    wanted = {name: value.to(torch.float32) + feedback.get(name, 0.0) for name, value in update.tensors.items()}
    sent = {name: value.to(update.tensors[name].dtype) for name, value in wanted.items()}
    message = encode(replace(update, tensors=sent), codec, received)
    # The server's own way of reading it, so that this is what it lacks, to the bit.
    arrived = decode(message, UpdateSpec.of(update.tensors, codec), received).tensors
    lost = {name: wanted[name] - arrived[name].to(torch.float32) for name in wanted}
    return message, {name: torch.where(value.isfinite(), value, 0.0) for name, value in lost.items()}
