"""Error feedback: what rounding took from an update stays at its site and is added to the next one.

Seide et al., "1-Bit Stochastic Gradient Descent", Interspeech 2014; Karimireddy et al., "Error Feedback Fixes SignSGD", ICML 2019,
algorithm 2. Over many rounds the sum of what arrived then differs from the sum of what was trained by the last round's loss alone.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pfedsam.core.tensors import NamedTensors


@dataclass(frozen=True)
class ErrorFeedback:
    """Adds what the last message lost, and keeps what this one loses. See `federation.pipeline.base.Step`."""

    def __str__(self) -> str:
        return "add what rounding took from the last update"

    def apply(self, values: NamedTensors, received: NamedTensors, memory: NamedTensors) -> dict[str, Tensor]:
        """The values plus what is missing from earlier messages, in their shapes; a name without an entry has lost nothing."""
        return {name: value + memory.get(name, 0.0) for name, value in values.items()}

    def remember(self, values: NamedTensors, arrived: NamedTensors) -> dict[str, Tensor]:
        """What the message lacks, in the shapes of the values. Where training diverged there is nothing to make good for, and it is 0."""
        lost = {name: value - arrived[name].to(torch.float32) for name, value in values.items()}
        return {name: torch.where(value.isfinite(), value, 0.0) for name, value in lost.items()}
