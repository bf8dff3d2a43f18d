"""The class tokens: a learned token for each class that replaces the decoder's own mask token."""

from torch import nn

from pfedsam.model.components.base import Assembly, Component


class ClassTokens(Component):
    """The class tokens `[C, e]`; each starts as the decoder's own mask token."""

    groups = ("class_tokens",)

    def attach(self, assembly: Assembly) -> dict[str, list[str]]:
        """One token for each class."""
        self._classes = assembly.classes
        tokens = assembly.backbone.class_token().repeat(assembly.classes, 1)
        return {"class_tokens": assembly.add("class_tokens", nn.Parameter(tokens))}

    def class_numbers(self) -> dict[str, tuple[int, ...]]:
        """The class number of each row."""
        return {"class_tokens": tuple(range(1, self._classes + 1))}
