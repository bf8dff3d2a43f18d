"""The site's own version of the output layers, beside the shared one."""

from torch import Tensor

from pfedsam.model.components.base import Assembly, Component, Read
from pfedsam.model.local_values import LocalCopy, LocalDelta

_NAME = "personal_output_layers"


class PersonalOutputLayers(Component):
    """A difference that is added to the shared output layers, or a copy in their place."""

    groups = (_NAME,)
    local_only = True
    addition = True

    def __init__(self, *, copy: bool) -> None:
        """A copy goes its own way; a difference goes along as the shared layers change."""
        self.copy = copy

    def attach(self, assembly: Assembly) -> dict[str, list[str]]:
        """One value for each parameter of the output layers."""
        kind = LocalCopy if self.copy else LocalDelta
        self._values = kind(assembly.model, assembly.names("output_layers"))
        return {_NAME: assembly.add(_NAME, self._values)}

    def swapped(self, read: Read) -> dict[str, Tensor]:
        """The site's output layers, by the names of the shared parameters and in their shapes."""
        return self._values.values(read)

    def origins(self) -> dict[str, str]:
        """Those of a copy."""
        return self._values.origins_in(_NAME) if self.copy else {}
