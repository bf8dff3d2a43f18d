"""The interface between the round loop and the sites: a `Transport` sends a request to some of the sites and returns their replies.

There are two transports: `engine.local` runs the sites in this process or in worker processes, and `deploy.controller` reaches them over
NVFlare. The round loop depends on neither of them.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from pfedsam.federation.tasks import Task


@dataclass(frozen=True)
class Answers:
    """The outcome of one request."""

    wires: Mapping[str, Mapping[str, object]]
    """The replies by site, as they arrived and before any check (`federation.messages.reply_from_wire`)."""
    missing: Mapping[str, str] = field(default_factory=dict)
    """The reason by site for each site that did not reply in time."""
    late: Mapping[str, int] = field(default_factory=dict)
    """The number of replies to earlier requests that arrived since, by site. They are not used."""
    overdue: Collection[str] = ()
    """The missing sites for which the request waited until its deadline; the others were known to be disconnected."""


class Transport(Protocol):
    """Carries requests to sites."""

    def connected(self) -> Sequence[str]:
        """The names of the sites that can be asked now; the transport has authenticated them."""

    def ask(self, request: Mapping[str, bytes], task: Task, sites: Sequence[str], deadline_s: int) -> Answers:
        """Send one request to these sites and wait until all have replied or the deadline has passed, whichever comes first.

        Args:
            request: the request, as `federation.messages.request_to_wire` writes it.
            task: the task of the request.
            sites: the names of the sites.
            deadline_s: seconds to wait; a transport whose sites are always available may ignore it.
        """

    def needs_new_job(self) -> bool:
        """Whether the job at the sites has to be started again, so that a waiting site can take part; called after every round."""
