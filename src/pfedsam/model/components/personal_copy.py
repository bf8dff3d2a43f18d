"""The site's own copy of LoRA and class tokens, in place of the shared ones (ditto)."""

from torch import Tensor

from pfedsam.model.components.base import Assembly, Component, Read
from pfedsam.model.local_values import LocalCopy

_NAME = "personal_copy"


class PersonalCopy(Component):
    """It starts as the shared values and goes its own way."""

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
        """All of them."""
        return self._values.origins_in(_NAME)
