"""Keys of a configuration that have another name now. A file that still has the old one is refused with the new one."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, NamedTuple


class NewName(NamedTuple):
    """Where an option stands now."""

    path: str
    change: str = ""
    """How its value differs from before; empty where it does not."""

    def __str__(self) -> str:
        return f"this option is {self.path} now" + (f"; {self.change}" if self.change else "")


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
"""Old path to new name, of every key that was renamed since version 0.1."""
