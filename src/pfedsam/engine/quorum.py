"""The message about a round with too few accepted updates: it names every site without one, with the reason, and says what to do."""

from collections.abc import Mapping

from pfedsam.federation.messages import REFUSALS
from pfedsam.federation.update import label


def too_few_updates(
    study: str, round_: int, accepted: int, needed: str, rejected: Mapping[str, str], reasons: Mapping[str, str]
) -> str:
    """The error message of a round with too few accepted updates.

    Args:
        study: the id of the study.
        round_: the round, counted from 0.
        accepted: the number of accepted updates.
        needed: how many are needed, in words.
        rejected: the message of each refused update by site; it names the site.
        reasons: the reason for each of the other sites without an accepted update.
    """
    told = [*rejected.values(), *(f"{label(site)}: {reason.rstrip('.')}." for site, reason in reasons.items())]
    ahead = [label(site) for site, reason in reasons.items() if reason == REFUSALS["wrong-round"]]
    go_on = "Go on from there by submitting the study again, or a run of this machine with --resume."
    if ahead and not accepted and not rejected:
        go_on = (
            f"{', '.join(ahead)}: the sites have trained later rounds than this folder has: it was probably restored from a copy. Put the "
            f"newest copy back, or skip the lost rounds with `pfedsam coordinator rollback FOLDER {study} --skip-to ROUND`; "
            "`pfedsam site ledger` shows at each site the last round that it trained."
        )
    return (
        f"round {round_ + 1} has {accepted} accepted update(s); {needed}. {' '.join(told)} "
        f"The shared parameters stay as they were before it. {go_on}"
    )
