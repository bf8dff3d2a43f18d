"""What `pfedsam coordinator submit` says about a submission."""

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pfedsam.cli.console import warn
from pfedsam.core.text import some_of

if TYPE_CHECKING:
    from pfedsam.engine.round_policy import RoundPolicy
    from pfedsam.engine.submission import Submission

FLAGS = {
    "quorum": "--quorum",
    "deadline_s": "--deadline",
    "join_s": "--join",
    "score_s": "--score",
    "max_share": "--max-share",
    "median_factor": "--median-factor",
}
"""The fields of the round policy, in the order of the options of `submit`, with their options."""


def warn_unknown(sites: Sequence[str], certified: Collection[str]) -> None:
    """Warn of sites of a study that cannot connect yet."""
    if unknown := [name for name in sites if name not in certified]:
        warn(
            f"Not in the federation yet: {', '.join(unknown)}. The study waits for a site only until --join is over; before that, the site "
            "needs a kit (`pfedsam coordinator sign`, or `init --sites`). If a name is misspelt, correct it in data.sites and submit again."
        )


def changes(submission: "Submission", coordinator: Path) -> Iterator[str]:
    """Sentences on what a submission changed in a study that was there already, or on the studies beside which it made a new one.

    Args:
        submission: what was submitted.
        coordinator: the coordinator's folder, for the command that stops a study.
    """
    before, policy = submission.earlier, submission.policy
    if before is None:
        for other in submission.same_title:
            yield (
                f"This is a new study, beside study {other.study} of the same title (name), which is {other.state}. Their configurations "
                f"differ in: {some_of(other.differences, 6)}."
            )
            if other.unfinished:
                yield f"If it replaces that study, run `pfedsam coordinator stop {coordinator} --study {other.study}`."
        return
    if before.round < before.ends:
        yield f"This study is there already: it continues after round {before.round} of {before.ends}."
    else:
        yield (
            f"This study is there already, and all its {before.ends} round(s) are done: it will only be tested again; a site that "
            "does not answer keeps its scores. For a new study with this configuration, give it another title (name)."
        )
    if set(before.sites) != set(submission.sites):
        yield f"Its sites were {', '.join(before.sites)}. They are {', '.join(submission.sites)} now."
    if before.policy is None:
        rules = ", ".join(f"{flag} {_said(policy, rule)}" for rule, flag in FLAGS.items())
        yield f"Its rules were lost or damaged (policy.json). They are now: {rules}."
    elif before.policy != policy:
        old = before.policy
        changed = [rule for rule in FLAGS if getattr(old, rule) != getattr(policy, rule)]
        told = ", ".join(f"{FLAGS[rule]} was {_said(old, rule)} and is now {_said(policy, rule)}" for rule in changed)
        yield f"Its rules have changed: {told}."


def _said(policy: "RoundPolicy", rule: str) -> str:
    """A rule's value as it is given on the command line."""
    value = getattr(policy, rule)
    return "0" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
