"""An optimiser's state as named tensors, so that it can be stored without pickle and taken up again to the bit."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pfedsam.core.errors import StoreError
from pfedsam.core.tensors import NamedTensors


def pack(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """The optimiser's state by `<parameter>:<entry>`, in the parameter's shape or scalar; parameters without a state are left out."""
    return {
        f"{name}:{entry}": value.detach().to("cpu", copy=True)
        for name, parameter in parameters.items()
        for entry, value in optimizer.state.get(parameter, {}).items()
    }


def unpack(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], packed: NamedTensors) -> None:
    """Put a packed state back into `optimizer`.

    Raises:
        StoreError: when the state names a parameter that is not there.
    """
    for key, value in packed.items():
        name, entry = key.rsplit(":", 1)
        if name not in parameters:
            raise StoreError(
                f"The stored optimiser state names {name!r}, which this model does not train. "
                "It was written under another configuration: start a new run folder."
            )
        parameter = parameters[name]
        # AdamW counts its steps on the CPU, wherever the parameter is.
        optimizer.state[parameter][entry] = value.to("cpu" if entry == "step" else parameter.device, copy=True)
