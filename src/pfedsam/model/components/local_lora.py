"""A second, local LoRA on the layers of the shared one (after FedDPA)."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from pfedsam.model.components.base import Assembly, Component, Read

_NAME = "local_lora"


class LocalLora(Component):
    """Local low-rank updates that are added to the shared ones."""

    groups = (_NAME,)
    local_only = True
    addition = True

    def __init__(self, rank: int) -> None:
        """Updates of this rank."""
        self.rank = rank

    def attach(self, assembly: Assembly) -> dict[str, list[str]]:
        """A pair of matrices beside each pair of the shared LoRA."""
        pairs = zip(assembly.names("lora_a"), assembly.names("lora_b"), strict=True)
        self._pairs = LoraPairs(assembly.model, pairs, self.rank, assembly.generator)
        return {_NAME: assembly.add(_NAME, self._pairs)}

    def swapped(self, read: Read) -> dict[str, Tensor]:
        """The concatenated matrices of both, by the names of the shared LoRA's matrices."""
        return self._pairs.values(read)


class LoraPairs(nn.Module):
    """A second LoRA on the same layers: B A + s B' A', computed as one product of the concatenated matrices; B' starts at zero."""

    def __init__(
        self, model: nn.Module, pairs: Iterable[tuple[str, str]], rank: int, generator: torch.Generator
    ) -> None:
        """Make a second pair of matrices for each pair of `model`.

        Args:
            model: the model with the first LoRA.
            pairs: the names of A and B in each layer.
            rank: rank of the second LoRA; its updates are scaled by alpha / rank, with the first one's alpha.
            generator: source of the random values of A'.
        """
        super().__init__()
        self.pairs = {a.split(".lora_")[0].replace(".", "-"): (a, b) for a, b in pairs}
        for layer, (a_name, b_name) in self.pairs.items():
            a, b = model.get_parameter(a_name), model.get_parameter(b_name)
            own = torch.empty(rank, a.shape[1]).uniform_(-(a.shape[1] ** -0.5), a.shape[1] ** -0.5, generator=generator)
            self.register_parameter(f"{layer}-a", nn.Parameter(own))
            self.register_parameter(f"{layer}-b", nn.Parameter(torch.zeros(b.shape[0], rank)))

    def values(self, read: Read) -> dict[str, Tensor]:
        """The concatenated matrices `[r + r', in]` and `[out, r + r']` by the first LoRA's names; `read` returns its matrices."""
        found = {}
        for layer, (a_name, b_name) in self.pairs.items():
            a, b = read(a_name), read(b_name)
            own_a, own_b = self.get_parameter(f"{layer}-a"), self.get_parameter(f"{layer}-b")
            found[a_name] = torch.cat([a, own_a])
            found[b_name] = torch.cat([b, own_b * (len(a) / len(own_a))], dim=1)
        return found
