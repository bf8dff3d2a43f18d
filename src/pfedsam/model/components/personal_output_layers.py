"""A local version of the output layers, used by the personal model instead of the shared one."""

from torch import Tensor

from pfedsam.model.components.base import Assembly, Component, Read
from pfedsam.model.local_values import LocalCopy, LocalDelta

_NAME = "personal_output_layers"


class PersonalOutputLayers(Component):
    """A difference that is added to the shared output layers, or a copy that replaces them."""

    groups = (_NAME,)
    local_only = True
    addition = True

    def __init__(self, *, copy: bool) -> None:
        """Make a copy, which ignores later changes of the shared layers, or a difference, which is added to their current values."""
        self.copy = copy

    def attach(self, assembly: Assembly) -> dict[str, list[str]]:
        """One value for each parameter of the output layers."""
        kind = LocalCopy if self.copy else LocalDelta
        self._values = kind(assembly.model, assembly.names("output_layers"))
        return {_NAME: assembly.add(_NAME, self._values)}

    def swapped(self, read: Read) -> dict[str, Tensor]:
        """The local output layers, by the names of the shared parameters and in their shapes."""
        return self._values.values(read)

    def origins(self) -> dict[str, str]:
        """All local parameters if this is a copy, else none."""
        return self._values.origins_in(_NAME) if self.copy else {}
