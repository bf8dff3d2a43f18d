"""Aggregation: which updates of a round count, and their mean, the same to the bit in whatever order they arrived.

McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data" (2017), algorithm 1: the
shared parameters of the next round are the mean over sites, weighted by their training cases.

What belongs to one class (its token, its output layers) is averaged over the sites that annotate the class (`fill_not_annotated`).
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from pfedsam.core.errors import RunError, UpdateError
from pfedsam.core.tensors import NamedTensors, digest
from pfedsam.federation.bounds import NO_LIMITS, Limits, bound_updates
from pfedsam.federation.update import MAX_CASES, Update, UpdateSpec, check, decode, label


@dataclass(frozen=True)
class AggregationResult:
    """What became of every update of a round."""

    updates: tuple[Update, ...]
    """Those that count, by the names of their sites."""
    rejected: Mapping[str, str]
    """Reason by site."""
    scaled: Mapping[str, float] = field(default_factory=dict)
    """The factor by site whose change was scaled down."""

    @property
    def accepted(self) -> tuple[str, ...]:
        """Names of the sites whose updates count, sorted."""
        return tuple(update.site for update in self.updates)


def open_messages(
    messages: Mapping[str, bytes], spec: UpdateSpec, received: NamedTensors, limits: Limits = NO_LIMITS
) -> tuple[list[Update], dict[str, str]]:
    """The updates in the messages of a round, and the reason for each site whose message is not one of its own updates.

    Args:
        messages: by the site that they came from; a site can speak only for itself.
        spec: of the run.
        received: the shared tensors that were broadcast in this round.
        limits: on what one site's update may do; scales beyond them are refused before they are decoded.
    """
    updates, unread = [], {}
    for site, message in messages.items():
        try:
            update = decode(message, spec, received, max_change=limits.max_change)
        except UpdateError:  # its text may repeat what the site put in its message
            unread[site] = (
                f"site {site} sent an update that cannot be read, or one of other shared tensors than this study's."
            )
            continue
        if update.site == site:
            updates.append(update)
        else:
            unread[site] = f"site {site} sent an update in another site's name."
    return updates, unread


def weighted_mean(updates: Sequence[Update]) -> dict[str, torch.Tensor]:
    """The mean of checked updates, weighted by their numbers of cases; each tensor keeps its shape and type.

    Summed in float64 in the order of the sites' names, so that the order of arrival changes no bit.

    Raises:
        UpdateError: there is no update.
    """
    if not updates:
        raise UpdateError("there is no update to average.")
    ordered = sorted(updates, key=lambda update: update.site)
    total = sum(update.cases for update in ordered)
    mean = {}
    for name, first in ordered[0].tensors.items():
        summed = torch.zeros(first.shape, dtype=torch.float64, device=first.device)
        for update in ordered:
            summed += update.tensors[name].detach().to(torch.float64) * update.cases
        mean[name] = (summed / total).to(first.dtype)
    return mean


@dataclass(frozen=True)
class Annotations:
    """Which shared values belong to single classes, and which sites do not annotate which class."""

    tensors: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Tensor -> the class of each of its rows, or the one class of the whole tensor; tensors of all classes are not named."""
    missing: Mapping[str, Collection[str]] = field(default_factory=dict)
    """Site -> the classes that it does not annotate; sites that annotate all are not needed."""

    def weights(self, name: str, site: str) -> list[float]:
        """For each class of a tensor 1 where the site annotates it, else 0."""
        return [0.0 if one in self.missing.get(site, ()) else 1.0 for one in self.tensors[name]]


ALL_ANNOTATED = Annotations()


