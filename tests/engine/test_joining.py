"""The sites for which a study waits, and the reasons of the missing sites in words."""

import pytest

from pfedsam.engine.joining import WAITS, awaited, reasons_in_words, wait_in_words
from pfedsam.federation.messages import REFUSALS

UNAPPROVED, DATA = REFUSALS["not-approved"], REFUSALS["data"]


@pytest.mark.parametrize(
    ("joined", "reasons", "waits"),
    [
        (0, {"a": UNAPPROVED, "b": UNAPPROVED}, ["a", "b"]),
        (0, {"a": UNAPPROVED, "b": DATA}, []),  # one site is fewer than the quorum
        (1, {"a": UNAPPROVED, "b": DATA}, ["a"]),
        (2, {"a": UNAPPROVED}, ["a"]),
        (1, {"silent": "no reply"}, ["silent"]),
        (2, {"silent": "no reply"}, []),  # the quorum is reached
        (2, {"silent": "no reply", "a": UNAPPROVED}, ["a"]),
        (2, {}, []),
    ],
)
def test_a_study_with_a_quorum_of_two_waits_for_the_sites_that_may_still_join(
    joined: int, reasons: dict[str, str], waits: list[str]
) -> None:
    assert awaited(reasons, unheard={"silent"} & set(reasons), joined=joined, quorum=2) == waits


def test_sites_with_one_reason_are_named_together() -> None:
    reasons = {"north": UNAPPROVED, "west": "no reply within 5 s", "south": UNAPPROVED}
    assert reasons_in_words(reasons) == f"north, south: {UNAPPROVED}; west: no reply within 5 s"
    assert wait_in_words(list(reasons), reasons) == "waits for the approval of north, south and a reply of west"
    assert wait_in_words(["west"], reasons) == WAITS + "a reply of west"
