"""Centralized, then each site alone."""

from pfedsam.federation.methods import METHODS
from pfedsam.federation.roster import Roster
from pfedsam.training.options import TrainingOptions


def test_it_is_centralized_with_an_end_at_each_site(make) -> None:
    made, method = make("centralized-finetuned"), METHODS["centralized-finetuned"]
    assert made.local == make("centralized").local
    assert made.shared == set()
    assert method.roster == Roster("pooled", each_finalizes=True)
    assert [phase.trains for phase in method.final(TrainingOptions(final_steps=3))] == [("local",)]
