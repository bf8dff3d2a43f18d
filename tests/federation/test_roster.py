"""Which sites get requests for which task: all sites for every task, or one pooled site that trains for the others."""

from typing import get_args

import pytest

from pfedsam.federation.roster import EVERY_SITE, Roster
from pfedsam.federation.tasks import Task

TASKS = get_args(Task)


def asked(roster: Roster, site: str) -> set[str]:
    return {task for task in TASKS if roster.asks(site, task)}  # type: ignore[arg-type]


def test_without_a_pool_every_site_does_everything() -> None:
    assert asked(EVERY_SITE, "north") == set(TASKS)
    assert EVERY_SITE.sites(["north", "south"]) == ["north", "south"]


@pytest.mark.parametrize(
    ("each_finalizes", "pool", "site"),
    [
        (False, {"join", "train", "finalize"}, {"summarize", "validate", "test"}),
        (True, {"join", "train"}, {"summarize", "finalize", "validate", "test"}),
    ],
)
def test_with_a_pool_one_site_trains_and_the_others_are_scored(each_finalizes: bool, pool: set, site: set) -> None:
    roster = Roster("pooled", each_finalizes)
    assert (asked(roster, "pooled"), asked(roster, "north")) == (pool, site)
    assert roster.sites(["north"]) == ["pooled", "north"]
