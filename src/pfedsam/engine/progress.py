"""The progress of a run, as the round loop and the local transport report it to whoever started the run."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Event:
    """`done` of `total` steps of a stage (check, prepare, summarize, train, finalize, test), and the name of the site or file."""

    stage: str
    done: int
    total: int
    detail: str


Progress = Callable[[Event], None]
"""Called after each step of a run."""


def silent(_: Event) -> None:
    """Report nothing."""
