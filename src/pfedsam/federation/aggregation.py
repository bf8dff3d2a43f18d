"""Aggregation: which updates of a round are accepted, and their mean, bit for bit independent of the order of arrival.

McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data" (2017), algorithm 1: the
shared parameters of the next round are the mean over sites, weighted by their training cases.

The parameters of one class (its token and output layers) are averaged only over the sites that annotate the class (`combine_by_class`).
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from types import EllipsisType
from typing import TypeAlias

import torch
from torch import Tensor

from pfedsam.core.errors import RunError, UpdateError
from pfedsam.core.tensors import NamedTensors, digest
from pfedsam.federation.bounds import NO_LIMITS, Limits, bound_updates, cap_shares
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
    cases = [update.cases for update in ordered]
    return {
        name: mean_of((update.tensors[name] for update in ordered), cases).to(first.dtype)
        for name, first in ordered[0].tensors.items()
    }


def mean_of(values: Iterable[Tensor], weights: Sequence[float]) -> Tensor:
    """The weighted mean of values of one shape, in float64, summed in their order."""
    terms = (value.detach().to(torch.float64) * weight for value, weight in zip(values, weights, strict=True))
    return sum(terms, torch.zeros((), dtype=torch.float64)) / sum(weights)


Row: TypeAlias = int | EllipsisType
"""The index of a row of a tensor, or `...` for the whole tensor."""


def row_of(classes: Sequence[str], number: int) -> Row:
    """The row of a class in a tensor, from the classes of its rows or the one class of the whole tensor."""
    return ... if len(classes) == 1 else number


@dataclass(frozen=True)
class Annotations:
    """Which shared parameters belong to single classes, and which classes each site does not annotate."""

    tensors: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Tensor -> the class of each of its rows, or the one class of the whole tensor; tensors used by all classes are absent."""
    missing: Mapping[str, Collection[str]] = field(default_factory=dict)
    """Site -> the classes that it does not annotate; sites that annotate all classes may be absent."""

    def partial(self, sites: Collection[str]) -> dict[str, list[str]]:
        """Class -> the sites that annotate it, for each class that not all of the sites annotate."""
        classes = dict.fromkeys(chain.from_iterable(self.tensors.values()))
        found = {name: [site for site in sites if name not in self.missing.get(site, ())] for name in classes}
        return {name: there for name, there in found.items() if len(there) < len(sites)}

    def kept_rows(self, sites: Collection[str], *, least: int = 1) -> dict[str, list[Row]]:
        """Tensor -> the rows of the classes that fewer than `least` of the sites annotate; a round of these sites does not change them."""
        few = {name for name, there in self.partial(sites).items() if len(there) < least}
        found = {
            t: [row_of(names, n) for n, one in enumerate(names) if one in few] for t, names in self.tensors.items()
        }
        return {tensor: rows for tensor, rows in found.items() if rows}


ALL_ANNOTATED = Annotations()

Combine = Callable[[Tensor, Sequence[float]], Tensor]
"""Combines the values `[n, ...]` (float64) of n sites with these weights into values of the remaining shape."""


def combine_by_class(
    updates: Sequence[Update],
    annotations: Annotations,
    received: NamedTensors,
    combine: Combine = mean_of,
    *,
    max_share: float = 1.0,
    least: int = 1,
) -> list[Update]:
    """Combine the parameters of each class that some of the sites do not annotate, over the sites that annotate it.

    Every returned update has the combined values for such a class, so that whatever server step follows gets them from all sites. If fewer
    than `least` sites of the round annotate the class, they are the values that were broadcast. All other values are unchanged.

    Args:
        updates: the accepted updates.
        annotations: which parameters belong to which class, and which classes each site does not annotate.
        received: the shared tensors that were broadcast.
        combine: how the server step combines the values of several sites.
        max_share: the largest weight of one of the sites that annotate a class, as a share of the sum, if there are enough of them.
        least: the smallest number of sites whose values can be combined.
    """
    ordered = sorted(updates, key=lambda update: update.site)
    partial = annotations.partial([one.site for one in ordered])
    if not partial:
        return list(updates)
    weights = {
        name: cap_shares(
            {one.site: one.cases for one in ordered if one.site in there and len(there) >= least}, max_share
        )
        for name, there in partial.items()
    }
    changed: dict[str, dict[str, Tensor]] = {one.site: {} for one in ordered}
    for tensor, rows in annotations.tensors.items():
        sent = {one.site: one.tensors[tensor] for one in ordered}
        for site, own in _with_combined_rows(sent, rows, weights, received[tensor], combine).items():
            changed[site][tensor] = own
    return [replace(one, tensors={**one.tensors, **changed[one.site]}) for one in ordered]


def _with_combined_rows(
    sent: Mapping[str, Tensor],
    rows: Sequence[str],
    weights: Mapping[str, Mapping[str, float]],
    received: Tensor,
    combine: Combine,
) -> dict[str, Tensor]:
    """The values of a tensor by site, after the rows of the classes in `weights` were combined over the sites that have a weight there.

    Args:
        sent: the tensor as each site sent it, all of one shape.
        rows: the class of each row, or the one class of the whole tensor.
        weights: class -> site -> weight, for each class to combine.
        received: the tensor as it was broadcast.
        combine: how the values of several sites are combined.
    """
    result = {site: value.detach().clone() for site, value in sent.items()}
    for number, name in enumerate(rows):
        if name not in weights:
            continue
        where = row_of(rows, number)
        values = [sent[site][where].detach().double().cpu() for site in weights[name]]
        common = combine(torch.stack(values), list(weights[name].values())) if values else received[where]
        for own in result.values():
            own[where] = common.to(own.device, own.dtype)
    return result


class TooFewUpdatesError(RunError):
    """Fewer updates of a round were accepted than the method's server step needs."""

    def __init__(self, round_: int, result: AggregationResult, least: int) -> None:
        """State what is missing.

        Args:
            round_: the round, counted from 0.
            result: the accepted updates, which are not used, and the reasons for the rejected ones.
            least: the number of updates that the server step needs.
        """
        reasons = " ".join(result.rejected.values()) or "No other site sent an update."
        super().__init__(
            f"round {round_ + 1} has {len(result.updates)} accepted update(s), and the method's server step needs at least {least}; the "
            f"shared parameters stay as they are. {reasons}"
        )
        self.result = result


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
        RunError: a registered number of training cases is not allowed.
    """
    check_registration(registered)
    accepted, rejected = screen(updates, spec, round=round, registered=registered)
    bounded = bound_updates(accepted, received or {}, limits)
    rejected |= bounded.rejected
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
