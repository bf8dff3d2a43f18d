"""The backbone's own weights, for methods that train them."""

from itertools import chain
from typing import ClassVar

from pfedsam.model.components.base import NETWORK, Assembly, Component


class Pretrained(Component):
    """The weights of one part of the backbone, without those that other components have added or declared."""

    pretrained = True
    part: ClassVar[str]

    def attach(self, assembly: Assembly) -> dict[str, list[str]]:
        """Declare the parameters of the part; nothing is added to the model."""
        declared = set(chain.from_iterable(assembly.declared.values()))
        starts = tuple(f"{NETWORK}.{start}" for start in assembly.backbone.parts[self.part])
        names = [name for name, _ in assembly.model.named_parameters() if name.startswith(starts)]
        return {self.part: [name for name in names if name not in declared]}


class Encoder(Pretrained):
    """The image encoder."""

    groups = ("encoder",)
    part = "encoder"
    addition = True
    from_pixels = True


class Decoder(Pretrained):
    """The mask decoder without its own output layers and the parts that are not used."""

    groups = ("decoder",)
    part = "decoder"


class NoPrompt(Pretrained):
    """The embedding that replaces the prompt, because no prompt is given."""

    groups = ("no_prompt",)
    part = "no_prompt"
