"""Local parameters that stand in the place of others while the personal model computes.

No module knows of them: `swapped_parameters` puts their values where the modules look for their weights, and takes them away again. So the
shared model never sees them, and what is not used costs nothing.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class _OwnValues(nn.Module):
    """Parameters of a site's own, one for each of some of a model's parameters."""

    def __init__(self, model: nn.Module, names: Iterable[str], start: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.origins = {name.replace(".", "-"): name for name in names}
        """Own name to the name of the model's parameter."""
        for own, name in self.origins.items():
            self.register_parameter(own, nn.Parameter(start(model.get_parameter(name).detach())))


class LocalCopy(_OwnValues):
    """A site's own copy of some of a model's parameters; it starts as they are."""

    def __init__(self, model: nn.Module, names: Iterable[str]) -> None:
        """Copy the parameters of `model` called `names`."""
        super().__init__(model, names, torch.clone)

    def values(self, _: nn.Module) -> dict[str, Tensor]:
        """What stands in the place of each parameter that was copied, by that one's name."""
        return {name: self.get_parameter(own) for own, name in self.origins.items()}


class LocalDelta(_OwnValues):
    """What a site adds to some of a model's parameters; zero at first, so that it starts with theirs, and goes along as they change."""

    def __init__(self, model: nn.Module, names: Iterable[str]) -> None:
        """One difference for each parameter of `model` called `names`."""
        super().__init__(model, names, torch.zeros_like)

    def values(self, model: nn.Module) -> dict[str, Tensor]:
        """The sums that stand in the place of the parameters of `model`, by their names."""
        return {name: model.get_parameter(name) + self.get_parameter(own) for own, name in self.origins.items()}


class LocalLora(nn.Module):
    """A second LoRA on the same layers: B A + s B' A', computed as one product of the joined matrices; B' starts at zero."""

    def __init__(
        self, model: nn.Module, pairs: Iterable[tuple[str, str]], rank: int, generator: torch.Generator
    ) -> None:
        """Put a second pair of matrices beside each pair of `model`.

        Args:
            model: has the first LoRA.
            pairs: the names of A and B in each layer.
            rank: of the second LoRA; its updates are scaled by alpha / rank, with the first one's alpha.
            generator: for A'.
        """
        super().__init__()
        self.pairs = {a.split(".lora_")[0].replace(".", "-"): (a, b) for a, b in pairs}
        for layer, (a_name, b_name) in self.pairs.items():
            a, b = model.get_parameter(a_name), model.get_parameter(b_name)
            own = torch.empty(rank, a.shape[1]).uniform_(-(a.shape[1] ** -0.5), a.shape[1] ** -0.5, generator=generator)
            self.register_parameter(f"{layer}-a", nn.Parameter(own))
            self.register_parameter(f"{layer}-b", nn.Parameter(torch.zeros(b.shape[0], rank)))

    def values(self, first: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The joined matrices `[r + r', in]` and `[out, r + r']` by the first LoRA's names; `first` has its matrices."""
        found = {}
        for layer, (a_name, b_name) in self.pairs.items():
            a, b = first[a_name], first[b_name]
            own_a, own_b = self.get_parameter(f"{layer}-a"), self.get_parameter(f"{layer}-b")
            found[a_name] = torch.cat([a, own_a])
            found[b_name] = torch.cat([b, own_b * (len(a) / len(own_a))], dim=1)
        return found


def norm_names(modules: Mapping[str, nn.Module]) -> list[str]:
    """The parameters of every LayerNorm (also over channels) in these modules, by the modules' names."""
    return [
        f"{name}.{parameter}"
        for prefix, module in modules.items()
        for name, part in module.named_modules(prefix=prefix)
        if isinstance(part, nn.LayerNorm)
        for parameter, _ in part.named_parameters(recurse=False)
    ]


@contextmanager
def swapped_parameters(model: nn.Module, values: Mapping[str, Tensor]) -> Iterator[None]:
    """Within this context `model` computes with `values` in the place of its parameters of these names; gradients go to them."""
    places = [(model.get_submodule(name.rpartition(".")[0])._parameters, name.rpartition(".")[2]) for name in values]
    before = [parameters[last] for parameters, last in places]
    try:
        for (parameters, last), value in zip(places, values.values(), strict=True):
            parameters[last] = value  # type: ignore[assignment]  # as torch.func.functional_call does
        yield
    finally:
        for (parameters, last), parameter in zip(places, before, strict=True):
            parameters[last] = parameter
