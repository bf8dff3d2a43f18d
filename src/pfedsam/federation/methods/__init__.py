"""The methods, by name; one file each."""

from collections.abc import Mapping
from types import MappingProxyType

from pfedsam.core.errors import OptionError
from pfedsam.federation.methods import (
    centralized,
    centralized_finetuned,
    ditto,
    fedavg,
    fedbn,
    feddpa,
    fedmsa,
    fedper,
    fedprox,
    fedrep,
    fedsa_lora,
    fedsam,
    ffa_lora,
    flap_sam,
    local_only,
    pfedsam,
)
from pfedsam.federation.methods.base import Method

_MODULES = (
    pfedsam,
    local_only,
    fedavg,
    fedprox,
    fedsam,
    fedmsa,
    flap_sam,
    ffa_lora,
    fedper,
    fedrep,
    ditto,
    fedbn,
    fedsa_lora,
    feddpa,
    centralized,
    centralized_finetuned,
)
METHODS: Mapping[str, Method] = MappingProxyType({module.METHOD.name: module.METHOD for module in _MODULES})


def find_method(name: str) -> Method:
    """The method of this name.

    Raises:
        OptionError: there is none.
    """
    if name not in METHODS:
        raise OptionError(f"There is no method {name!r}; known: {', '.join(METHODS)}.")
    return METHODS[name]