def fill_not_annotated(updates: Sequence[Update], annotations: Annotations, received: NamedTensors) -> list[Update]:
    """The updates, in which sites say nothing of their own about classes that they do not annotate.

    What a site sent for such a class is replaced by the mean over the updates of the sites that annotate it, weighted by their cases;
    where none does, by the value that was broadcast. Every average that follows is then, for each class, one over the sites that annotate
    it, whatever server step makes it. Updates of sites that annotate everything come back as they are.

    Args:
        updates: accepted ones.
        annotations: which values belong to which class, and which sites lack which.
        received: the shared tensors that were broadcast.
    """
    ordered = sorted(updates, key=lambda update: update.site)
    lacking = {one.site for one in ordered if annotations.missing.get(one.site)}
    if not lacking:
        return list(updates)
    filled = {one.site: dict(one.tensors) for one in ordered}
    for name in annotations.tensors:
        shape = (-1, *[1] * (received[name].dim() - 1)) if len(annotations.tensors[name]) > 1 else ()
        weights = {
            one.site: torch.tensor(annotations.weights(name, one.site), dtype=torch.float64).reshape(shape)
            for one in ordered
        }
        total = torch.stack([weights[one.site] * one.cases for one in ordered]).sum(dim=0)
        summed = torch.stack(
            [one.tensors[name].detach().double().cpu() * (weights[one.site] * one.cases) for one in ordered]
        ).sum(dim=0)
        common = torch.where(total > 0, summed / total.clamp_min(1), received[name].detach().double().cpu())
        for one in ordered:
            own = one.tensors[name]
            if one.site in lacking:
                filled[one.site][name] = torch.where(weights[one.site] > 0, own, common.to(own.device, own.dtype))
    return [replace(one, tensors=filled[one.site]) for one in updates]


class NothingToAverageError(RunError):
    """No update of a round was accepted; `rejected` holds the reason for each site that was refused."""

    def __init__(self, round_: int, rejected: Mapping[str, str]) -> None:
        reasons = " ".join(rejected.values()) or "No site sent one."
        super().__init__(
            f"round {round_ + 1} has no update to average, the shared parameters stay as they are. {reasons}"
        )
        self.rejected = dict(rejected)


def accept(
    updates: Iterable[Update],
    spec: UpdateSpec,
    *,
    round: int,
    registered: Mapping[str, int],
    received: NamedTensors | None = None,
    limits: Limits = NO_LIMITS,
) -> AggregationResult:
    """Check the updates of a round one by one; those that pass are for the method's server step.

    A repeated update counts once. A site that sends two different ones counts not at all, because which of them came
    first must not matter.

    Args:
        updates: in the order of their arrival.
        spec: the shared tensors of the run.
        round: the round that is being aggregated.
        registered: the number of training cases of each site, as known when the run started.
        received: the shared tensors that were broadcast in this round; not needed without limits.
        limits: on what one site's update may do.

    Raises:
        NothingToAverageError: no update was accepted.
        RunError: the registration is not sound.
    """
    check_registration(registered)
    accepted, rejected = screen(updates, spec, round=round, registered=registered)
    bounded = bound_updates(accepted, received or {}, limits)
    rejected |= bounded.rejected
    if not bounded.updates:
        raise NothingToAverageError(round, rejected)
    return AggregationResult(bounded.updates, rejected, bounded.scaled)


def screen(
    updates: Iterable[Update], spec: UpdateSpec, *, round: int, registered: Mapping[str, int]
) -> tuple[list[Update], dict[str, str]]:
    """The updates that may be averaged, by site, at most one of each; and the reason for each site that was refused."""
    passed: dict[str, dict[str, Update]] = {}
    reasons: dict[str, set[str]] = {}
    for update in updates:
        try:
            check(update, spec, round=round, registered=registered)
        except UpdateError as error:
            reasons.setdefault(label(update.site), set()).add(str(error))
        else:
            passed.setdefault(update.site, {})[digest(update.tensors)] = update
    for site, different in passed.items():
        if len(different) > 1:
            reasons.setdefault(site, set()).add(
                f"site {site} sent {len(different)} different updates; none is counted."
            )
    accepted = [next(iter(passed[site].values())) for site in sorted(passed) if len(passed[site]) == 1]
    return accepted, {site: " ".join(sorted(reasons[site])) for site in sorted(reasons)}


def check_registration(registered: Mapping[str, int]) -> None:
    """Let only sound weights into a run.

    Raises:
        RunError: a site's number of training cases is not a whole number from 1 to `MAX_CASES`.
    """
    for site, cases in registered.items():
        if type(cases) is not int or not 1 <= cases <= MAX_CASES:
            raise RunError(f"site {site} registered with {cases!r} training cases; allowed are 1 to {MAX_CASES}.")
