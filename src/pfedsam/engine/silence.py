"""Which sites a round asks: one that does not reply costs the round its whole deadline, so it is asked less and less.

A site that is known to be away (its process has ended, or it was revoked) costs no time, and is not counted here.

After its first silent round a site is left out of one round, after the second in a row of two, then of four, and so on up to
`LONGEST`. It is asked in every round again as soon as it calls: by a reply, also one that comes too late, or by coming back.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

LONGEST: Final = 16
"""Most rounds in a row that a site is left out of."""


@dataclass(frozen=True)
class Silence:
    """A site that did not answer when it was asked last."""

    times: int
    """In a row."""
    until: int
    """The round in which it is asked again."""


def left_out(silences: Mapping[str, Silence], round_: int, *, sites: Collection[str], least: int) -> dict[str, str]:
    """The sites that a round does not ask, each with the reason for its records.

    Args:
        silences: after the round before.
        round_: the round.
        sites: that take part.
        least: where fewer would be asked, all are.
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
    """The silences after a round.

    Args:
        silences: before it.
        round_: the round.
        silent: who was asked in it and did not answer within the deadline.
        called: who answered, came back, or whose late reply came; whoever is in both is not silent.
    """
    now = {site: silence for site, silence in silences.items() if site not in called}
    for site in set(silent) - set(called):
        times = now[site].times + 1 if site in now else 1
        now[site] = Silence(times, round_ + 1 + min(LONGEST, 2 ** (times - 1)))
    return now
