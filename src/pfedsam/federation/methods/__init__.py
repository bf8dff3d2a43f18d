"""The methods, by name; one file each."""

from collections.abc import Mapping
from types import MappingProxyType

from pfedsam.core.errors import OptionError
from pfedsam.federation.methods import centralized, fedavg, local_only, pfedsam
from pfedsam.federation.methods.base import Method

METHODS: Mapping[str, Method] = MappingProxyType(
    {module.METHOD.name: module.METHOD for module in (pfedsam, fedavg, local_only, centralized)}
)


def find_method(name: str) -> Method:
    """The method of this name.

    Raises:
        OptionError: there is none.
    """
    if name not in METHODS:
        raise OptionError(f"There is no method {name!r}; known: {', '.join(METHODS)}.")
    return METHODS[name]
