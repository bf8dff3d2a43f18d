"""Centralized training, then local fine-tuning: each site continues to train the pooled model alone on its own images.

This is the upper bound for personal methods, and it does not preserve privacy either. Each site does `training.final_steps` steps, as many
as with every method with local parameters after its last aggregation, with a new optimiser state.
"""

from dataclasses import replace

from pfedsam.federation.methods import centralized
from pfedsam.federation.roster import Roster

METHOD = replace(
    centralized.METHOD,
    name="centralized-finetuned",
    summary="the pooled model, fine-tuned by each site alone; not private, an upper bound for personal models",
    roster=Roster("pooled", each_finalizes=True),
)
