"""Clipping: a site's change of the shared parameters in one round is scaled down if its L2 norm is above a bound.

McMahan et al., "Learning Differentially Private Recurrent Language Models", ICLR 2018, section 2.2 (flat clipping). Clipping bounds the
contribution of one site to the average. Alone it does not give differential privacy, which also needs noise.
"""

from dataclasses import dataclass

from torch import Tensor

from pfedsam.core.tensors import NamedTensors
from pfedsam.federation.bounds import change_norm


@dataclass(frozen=True)
class Clip:
    """Scales the change down; for the methods see `federation.pipeline.base.Step`."""

    norm: float
    """The largest L2 norm over all shared parameters together."""

    def __str__(self) -> str:
        return f"scale the change down to an L2 norm of {self.norm:g}"

    def apply(self, values: NamedTensors, received: NamedTensors, memory: NamedTensors) -> dict[str, Tensor]:
        """The received values plus the scaled change, in their shapes; a change below the bound, or one that is not finite, is kept."""
        norm = change_norm(received, values)
        if not self.norm < norm < float("inf"):
            return dict(values)
        return {name: received[name] + (value - received[name]) * (self.norm / norm) for name, value in values.items()}

    def remember(self, values: NamedTensors, arrived: NamedTensors) -> dict[str, Tensor]:
        """Nothing is kept: the part of the change that was cut off is not sent later."""
        return {}
