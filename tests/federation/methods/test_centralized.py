"""Centralized: local training at a site that has every image."""

from pfedsam.federation.methods import METHODS
from pfedsam.federation.roster import Roster


def test_it_is_local_training_on_pooled_images(make) -> None:
    assert make("centralized").local == make("local-only").local
    assert make("centralized").shared == set()
    assert METHODS["centralized"].roster == Roster("pooled")
