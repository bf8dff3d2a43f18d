"""The methods, by name; one file each."""

from collections.abc import Mapping
from types import MappingProxyType

from pydantic import Field, create_model

from pfedsam.core.errors import OptionError
from pfedsam.core.options import Options
from pfedsam.federation.methods import (
    centralized,
    centralized_finetuned,
    ditto,
    fedadam,
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
    trimmed_mean,
)
from pfedsam.federation.methods.base import Method

_MODULES = (
    pfedsam,
    local_only,
    fedavg,
    fedprox,
    fedadam,
    trimmed_mean,
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

_OWN = {
    name: (type(method.own), Field(default=method.own, description=f"The own options of {name}."))
    for name, method in METHODS.items()
    if method.configure
}
MethodOptions: type[Options] = create_model("MethodOptions", __base__=Options, **_OWN)  # type: ignore[call-overload]
"""The own options of every method that has some, under its name."""


def configured(name: str, own: Options) -> Method:
    """The method of this name with its own options.

    Args:
        name: of the method.
        own: an instance of `MethodOptions`.

    Raises:
        OptionError: there is no such method.
    """
    method = find_method(name)
    return method.configure(getattr(own, name)) if method.configure else method


def find_method(name: str) -> Method:
    """The method of this name.

    Raises:
        OptionError: there is none.
    """
    if name not in METHODS:
        raise OptionError(f"There is no method {name!r}; known: {', '.join(METHODS)}.")
    return METHODS[name]
