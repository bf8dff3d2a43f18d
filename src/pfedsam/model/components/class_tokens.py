"""The class tokens: a learned token for each class in the place of the decoder's own mask token."""

from torch import nn

from pfedsam.model.components.base import Assembly, Component


class ClassTokens(Component):
    """`[C, e]`: each starts as the decoder's own mask token."""

    groups = ("class_tokens",)

    def attach(self, assembly: Assembly) -> dict[str, list[str]]:
        """One token for each class."""
        self._classes = assembly.classes
        tokens = assembly.backbone.class_token().repeat(assembly.classes, 1)
        return {"class_tokens": assembly.add("class_tokens", nn.Parameter(tokens))}

    def class_numbers(self) -> dict[str, tuple[int, ...]]:
        """A row for each class."""
        return {"class_tokens": tuple(range(1, self._classes + 1))}
