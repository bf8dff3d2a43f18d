"""An optimiser's state as named tensors, so that it can be stored without pickle and restored exactly."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pfedsam.core.errors import StoreError
from pfedsam.core.tensors import NamedTensors


def pack(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """The optimiser's state by `<parameter>:<entry>`, in the parameter's shape or as a scalar; parameters without a state are left out."""
    return {
        f"{name}:{entry}": value.detach().to("cpu", copy=True)
        for name, parameter in parameters.items()
        for entry, value in optimizer.state.get(parameter, {}).items()
    }


def unpack(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], packed: NamedTensors) -> None:
    """Restore a packed state in `optimizer`.

    Raises:
        StoreError: the state contains a parameter that is not trained.
    """
    for key, value in packed.items():
        name, entry = key.rsplit(":", 1)
        if name not in parameters:
            raise StoreError(
                f"The stored optimiser state contains {name!r}, which this model does not train. "
                "It was written with another configuration: start the run in a new folder."
            )
        parameter = parameters[name]
        optimizer.state[parameter][entry] = value.to(parameter.device, copy=True)
