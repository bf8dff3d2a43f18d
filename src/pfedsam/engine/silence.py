"""Sites that do not reply are left out of some rounds, because each of them makes a round wait until its deadline.

After the first round without a reply a site is left out of one round, after the second in a row of two, then of four, and so on up to
`LONGEST`. As soon as the site sends a reply, it gets all requests again.

Each task that is requested in every round is counted by itself, because a site may train and never validate. A late reply ends the silence
of a site that was asked to join or to train, from the next round on. It does not for validations: a site whose validation always takes
longer than the deadline would make every round wait.

A site that is known to be disconnected (its process has ended, or it was revoked) causes no waiting and is not counted here.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

from pfedsam.federation.tasks import Task

LONGEST: Final = 16
"""The largest number of consecutive rounds of which a site is left out."""
_ENDED_BY_LATE_REPLY: Final[tuple[Task, ...]] = ("join", "train")
"""The tasks for which a late reply ends the silence."""
_COUNTED: Final[tuple[Task, ...]] = (*_ENDED_BY_LATE_REPLY, "validate")


@dataclass(frozen=True)
class Silence:
    """A site that did not reply to its last request."""

    times: int
    """Number of consecutive requests without a reply."""
    until: int
    """The round in which the site gets a request again."""


class Silences:
    """The silent sites of a study by task, while its job runs."""

    def __init__(self) -> None:
        self._by_task: dict[Task, dict[str, Silence]] = {task: {} for task in _COUNTED}
        self._late: set[str] = set()

    def left_out(self, task: Task, round_: int, *, sites: Collection[str], least: int = 0) -> dict[str, str]:
        """The sites that get no request for a task in a round, each with the reason; see the function `left_out`."""
        return left_out(
            self._by_task[task], round_, sites=sites, least=least, ends_by_late_reply=task in _ENDED_BY_LATE_REPLY
        )

    def note(
        self, task: Task, round_: int, *, silent: Collection[str], replied: Collection[str], late: Collection[str]
    ) -> None:
        """Note the outcome of a request.

        Args:
            task: the task of the request.
            round_: the round.
            silent: the sites that did not reply within the deadline.
            replied: the sites that did.
            late: the sites from which late replies to any requests have come.
        """
        self._late |= set(late)
        if task not in _COUNTED:
            return
        self._by_task[task] = after_round(self._by_task[task], round_, silent=silent, heard=replied)
        if task == "train":  # not sooner, so that a site that is always late is left out of every second round
            for one in _ENDED_BY_LATE_REPLY:
                self._by_task[one] = after_round(self._by_task[one], round_, silent=(), heard=self._late)
            self._late = set()


def left_out(
    silences: Mapping[str, Silence], round_: int, *, sites: Collection[str], least: int, ends_by_late_reply: bool = True
) -> dict[str, str]:
    """The sites that get no request in a round, each with the reason for the records.

    Args:
        silences: the silent sites after the previous round.
        round_: the round.
        sites: the sites that take part in the study.
        least: if fewer sites than this would get a request, all get one.
        ends_by_late_reply: whether a late reply of the site ends its silence.
    """
    earlier = ", or after a late reply" if ends_by_late_reply else ""
    found = {
        site: f"not asked: no reply in time to {silence.times} request(s) in a row; it is asked again in round {silence.until + 1}{earlier}"
        for site, silence in silences.items()
        if site in sites and round_ < silence.until
    }
    return found if len(set(sites) - set(found)) >= least else {}


def after_round(
    silences: Mapping[str, Silence], round_: int, *, silent: Collection[str], heard: Collection[str]
) -> dict[str, Silence]:
    """The silent sites after a round.

    Args:
        silences: the silent sites before the round.
        round_: the round.
        silent: the sites that got a request in the round and did not reply within the deadline.
        heard: the sites that replied, connected again, or sent a late reply; a site in both lists is not silent.
    """
    now = {site: silence for site, silence in silences.items() if site not in heard}
    for site in set(silent) - set(heard):
        times = now[site].times + 1 if site in now else 1
        now[site] = Silence(times, round_ + 1 + min(LONGEST, 2 ** (times - 1)))
    return now
