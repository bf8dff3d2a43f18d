"""How the round loop reaches the sites: `Transport` carries a request to some of them and brings their replies back.

There are two transports: `engine.local` runs the sites in this process or in worker processes, `deploy.controller` reaches them over
NVFlare. The round loop knows neither.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from pfedsam.federation.manifest import Task


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
    """The missing sites for which the request waited until its deadline; the others were known to be away, which cost no time."""


class Transport(Protocol):
    """Carries requests to sites."""

    def connected(self) -> Sequence[str]:
        """The names of the sites that can be asked now; the transport has authenticated them."""

    def ask(self, request: Mapping[str, bytes], task: Task, sites: Sequence[str], deadline_s: int) -> Answers:
        """Send one request to these sites and wait until all have replied or the deadline has passed, whichever comes first.

        Args:
            request: as `federation.messages.request_to_wire` writes it.
            task: what is asked, the same as in the request.
            sites: whom to ask.
            deadline_s: seconds to wait; a transport whose sites cannot be away may ignore it.
        """

    def wants_again(self) -> bool:
        """Whether the job that runs at the sites has to be started anew so that a waiting site can take part."""
