"""Keys of a configuration that were renamed. A file with an old name is refused with a message that gives the new name."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, NamedTuple


class NewName(NamedTuple):
    """The present name of an option."""

    path: str
    change: str = ""
    """How its value must change; empty if the value stays the same."""

    def __str__(self) -> str:
        return f"this option is now called {self.path}" + (f"; {self.change}" if self.change else "")


RENAMED: Final[Mapping[str, NewName]] = MappingProxyType(
    {
        "training.opening": NewName(
            "training.shared_warmup_rounds", "give a number of rounds, not a part of them (0.5 of 36 rounds are 18)"
        ),
        "training.fedprox_mu": NewName("method_options.fedprox.mu"),
        "training.ditto_lambda": NewName("method_options.ditto.proximal_weight"),
        "training.distillation.trust": NewName("training.distillation.confidence_weighting"),
        "model.detail": NewName("model.image_skip"),
    }
)
"""Old path -> new name, for every key that was renamed since version 0.1."""
