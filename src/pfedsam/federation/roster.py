"""Who does what in a study: whether all sites do everything, or one more site, with everybody's training images, does the training."""

from dataclasses import dataclass
from typing import Final

from pfedsam.federation.manifest import Task


@dataclass(frozen=True)
class Roster:
    """Which sites are asked for which task; without a pool every site is asked for every task."""

    pool: str | None = None
    """The name of the one site that does the rounds, with the training images of all; every other site is then scored with its model."""
    each_finalizes: bool = False
    """With a pool: each of the other sites does the final local fine-tuning by itself, starting from the pooled model."""

    def asks(self, site: str, task: Task) -> bool:
        """Whether this site is asked for this task."""
        if self.pool is None:
            return True
        if task in ("validate", "test"):
            return site != self.pool
        if task == "finalize" and self.each_finalizes:
            return site != self.pool
        return site == self.pool

    def sites(self, configured: list[str]) -> list[str]:
        """All sites of a study whose configuration names these, in the order in which they are asked."""
        return [*([self.pool] if self.pool else []), *configured]


EVERY_SITE: Final = Roster()
"""What every method has whose images stay at their sites."""
