"""Centralized: one model trained on all sites' images in one place. The upper bound that privacy forbids.

It is local training at a site that has everybody's images, with as many steps as all sites together make.
"""

from dataclasses import replace

from pfedsam.federation.methods import local_only
from pfedsam.federation.roster import Roster

METHOD = replace(
    local_only.METHOD,
    name="centralized",
    summary="one model trained on the pooled images of all sites; breaks the promise, shows the bound",
    roster=Roster("pooled"),
)
