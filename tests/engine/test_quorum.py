"""The message about a round with too few updates names the sites, their reasons, and what to do."""

import pytest

from pfedsam.engine.quorum import too_few_updates
from pfedsam.federation.messages import REFUSALS

AHEAD = REFUSALS["wrong-round"]


def test_every_site_without_an_update_is_named_with_its_reason() -> None:
    refused, silent = {"a": "site a sent an update that is not finite."}, {"b": "no reply within 5 s", "c": "it left."}
    assert too_few_updates("0123", 2, 1, "the quorum is 3", refused, silent) == (
        "round 3 has 1 accepted update(s); the quorum is 3. site a sent an update that is not finite. b: no reply within 5 s. c: it left. "
        "The shared parameters stay as they were before it. Go on from there by submitting the study again, or a run of this machine with "
        "--resume."
    )


@pytest.mark.parametrize(
    ("accepted", "rejected", "reasons", "copy"),
    [
        (0, {}, {"a": AHEAD, "b": AHEAD}, True),
        (0, {}, {"a": AHEAD, "b": "it is not connected"}, True),
        (0, {}, {"a": "it is not connected", "b": "no reply within 5 s"}, False),
        (1, {}, {"a": AHEAD}, False),
        (0, {"b": "site b sent something else."}, {"a": AHEAD}, False),
    ],
)
def test_a_folder_restored_from_a_copy_is_recognised_if_no_site_trained_the_round(
    accepted: int, rejected: dict[str, str], reasons: dict[str, str], *, copy: bool
) -> None:
    text = too_few_updates("0123", 2, accepted, "the quorum is 2", rejected, reasons)
    assert ("restored from a copy" in text) is copy
    assert ("rollback FOLDER 0123 --skip-to ROUND" in text) is copy
    assert ("submitting the study again" in text) is not copy
