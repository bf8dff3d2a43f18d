"""The backbone's own weights, where a method trains them."""

from typing import ClassVar

from pfedsam.model.components.base import NETWORK, Assembly, Component


class Pretrained(Component):
    """The weights of one part of the backbone, less what other components have put there or declared."""

    pretrained = True
    part: ClassVar[str]

    def attach(self, assembly: Assembly) -> dict[str, list[str]]:
        """Nothing is added; the part's parameters are named."""
        declared = {name for names in assembly.declared.values() for name in names}
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
    """What the mask decoder computes with, less its own output layers."""

    groups = ("decoder",)
    part = "decoder"


class NoPrompt(Pretrained):
    """The embedding that stands for the prompt that is not given."""

    groups = ("no_prompt",)
    part = "no_prompt"
