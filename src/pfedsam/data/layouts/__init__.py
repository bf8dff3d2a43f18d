"""Published layouts by name; one file each. `base.write_sites` turns one into sites."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from pfedsam.core.errors import OptionError
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
from pfedsam.data.layouts.base import Imported, Layout, write_sites

__all__ = ["LAYOUTS", "Imported", "Layout", "find_layout", "write_sites"]

_MODULES = (saml, prostate_slices, fundus, mms, acdc, dsb2018, retina, nnunet, msd, fets, folders)
LAYOUTS: Mapping[str, Layout] = MappingProxyType({module.LAYOUT.name: module.LAYOUT for module in _MODULES})


def find_layout(name: str | None, source: Path) -> Layout:
    """The layout of this name, or the only one that finds cases in a folder.

    Raises:
        OptionError: There is no such layout, or none or several fit.
    """
    if name is not None:
        if name not in LAYOUTS:
            raise OptionError(f"There is no layout {name!r}; known: {', '.join(LAYOUTS)}.")
        return LAYOUTS[name]
    fitting = [layout for layout in LAYOUTS.values() if next(layout.find(source), None) is not None]
    if len(fitting) > 1:  # a layout with a name of its own goes before any folder with images/ and masks/
        fitting = [layout for layout in fitting if layout.name != folders.LAYOUT.name]
    if len(fitting) != 1:
        what = "none" if not fitting else ", ".join(layout.name for layout in fitting)
        raise OptionError(
            f"The layout of {str(source)!r} is not clear (fits: {what}). Name it by --layout: {', '.join(LAYOUTS)}."
        )
    return fitting[0]
