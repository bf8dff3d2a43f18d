"""The result files of onboarding: the shared model at an unseen site, and the gain by training with a few labelled cases."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from pfedsam.core import atomic
from pfedsam.evaluation.statistics import mean_and_spread
from pfedsam.report.accuracy_page import Study, write_study
from pfedsam.report.figures import method_dots
from pfedsam.report.format import format_value
from pfedsam.report.result_file import markdown

MEMBER, UNSEEN = "member", "unseen"
"""Columns: the site as a member from the start, and the shared model of the federation without the site, if the method has one."""


@dataclass(frozen=True)
class Joined:
    """One site that was left out, with one method and seed; Dice in points of 100."""

    label: str
    site: str
    seed: int
    columns: Mapping[str, float]
    """Dice by column: member, unseen, and `<way> <cases>`; a method without a shared model has no column unseen."""
    in_use: str
    """The onboarding option that a new site would use."""


def write_onboarding(folder: Path, study: Study, joined: Sequence[Joined]) -> dict[str, float | None]:
    """Write NAME.json, NAME.md and NAME.svg from all results so far, and return the headline figures.

    Raises:
        StoreError: a file could not be written.
    """
    figures: dict[str, float | None] = {}
    parts = [f"# {study.name}", f"`{study.command}`", _HOW]
    rows = _by_label(study, joined)
    for label, own in rows.items():
        figures |= _figures(label, own)
        parts += [f"## {label}", _table(own) if own else "Not run yet."]
    plain = [{"method": o.label, "site": o.site, "seed": o.seed, "dice": dict(o.columns)} for o in joined]
    write_study(folder, study, figures, "\n\n".join(parts), sites=plain)
    subject = rows.get(study.subject) or joined
    if subject:
        atomic.write_bytes(folder / f"{study.name}.svg", method_dots(_dots(subject)), mode=0o644)
    return figures


def _by_label(study: Study, joined: Sequence[Joined]) -> dict[str, list[Joined]]:
    """The results of each method of the study; an empty list for a method that has not been run."""
    return {line.label: [one for one in joined if one.label == line.label] for line in study.lines}


_HOW = (
    "Each site in turn is left out of the federation and then joins it. Dice in points of 100 on the site's test cases, mean over seeds. "
    "`member`: the site took part from the start. `unseen`: the shared model of a federation without the site, if the "
    "method has one. The other columns give the onboarding option and the number of labelled cases."
)


def _figures(label: str, rows: Sequence[Joined]) -> dict[str, float | None]:
    """The means over sites and seeds, and each column of the option in use as a share of the member's Dice, in per cent."""
    means = {column: _mean(_dice(rows, column)) for column in _columns(rows)}
    figures = {f"dice_mean.{label}.{column.replace(' ', '_')}": value for column, value in means.items()}
    member = means.get(MEMBER)
    for column, value in means.items():
        way, _, cases = column.rpartition(" ")
        if way == rows[0].in_use and member:
            figures[f"share_of_member.{label}.{cases}"] = 100 * value / member if value is not None else None
    return figures


def _table(rows: Sequence[Joined]) -> str:
    columns = _columns(rows)
    lines = {site: [_dice(rows, column, site) for column in columns] for site in _sites(rows)}
    lines["**mean**"] = [_dice(rows, column) for column in columns]
    cells = [[name, *(format_value(_mean(values), 1) for values in line)] for name, line in lines.items()]
    return markdown(["site", *columns], cells)


def _dots(rows: Sequence[Joined]) -> dict[str, dict[str, list[float]]]:
    """Dice in 0..1 by site and column, one value per seed; the last row holds the mean over all sites and seeds."""
    columns, sites = _columns(rows), _sites(rows)
    found = {site: {column: [v / 100 for v in _dice(rows, column, site)] for column in columns} for site in sites}
    by_column = {column: list(chain.from_iterable(row[column] for row in found.values())) for column in columns}
    return found | {"mean": {column: [sum(values) / len(values)] for column, values in by_column.items()}}


def _dice(rows: Iterable[Joined], column: str, site: str | None = None) -> list[float]:
    """The values of a column at one site, or at all sites, in points of 100."""
    return [one.columns[column] for one in rows if column in one.columns and site in (None, one.site)]


def _sites(rows: Iterable[Joined]) -> list[str]:
    return sorted({one.site for one in rows})


def _columns(rows: Iterable[Joined]) -> list[str]:
    return list(dict.fromkeys(column for one in rows for column in one.columns))


def _mean(values: Sequence[float]) -> float | None:
    return mean_and_spread(values)[0]
