"""Local parameters that replace others while the personal model computes.

`swapped_parameters` replaces the weights of the modules by these values and restores the modules' own parameters afterwards. So
the shared model never computes with the local values, and the modules need no code for them.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class _OwnValues(nn.Module):
    """Local parameters, one for each of some of a model's parameters."""

    def __init__(self, model: nn.Module, names: Iterable[str], start: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.origins = {name.replace(".", "-"): name for name in names}
        """Name of the local parameter -> name of the model's parameter."""
        for own, name in self.origins.items():
            self.register_parameter(own, nn.Parameter(start(model.get_parameter(name).detach())))

    def origins_in(self, component: str) -> dict[str, str]:
        """`origins`, with the names that the local parameters have in a model in which this module is called `component`."""
        return {f"{component}.{own}": name for own, name in self.origins.items()}


class LocalCopy(_OwnValues):
    """A site's own copy of some of a model's parameters, which starts with their values."""

    def __init__(self, model: nn.Module, names: Iterable[str]) -> None:
        """Copy the parameters of `model` called `names`."""
        super().__init__(model, names, torch.clone)

    def values(self, _: Callable[[str], Tensor]) -> dict[str, Tensor]:
        """The values that replace the copied parameters, by the names of those parameters and in their shapes."""
        return {name: self.get_parameter(own) for own, name in self.origins.items()}


class LocalDelta(_OwnValues):
    """A site's difference that is added to some of a model's parameters: zero at first, and still added when these change."""

    def __init__(self, model: nn.Module, names: Iterable[str]) -> None:
        """Make one difference for each of the parameters `names` of `model`."""
        super().__init__(model, names, torch.zeros_like)

    def values(self, read: Callable[[str], Tensor]) -> dict[str, Tensor]:
        """The sums that replace the model's parameters, by their names and in their shapes; `read` returns those parameters."""
        return {name: read(name) + self.get_parameter(own) for own, name in self.origins.items()}


def norm_names(modules: Mapping[str, nn.Module]) -> list[str]:
    """The parameters of every normalisation in these modules, by the modules' names: LayerNorm, also over channels, and InstanceNorm."""
    return [
        f"{name}.{parameter}"
        for prefix, module in modules.items()
        for name, part in module.named_modules(prefix=prefix)
        if isinstance(part, nn.LayerNorm | nn.InstanceNorm2d)
        for parameter, _ in part.named_parameters(recurse=False)
    ]


@contextmanager
def swapped_parameters(model: nn.Module, values: Mapping[str, Tensor]) -> Iterator[None]:
    """Within this context `model` computes with `values`, of the same shapes, instead of its parameters; gradients go to the values."""
    places = [(model.get_submodule(name.rpartition(".")[0])._parameters, name.rpartition(".")[2]) for name in values]
    before = [parameters[last] for parameters, last in places]
    try:
        for (parameters, last), value in zip(places, values.values(), strict=True):
            parameters[last] = value  # type: ignore[assignment]  # as torch.func.functional_call does
        yield
    finally:
        for (parameters, last), parameter in zip(places, before, strict=True):
            parameters[last] = parameter
