"""Which site does which task of a study: all sites do all tasks, or an additional site with all training images does the training."""

from dataclasses import dataclass
from typing import Final

from pfedsam.federation.tasks import Task


@dataclass(frozen=True)
class Roster:
    """Which sites get requests for which task; without a pool every site gets every request."""

    pool: str | None = None
    """The name of the additional site that trains in all rounds with the training images of all; the other sites evaluate its model, and
    summarise their data."""
    each_finalizes: bool = False
    """With a pool: each of the other sites does the final local fine-tuning itself, starting from the pooled model."""

    def asks(self, site: str, task: Task) -> bool:
        """Whether this site gets requests for this task."""
        if self.pool is None:
            return True
        if task in ("summarize", "validate", "test"):
            return site != self.pool
        if task == "finalize" and self.each_finalizes:
            return site != self.pool
        return site == self.pool

    def sites(self, configured: list[str]) -> list[str]:
        """All sites of a study, in the order of the requests: the pool, if any, and the configured sites."""
        return [*([self.pool] if self.pool else []), *configured]


EVERY_SITE: Final = Roster()
"""The roster of every method that leaves all images at their sites."""
