"""The progress of a run, as the round loop and the local transport report it to the caller of the run."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Event:
    """The progress of a stage: `done` of `total` steps, and the name of the site or file.

    The stages are check, prepare, summarize, train, finalize and test.
    """

    stage: str
    done: int
    total: int
    detail: str
    images: tuple[int, int] | None = None
    """In the stage train: the number of training images that a site has drawn so far, and the most that it draws in the study."""


Progress = Callable[[Event], None]
"""Called after each step of a run, and at the start of the stages prepare and train with what is done already."""


def silent(_: Event) -> None:
    """Report nothing."""
