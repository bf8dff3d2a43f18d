"""Centralized: one model trained on all sites' images in one place. It gives an upper bound and does not preserve privacy.

This is local training at one site that has the images of all sites, with as many steps as all sites together would do.
"""

from dataclasses import replace

from pfedsam.federation.methods import local_only
from pfedsam.federation.roster import Roster

METHOD = replace(
    local_only.METHOD,
    name="centralized",
    summary="one model trained on the pooled images of all sites; not private, an upper bound",
    roster=Roster("pooled"),
)
