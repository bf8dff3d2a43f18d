"""A local copy of LoRA and class tokens that replaces the shared ones in the personal model (ditto)."""

from torch import Tensor

from pfedsam.model.components.base import Assembly, Component, Read
from pfedsam.model.local_values import LocalCopy

_NAME = "personal_copy"


class PersonalCopy(Component):
    """A copy that starts with the shared values and is then independent of them."""

    groups = (_NAME,)
    local_only = True
    addition = True

    def attach(self, assembly: Assembly) -> dict[str, list[str]]:
        """A copy of each matrix of LoRA and of the class tokens."""
        self._values = LocalCopy(assembly.model, assembly.names("lora_a", "lora_b", "class_tokens"))
        return {_NAME: assembly.add(_NAME, self._values)}

    def swapped(self, read: Read) -> dict[str, Tensor]:
        """The personal copies, by the names of the shared parameters and in their shapes."""
        return self._values.values(read)

    def origins(self) -> dict[str, str]:
        """All local parameters."""
        return self._values.origins_in(_NAME)
