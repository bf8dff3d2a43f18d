"""The tasks that the coordinator requests from a site. This module loads no torch, because `pfedsam site start` uses it."""

from typing import Literal

Task = Literal["join", "summarize", "train", "validate", "finalize", "test"]
"""The tasks that a coordinator can request from a site, if the manifest lists them."""


def in_words(task: Task, round_: int, rounds: int | None) -> str:
    """A request as text for users, with rounds counted from 1; messages and files count them from 0.

    Args:
        task: the task of the request.
        round_: the round, counted from 0.
        rounds: the number of rounds of the study; None if it is not known.
    """
    if task not in ("train", "validate"):
        return task
    return f"{task} at the end" if rounds is not None and round_ >= rounds else f"{task} of round {round_ + 1}"
