"""Error feedback: a site keeps the rounding error of its update and adds it to the next one.

Seide et al., "1-Bit Stochastic Gradient Descent", Interspeech 2014; Karimireddy et al., "Error Feedback Fixes SignSGD", ICML 2019,
algorithm 2. The sum of the decoded updates then differs from the sum of the trained changes only by the error of the last round.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pfedsam.core.tensors import NamedTensors


@dataclass(frozen=True)
class ErrorFeedback:
    """Adds the error of the last update and keeps that of the present one; for the methods see `federation.pipeline.base.Step`."""

    def __str__(self) -> str:
        return "add what rounding took from the last update"

    def apply(self, values: NamedTensors, received: NamedTensors, memory: NamedTensors) -> dict[str, Tensor]:
        """The values plus the errors of earlier updates, in their shapes; a tensor without an entry has no error."""
        return {name: value + memory.get(name, 0.0) for name, value in values.items()}

    def remember(self, values: NamedTensors, arrived: NamedTensors) -> dict[str, Tensor]:
        """The rounding errors, in the shapes of the values; 0 where values are not finite because the training diverged."""
        lost = {name: value - arrived[name].to(torch.float32) for name, value in values.items()}
        return {name: torch.where(value.isfinite(), value, 0.0) for name, value in lost.items()}
