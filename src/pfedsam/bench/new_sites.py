"""Leave-one-site-out benchmark: what a trained federation is worth to a site that did not take part in it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import product

from pfedsam.bench.plan import Outcome, Plan, Step, run_plan
from pfedsam.core.errors import OptionError, RunError
from pfedsam.engine.onboarding import Newcomer, onboard
from pfedsam.engine.opened import open_run
from pfedsam.experiment.build import build_method, refuse_too_few_sites
from pfedsam.experiment.suite import Entry
from pfedsam.report.onboarded import NOTHING, Onboarded
from pfedsam.report.onboarding_page import MEMBER, UNSEEN, Joined
from pfedsam.report.summary_file import SiteEntry


def run_new_sites(
    plan: Plan,
    labels: Sequence[int],
    steps: int,
    tell: Callable[[Step], None],
    finished: Callable[[Sequence[Joined]], None],
) -> list[Joined]:
    """Train each federation without one of its sites, and onboard that site with each of the numbers of labelled cases.

    The full federation is also trained, or taken from an earlier `bench accuracy` in the same folder, so that the new site is compared
    with its result as a member of the federation on the same split.

    Args:
        plan: methods, seeds and folder.
        labels: numbers of labelled cases.
        steps: optimiser steps of each onboarding option that trains.
        tell: called on progress.
        finished: called after each site and seed with all results so far.

    Raises:
        RunError: a federation could not be trained.
        DataError: a site's data is wrong.
        OptionError: no site can be left out, or a method shares nothing; nothing was run.
    """
    _refuse_what_no_site_can_join(plan)
    members = _trained(plan, tell)
    joined: list[Joined] = []
    for site in plan.sites:
        away = replace(plan, leave_out=site)
        _trained(away, tell)
        for seed in plan.seeds:
            for entry in plan.entries:
                member = members.runs[entry.label][seed].summary.sites[site]
                joined.append(_join(plan, away, entry, seed, member, labels, steps))
                finished(joined)
    return joined


def _refuse_what_no_site_can_join(plan: Plan) -> None:
    """Refuse federations that a new site cannot join, before any is trained.

    Raises:
        OptionError: a method shares nothing, or too few sites remain without one of them.
    """
    if len(plan.sites) == 1:
        raise OptionError(
            f"The only site is {next(iter(plan.sites))}: without it no federation remains. Give two or more."
        )
    for site, entry in product(plan.sites, plan.entries):
        options = replace(plan, leave_out=site).options(entry, plan.seeds[0])
        method = build_method(options)
        if "shared" not in method.placement(method.adapt(options.model)).values():
            raise OptionError(
                f"{entry.label} (method {method.name}) shares nothing from which a new site could start. Leave it out of --methods."
            )
        refuse_too_few_sites(options)


def _trained(plan: Plan, tell: Callable[[Step], None]) -> Outcome:
    outcome = run_plan(plan, tell, lambda _: None)
    if outcome.failed:
        raise RunError("\n".join(f"{run}: {message}" for run, message in outcome.failed.items()))
    return outcome


def _join(
    plan: Plan, away: Plan, entry: Entry, seed: int, member: SiteEntry, labels: Sequence[int], steps: int
) -> Joined:
    site, folder = str(away.leave_out), away.folder(entry, seed)
    opened, cache = open_run(folder), away.options(entry, seed).runtime.cache_folder
    results: dict[int, Onboarded] = {}
    for number in labels:
        new = Newcomer(site, plan.sites[site], number, steps, seed)
        results[number] = onboard(opened, new, folder.with_name(f"{entry.label}-onboard-{number}"), cache=cache)
    columns = _columns(member, results)
    points = {name: 100 * value for name, value in columns.items() if value is not None}
    return Joined(entry.label, site, seed, points, next(iter(results.values())).in_use)


def _columns(member: SiteEntry, results: Mapping[int, Onboarded]) -> dict[str, float | None]:
    """Dice by column, as `Joined.columns`, in 0..1, from the results by number of labelled cases; None where undefined."""
    ways = next(iter(results.values())).ways
    columns = {MEMBER: member.in_use.dice if member.in_use else None}
    for way in ways:
        if way == NOTHING:
            columns[UNSEEN] = ways[NOTHING]["dice"]
        else:
            columns |= {f"{way} {number}": found.ways[way]["dice"] for number, found in results.items()}
    return columns
