"""Bounds on how much one site can change the shared parameters in one round; the server applies them, whatever the site has checked.

Three bounds, applied in this order before the method's server step:

1. an update whose norm is above the manifest's `max_change` is refused; if its quantization scales alone show that, it is not decoded;
2. a site's share of the average is at most `max_share`, whatever number of training cases it declares;
3. an update whose norm is above `median_factor` times the median norm of the round's accepted updates is scaled down to that norm; for a
   site whose weight is above the even share 1 / n, the limit is lower in the same proportion. The median of an even number of norms is the
   lower one of the two in the middle, because with two updates the higher one would be its own yardstick.

With these bounds the contribution of one of four sites is at most three quarters of the median norm. The parameters of a class that only n
sites annotate are averaged over these (`federation.aggregation`), with the same largest share of one of them; there the contribution of one
of n equal sites is at most 3 / n of the median norm. With two sites the median is the smaller norm, so that a site whose update is far too
small makes the other one's contribution small too, which the record of the round says. Norm bounding: Sun et al., "Can You Really Backdoor
Federated Learning?", 2019, section 3, with the median of the round in place of a constant.

A local run applies none of them: there one person has all data, and all updates are made by the same program.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from pfedsam.core.tensors import NamedTensors
from pfedsam.federation.update import Update

MEDIAN_FACTOR = 3.0
MAX_SHARE = 0.5
_STEPS = 2**20
"""Whole numbers for one case, in which weights are expressed if a share is limited, so that rounding them does not exceed the limit."""


@dataclass(frozen=True)
class Limits:
    """Bounds on the update of one site in one round."""

    max_change: float = math.inf
    """Largest L2 norm of an update's change, from the manifest."""
    median_factor: float | None = None
    """Updates whose norm is above this multiple of the round's median norm are scaled down to it; None: no scaling."""
    max_share: float = 1.0
    """Largest share of one site in the average, if there are enough sites for it."""


NO_LIMITS = Limits()
"""The limits of a local run."""


@dataclass(frozen=True)
class BoundedUpdates:
    """The updates of a round after the bounds were applied."""

    updates: tuple[Update, ...]
    """Their numbers of cases are the weights: the declared numbers or, if a share was too large, larger numbers in another proportion."""
    scaled: Mapping[str, float]
    """Site -> the factor by which its change was scaled down; only sites whose change was."""
    rejected: Mapping[str, str]
    """Site -> the reason for the rejection."""


def bound_updates(updates: Sequence[Update], received: NamedTensors, limits: Limits) -> BoundedUpdates:
    """Apply the three bounds to updates that have passed `update.check`.

    Args:
        updates: at most one update per site.
        received: the shared parameters that were broadcast in this round.
        limits: the bounds to apply.
    """
    if limits == NO_LIMITS:
        return BoundedUpdates(tuple(updates), {}, {})
    accepted: list[Update] = []
    norms: dict[str, float] = {}
    rejected: dict[str, str] = {}
    for update in updates:
        norm = change_norm(received, update.tensors)
        if norm <= limits.max_change:
            accepted.append(update)
            norms[update.site] = norm
        else:
            rejected[update.site] = (
                f"site {update.site} sent an update of norm {norm:.3g}; the manifest allows {limits.max_change:.3g}."
            )
    weights = cap_shares({update.site: update.cases for update in accepted}, limits.max_share)
    factors = scale_factors(norms, weights, limits.median_factor)
    capped = any(weights[update.site] != update.cases for update in accepted)
    steps = _STEPS if capped else 1
    weighed = [replace(update, cases=max(1, math.floor(weights[update.site] * steps))) for update in accepted]
    bounded = tuple(_scale(update, received, factors.get(update.site, 1.0)) for update in weighed)
    return BoundedUpdates(bounded, factors, rejected)


def cap_shares(cases: Mapping[str, int], max_share: float) -> dict[str, float]:
    """Site -> weight, where no weight is more than `max_share` of the sum; the weights are the numbers of cases if these fulfil this.

    With fewer than 1 / max_share sites all weights are equal.
    """
    share = max(max_share, 1 / len(cases)) if cases else 1.0
    largest_first = sorted(cases, key=lambda site: (-cases[site], site))
    capped: list[str] = []
    while True:
        rest = sum(cases[site] for site in largest_first[len(capped) :])
        if len(capped) * share >= 1 - 1e-12:
            return dict.fromkeys(cases, 1.0)
        limit = share * rest / (1 - len(capped) * share)
        if len(capped) == len(cases) or cases[largest_first[len(capped)]] <= share * (rest + len(capped) * limit):
            return {site: limit if site in capped else cases[site] for site in cases}
        capped.append(largest_first[len(capped)])


def scale_factors(
    norms: Mapping[str, float], weights: Mapping[str, float], median_factor: float | None
) -> dict[str, float]:
    """Site -> factor below 1, for each site whose update is too large compared with those of the other sites."""
    if median_factor is None or not norms:
        return {}
    median, total = statistics.median_low(norms.values()), sum(weights.values())
    factors = {}
    for site, norm in norms.items():
        limit = median_factor * median * min(1.0, total / (len(norms) * weights[site]))
        if norm > limit:
            factors[site] = limit / norm
    return factors


def change_norm(before: NamedTensors, after: NamedTensors) -> float:
    """The L2 norm of the difference between two sets of tensors with equal names and shapes, computed in float64."""
    squares = (float((after[n].double() - before[n].double()).square().sum()) for n in sorted(before))
    return math.sqrt(sum(squares))


def _scale(update: Update, received: NamedTensors, factor: float) -> Update:
    """The update with its change relative to `received` multiplied by a factor, computed in float64."""
    if factor == 1.0:
        return update
    scaled: dict[str, torch.Tensor] = {}
    for name, value in update.tensors.items():
        base = received[name].to(torch.float64)
        scaled[name] = (base + (value.to(torch.float64) - base) * factor).to(value.dtype)
    return replace(update, tensors=scaled)
