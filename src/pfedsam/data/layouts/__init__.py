"""Published layouts by name, each in one file; `base.write_sites` converts a data set into sites."""

from collections.abc import Mapping
from pathlib import Path

from pfedsam.core.errors import OptionError
from pfedsam.core.registry import by_name
from pfedsam.data.layouts import (
    acdc,
    dsb2018,
    fets,
    folders,
    fundus,
    mms,
    msd,
    nnunet,
    prostate_slices,
    retina,
    saml,
)
from pfedsam.data.layouts.base import Imported, Layout, refuse_missing, write_sites

__all__ = ["LAYOUTS", "Imported", "Layout", "find_layout", "write_sites"]

_MODULES = (saml, prostate_slices, fundus, mms, acdc, dsb2018, retina, nnunet, msd, fets, folders)
LAYOUTS: Mapping[str, Layout] = by_name("layout", [module.LAYOUT for module in _MODULES])


def find_layout(name: str | None, source: Path) -> Layout:
    """The layout of this name; without a name, the only one that finds cases in a folder.

    Raises:
        OptionError: there is no such layout, or none or several fit.
        DataError: the folder does not exist, or a file in it cannot be used.
    """
    if name is not None:
        if name not in LAYOUTS:
            raise OptionError(f"There is no layout {name!r}; known: {', '.join(LAYOUTS)}.")
        return LAYOUTS[name]
    refuse_missing(source)
    fitting = _fitting(source)
    if len(fitting) != 1:
        what = ", ".join(fitting) or "none"
        raise OptionError(
            f"The layout of {str(source)!r} is not clear (fits: {what}). Name it by --layout: {', '.join(LAYOUTS)}."
        )
    return LAYOUTS[fitting[0]]


def _fitting(source: Path) -> list[str]:
    """Names of the layouts that find cases in a folder; that of any folder with images/ and masks/ only if no other one does."""
    published = [name for name in LAYOUTS if name != folders.LAYOUT.name and _fits(name, source)]
    return published or [name for name in (folders.LAYOUT.name,) if _fits(name, source)]


def _fits(name: str, source: Path) -> bool:
    return any(case.mask for case in LAYOUTS[name].find(source))
