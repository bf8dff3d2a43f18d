"""The registry of methods; each method is one file."""

from collections.abc import Mapping, Sequence

from pydantic import Field, create_model

from pfedsam.core.errors import OptionError
from pfedsam.core.options import Options
from pfedsam.core.registry import by_name
from pfedsam.federation.methods import (
    centralized,
    centralized_finetuned,
    ditto,
    fedadam,
    fedavg,
    fedavg_finetuned,
    fedavgm,
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
    unet_fedavg,
    unet_fedbn,
    unet_local,
)
from pfedsam.federation.methods.base import Method

_MODULES = (
    pfedsam,
    local_only,
    fedavg,
    fedavg_finetuned,
    fedprox,
    fedavgm,
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
    unet_local,
    unet_fedavg,
    unet_fedbn,
    centralized,
    centralized_finetuned,
)


def registered(methods: Sequence[Method]) -> Mapping[str, Method]:
    """The methods by their names, in their order.

    Raises:
        OptionError: two methods have the same name, or the function `configure` of a method makes another method.
    """
    for method in methods:
        made = method.configure(method.own) if method.configure else method
        if made.name != method.name:
            raise OptionError(
                f"The function 'configure' of the method {method.name!r} makes the method {made.name!r}, which a run would train instead. "
                f"Write a function that makes {method.name!r}; or, if it has no options of its own, give configure=None."
            )
    return by_name("method", methods)


METHODS: Mapping[str, Method] = registered([module.METHOD for module in _MODULES])

_OWN = {
    name: (type(method.own), Field(default=method.own, description=f"Options of the method {name}."))
    for name, method in METHODS.items()
    if method.configure
}
MethodOptions: type[Options] = create_model("MethodOptions", __base__=Options, **_OWN)  # type: ignore[call-overload]
"""The options of the methods that have options of their own, under the method's name."""


def configured(name: str, own: Options) -> Method:
    """The method with this name, configured with its own options.

    Args:
        name: the method's name.
        own: an instance of `MethodOptions`.

    Raises:
        OptionError: no method has this name.
    """
    method = find_method(name)
    return method.configure(getattr(own, name)) if method.configure else method


def find_method(name: str) -> Method:
    """The method with this name.

    Raises:
        OptionError: no method has this name.
    """
    if name not in METHODS:
        raise OptionError(f"There is no method {name!r}; known: {', '.join(METHODS)}.")
    return METHODS[name]
