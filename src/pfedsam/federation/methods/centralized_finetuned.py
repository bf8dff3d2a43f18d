"""Centralized, then local fine-tuning: the pooled model, which each site then trains alone on its own images.

The upper bound for personal methods, which privacy forbids as well. The steps at a site are `training.final_steps`, as many as every
personal method has after its last aggregation; the optimiser starts anew.
"""

from dataclasses import replace

from pfedsam.federation.methods import centralized
from pfedsam.federation.roster import Roster

METHOD = replace(
    centralized.METHOD,
    name="centralized-finetuned",
    summary="the pooled model, fine-tuned by each site alone; breaks the promise, shows the bound of personal models",
    roster=Roster("pooled", each_finalizes=True),
)
