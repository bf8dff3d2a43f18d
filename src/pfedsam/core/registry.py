"""Tables of the parts that are found by their name, such as methods and layouts."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Protocol, TypeVar

from pfedsam.core.errors import OptionError


class Named(Protocol):
    """Anything with a name."""

    @property
    def name(self) -> str:
        """The name by which it is found."""


N = TypeVar("N", bound=Named)


def by_name(kind: str, parts: Sequence[N]) -> Mapping[str, N]:
    """The parts by their names, in their order.

    Args:
        kind: what the parts are, for the message.
        parts: the parts.

    Raises:
        OptionError: two parts have the same name, so that one would silently take the place of the other.
    """
    names = [part.name for part in parts]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise OptionError(f"Two files define the {kind} {twice[0]!r}: give each {kind} a name of its own.")
    return MappingProxyType(dict(zip(names, parts, strict=True)))
