"""Sites that do not reply are left out of some rounds, because each of them makes a round wait until its deadline.

After the first round without a reply a site is left out of one round, after the second in a row of two, then of four, and so on up to
`LONGEST`. As soon as the site sends a reply, even a late one, or connects again, it gets all requests again.

A site that is known to be disconnected (its process has ended, or it was revoked) causes no waiting and is not counted here.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

LONGEST: Final = 16
"""The largest number of consecutive rounds of which a site is left out."""


@dataclass(frozen=True)
class Silence:
    """A site that did not reply to its last request."""

    times: int
    """Number of consecutive requests without a reply."""
    until: int
    """The round in which the site gets a request again."""


def left_out(silences: Mapping[str, Silence], round_: int, *, sites: Collection[str], least: int) -> dict[str, str]:
    """The sites that get no request in a round, each with the reason for the records.

    Args:
        silences: the silent sites after the previous round.
        round_: the round.
        sites: the sites that take part in the study.
        least: if fewer sites than this would get a request, all get one.
    """
    found = {
        site: f"not asked: it was silent {silence.times} time(s) in a row, and is asked again in round {silence.until + 1} or when it calls"
        for site, silence in silences.items()
        if site in sites and round_ < silence.until
    }
    return found if len(set(sites) - set(found)) >= least else {}


def after_round(
    silences: Mapping[str, Silence], round_: int, *, silent: Collection[str], called: Collection[str]
) -> dict[str, Silence]:
    """The silent sites after a round.

    Args:
        silences: the silent sites before the round.
        round_: the round.
        silent: the sites that got a request in the round and did not reply within the deadline.
        called: the sites that replied, connected again, or sent a late reply; a site in both lists is not silent.
    """
    now = {site: silence for site, silence in silences.items() if site not in called}
    for site in set(silent) - set(called):
        times = now[site].times + 1 if site in now else 1
        now[site] = Silence(times, round_ + 1 + min(LONGEST, 2 ** (times - 1)))
    return now
