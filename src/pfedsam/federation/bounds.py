"""Bounds on what one site can do to the shared parameters in one round, held by the server whatever the site itself has checked.

Three bounds, applied in this order before the method's server step:

1. an update whose norm is above the manifest's `max_change` is refused, and one whose scales alone show that is refused undecoded;
2. a site's share of the average is at most `max_share`, whatever number of training cases it declares;
3. an update whose norm is above `median_factor` times the median norm of the round's accepted updates is scaled down to that; for a
   site that weighs more than an even share 1 / n, the limit is lower in the same proportion.

With them the contribution of one of four sites is at most three quarters of the median norm. Norm bounding: Sun et al., "Can You Really
Backdoor Federated Learning?", 2019, section 3, with the median of the round in the place of a constant.

The in-process federation applies none of them: there one person holds all data, and every update comes from the same program.
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


@dataclass(frozen=True)
class Limits:
    """What a coordinator lets one site do in one round."""

    max_change: float = math.inf
    """Largest L2 norm of an update; the manifest's."""
    median_factor: float | None = None
    """Updates above so many times the round's median norm are scaled down to that; None: never."""
    max_share: float = 1.0
    """Largest share of the average that one site has, where there are enough sites for it."""


NO_LIMITS = Limits()
"""Of the in-process federation."""


@dataclass(frozen=True)
class BoundedUpdates:
    """The updates of a round as the method's server step may use them."""

    updates: tuple[Update, ...]
    """Their numbers of cases are what they weigh: the declared ones, where no share is too large."""
    scaled: Mapping[str, float]
    """The factor by site whose change was scaled down."""
    rejected: Mapping[str, str]
    """Reason by site."""


def bound_updates(updates: Sequence[Update], received: NamedTensors, limits: Limits) -> BoundedUpdates:
    """Apply the three bounds to updates that have passed `update.check`.

    Args:
        updates: at most one of each site.
        received: the shared parameters that were broadcast in this round.
        limits: of the coordinator.
    """
    if limits == NO_LIMITS:
        return BoundedUpdates(tuple(updates), {}, {})
    norms = {update.site: change_norm(received, update.tensors) for update in updates}
    rejected = {
        site: f"site {site} sent an update of norm {norm:.3g}; the manifest allows {limits.max_change:.3g}."
        for site, norm in norms.items()
        if not norm <= limits.max_change
    }
    accepted = [update for update in updates if update.site not in rejected]
    weights = cap_shares({update.site: update.cases for update in accepted}, limits.max_share)
    factors = scale_factors({update.site: norms[update.site] for update in accepted}, weights, limits.median_factor)
    weighed = [replace(update, cases=max(1, math.floor(weights[update.site]))) for update in accepted]
    bounded = tuple(_scale(update, received, factors.get(update.site, 1.0)) for update in weighed)
    return BoundedUpdates(bounded, factors, rejected)


def cap_shares(cases: Mapping[str, int], max_share: float) -> dict[str, float]:
    """Weights by site of which none is more than `max_share` of their sum; unchanged where the numbers of cases are so already.

    With fewer than 1 / max_share sites all weigh the same.
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
    """The factor, below 1, of each site whose update is too large beside the other sites'."""
    if median_factor is None or not norms:
        return {}
    median, total = statistics.median(norms.values()), sum(weights.values())
    factors = {}
    for site, norm in norms.items():
        limit = median_factor * median * min(1.0, total / (len(norms) * weights[site]))
        if norm > limit:
            factors[site] = limit / norm
    return factors


def change_norm(before: NamedTensors, after: NamedTensors) -> float:
    """The L2 norm of the difference of two sets of equal names and shapes, summed in float64."""
    squares = (float((after[n].double() - before[n].double()).square().sum()) for n in sorted(before))
    return math.sqrt(sum(squares))


def _scale(update: Update, received: NamedTensors, factor: float) -> Update:
    """The update with its change multiplied by a factor, computed in float64."""
    if factor == 1.0:
        return update
    scaled: dict[str, torch.Tensor] = {}
    for name, value in update.tensors.items():
        base = received[name].to(torch.float64)
        scaled[name] = (base + (value.to(torch.float64) - base) * factor).to(value.dtype)
    return replace(update, tensors=scaled)
