"""Aggregation: which updates of a round are accepted, and their mean, bit for bit independent of the order of arrival.

McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data" (2017), algorithm 1: the
shared parameters of the next round are the mean over sites, weighted by their training cases.

The parameters of one class (its token and output layers) are averaged only over the sites that annotate the class (`fill_not_annotated`).
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from pfedsam.core.errors import RunError, UpdateError
from pfedsam.core.tensors import NamedTensors, digest
from pfedsam.federation.bounds import NO_LIMITS, Limits, bound_updates
from pfedsam.federation.update import MAX_CASES, Update, UpdateSpec, check, decode, label


@dataclass(frozen=True)
class AggregationResult:
    """The accepted and the rejected updates of a round."""

    updates: tuple[Update, ...]
    """The accepted updates, sorted by site."""
    rejected: Mapping[str, str]
    """Site -> the reason for the rejection."""
    scaled: Mapping[str, float] = field(default_factory=dict)
    """Site -> the factor by which its change was scaled down; only sites whose change was."""

    @property
    def accepted(self) -> tuple[str, ...]:
        """Names of the sites whose updates were accepted, sorted."""
        return tuple(update.site for update in self.updates)


def open_messages(
    messages: Mapping[str, bytes], spec: UpdateSpec, received: NamedTensors, limits: Limits = NO_LIMITS
) -> tuple[list[Update], dict[str, str]]:
    """Decode the messages of a round.

    Args:
        messages: site -> message; a site can send an update only in its own name.
        spec: the shared tensors of the run.
        received: the shared tensors that were broadcast in this round.
        limits: bounds on a site's update; an update whose scales exceed them is refused before it is decoded.

    Returns:
        The updates, and site -> reason for each message that could not be read as an update of that site.
    """
    updates, unread = [], {}
    for site, message in messages.items():
        try:
            update = decode(message, spec, received, max_change=limits.max_change)
        except UpdateError:  # its text may repeat what the site put in its message
            unread[site] = (
                f"site {site} sent an update that cannot be read, or whose tensors are not the shared tensors of this study."
            )
            continue
        if update.site == site:
            updates.append(update)
        else:
            unread[site] = f"site {site} sent an update in the name of another site."
    return updates, unread


def weighted_mean(updates: Sequence[Update]) -> dict[str, torch.Tensor]:
    """The mean of checked updates, weighted by their numbers of cases; each tensor keeps its shape and type.

    The sum is computed in float64 in the order of the sites' names, so that the result does not depend on the order of arrival.

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
    """Which shared parameters belong to single classes, and which classes each site does not annotate."""

    tensors: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Tensor -> the class of each of its rows, or the one class of the whole tensor; tensors used by all classes are absent."""
    missing: Mapping[str, Collection[str]] = field(default_factory=dict)
    """Site -> the classes that it does not annotate; sites that annotate all classes may be absent."""

    def weights(self, name: str, site: str) -> list[float]:
        """For each class of a tensor 1 if the site annotates the class, else 0."""
        return [0.0 if one in self.missing.get(site, ()) else 1.0 for one in self.tensors[name]]

    def row_weights(self, name: str, site: str, dims: int) -> Tensor:
        """`weights` as float64 for a tensor with `dims` dimensions, `[rows, 1, 1]`; of shape `[]` if the tensor belongs to one class."""
        weights = torch.tensor(self.weights(name, site), dtype=torch.float64)
        return weights.reshape((-1, *[1] * (dims - 1)) if len(weights) > 1 else ())


ALL_ANNOTATED = Annotations()


def fill_not_annotated(updates: Sequence[Update], annotations: Annotations, received: NamedTensors) -> list[Update]:
    """Replace a site's values for the classes that it does not annotate.

    For such a class the values are replaced by the mean over the sites that annotate it, weighted by their cases; if no site annotates it,
    by the values that were broadcast. Whatever server step follows, its average for a class is then one over the sites that annotate the
    class. Updates of sites that annotate all classes are returned unchanged.

    Args:
        updates: the accepted updates.
        annotations: which parameters belong to which class, and which classes each site does not annotate.
        received: the shared tensors that were broadcast.
    """
    ordered = sorted(updates, key=lambda update: update.site)
    lacking = {one.site for one in ordered if annotations.missing.get(one.site)}
    if not lacking:
        return list(updates)
    filled = {one.site: dict(one.tensors) for one in ordered}
    for name in annotations.tensors:
        common = _mean_of_annotating(name, ordered, annotations, received[name])
        for site in lacking:
            own = filled[site][name]
            annotated = annotations.row_weights(name, site, own.dim()) > 0
            filled[site][name] = torch.where(annotated, own, common.to(own.device, own.dtype))
    return [replace(one, tensors=filled[one.site]) for one in updates]


def _mean_of_annotating(name: str, updates: Sequence[Update], annotations: Annotations, received: Tensor) -> Tensor:
    """The mean of a tensor over the sites that annotate each of its classes, in float64 on the CPU, of the tensor's shape.

    It is weighted by the sites' cases; a class that no site annotates has the values that were broadcast.
    """
    weights = [annotations.row_weights(name, one.site, received.dim()) * one.cases for one in updates]
    values = [one.tensors[name].detach().double().cpu() for one in updates]
    total = torch.stack(weights).sum(dim=0)
    summed = torch.stack([value * weight for value, weight in zip(values, weights, strict=True)]).sum(dim=0)
    return torch.where(total > 0, summed / total.clamp_min(1), received.detach().double().cpu())


class NothingToAverageError(RunError):
    """No update of a round was accepted; `rejected` contains the reason for each site."""

    def __init__(self, round_: int, rejected: Mapping[str, str]) -> None:
        reasons = " ".join(rejected.values()) or "No site sent an update."
        super().__init__(
            f"round {round_ + 1} has no update to average; the shared parameters stay as they are. {reasons}"
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
    """Check the updates of a round one by one, and return those that the method's server step may use.

    A repeated update counts once. If a site sends two different updates, neither is used, because the order of arrival must not matter.

    Args:
        updates: the updates of the sites, in any order.
        spec: the shared tensors of the run.
        round: the round that is being aggregated.
        registered: the number of training cases of each site, as known when the run started.
        received: the shared tensors that were broadcast in this round; not needed without limits.
        limits: bounds on a site's update.

    Raises:
            NothingToAverageError: no update was accepted.
            RunError: a registered number of training cases is not allowed.
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
    """The updates that may be averaged, sorted by site, at most one per site; and site -> reason for each rejected site."""
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
                f"site {site} sent {len(different)} different updates for this round; none is used."
            )
    accepted = [next(iter(passed[site].values())) for site in sorted(passed) if len(passed[site]) == 1]
    return accepted, {site: " ".join(sorted(reasons[site])) for site in sorted(reasons)}


def check_registration(registered: Mapping[str, int]) -> None:
    """Check the numbers of training cases by which the sites are weighted.

    Raises:
        RunError: a site's number of training cases is not a whole number from 1 to `MAX_CASES`.
    """
    for site, cases in registered.items():
        if type(cases) is not int or not 1 <= cases <= MAX_CASES:
            raise RunError(f"site {site} registered with {cases!r} training cases; allowed are 1 to {MAX_CASES}.")
