"""Local normalisation layers in place of those of the backbone and of the output layers (after FedBN)."""

from torch import Tensor

from pfedsam.model.components.base import NETWORK, Assembly, Component, Read
from pfedsam.model.local_values import LocalCopy, norm_names

_NAME = "norms"


class Norms(Component):
    """Scales and shifts of every normalisation that follows the frozen blocks."""

    groups = (_NAME,)
    local_only = True
    addition = True

    def attach(self, assembly: Assembly) -> dict[str, list[str]]:
        """A copy of each, also of those in the output layers unless the site has its own version of these layers."""
        normed = assembly.backbone.normed(assembly.first_adapted)
        modules = {f"{NETWORK}.{name}": module for name, module in normed.items()}
        if "personal_output_layers" not in assembly.declared:
            modules["output_layers"] = assembly.model.get_submodule("output_layers")
        self._values = LocalCopy(assembly.model, norm_names(modules))
        assembly.withhold(self._values.origins.values())
        return {_NAME: assembly.add(_NAME, self._values)}

    def swapped(self, read: Read) -> dict[str, Tensor]:
        """The local scales and shifts, of shape [d], by the names of the backbone's."""
        return self._values.values(read)
