"""The sites of a study that have not joined: the reasons in words, and for whom a study waits before its first round."""

from collections.abc import Collection, Mapping
from typing import Final

from pfedsam.federation.messages import REFUSALS
from pfedsam.federation.update import label

WAITS: Final = "waits for "
"""The reason in the status of a study that waits for sites before its first round begins with these words."""
_NOT_APPROVED: Final = REFUSALS["not-approved"]


def awaited(reasons: Mapping[str, str], *, unheard: Collection[str], joined: int, quorum: int) -> list[str]:
    """The sites for which a study waits before its first round: those that may still join, as long as the quorum can be reached with them.

    Args:
        reasons: why each site that has not joined has not.
        unheard: the sites among them that did not reply. The study waits for these only if fewer sites than the quorum have joined.
        joined: the number of sites that have joined.
        quorum: the number of sites that the study needs.
    """
    silent = set(unheard) if joined < quorum else set()
    found = [site for site, reason in reasons.items() if reason == _NOT_APPROVED or site in silent]
    return found if joined + len(found) >= quorum else []


def wait_in_words(sites: Collection[str], reasons: Mapping[str, str]) -> str:
    """For what a study waits: the approval of some sites, and a reply of others."""
    unapproved = [label(site) for site in sites if reasons[site] == _NOT_APPROVED]
    silent = [label(site) for site in sites if reasons[site] != _NOT_APPROVED]
    parts = [f"the approval of {', '.join(unapproved)}"] if unapproved else []
    parts += [f"a reply of {', '.join(silent)}"] if silent else []
    return WAITS + " and ".join(parts)


def reasons_in_words(reasons: Mapping[str, str]) -> str:
    """The sites with their reasons; sites with the same reason are named together."""
    by_reason: dict[str, list[str]] = {}
    for site, reason in reasons.items():
        by_reason.setdefault(reason, []).append(label(site))
    return "; ".join(f"{', '.join(sites)}: {reason}" for reason, sites in by_reason.items())
