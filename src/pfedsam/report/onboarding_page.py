"""The result files of onboarding: the shared model at an unseen site, and the gain by training with a few labelled cases."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pfedsam.core import atomic
from pfedsam.evaluation.statistics import mean_and_spread
from pfedsam.report.accuracy_page import Study, write_study
from pfedsam.report.figures import method_dots
from pfedsam.report.format import format_value
from pfedsam.report.result_file import markdown

MEMBER, UNSEEN = "member", "unseen"
"""Columns: the site as a member from the start, and the shared model of the federation without the site."""


@dataclass(frozen=True)
class Joined:
    """One site that was left out, with one method and seed; Dice in points of 100."""

    label: str
    site: str
    seed: int
    columns: Mapping[str, float]
    """Dice by column: member, unseen, and `<way> <cases>`."""
    in_use: str
    """The onboarding option that a new site would use."""


def write_onboarding(folder: Path, study: Study, joined: Sequence[Joined]) -> dict[str, float | None]:
    """Write NAME.json, NAME.md and NAME.svg from all results so far, and return the headline figures.

    Raises:
        StoreError: a file could not be written.
    """
    figures: dict[str, float | None] = {}
    parts = [f"# {study.name}", f"`{study.command}`", _HOW]
    for line in study.lines:
        rows = [one for one in joined if one.label == line.label]
        figures |= _figures(line.label, rows)
        parts += [f"## {line.label}", _table(rows)] if rows else [f"## {line.label}", "Not run yet."]
    plain = [{"method": o.label, "site": o.site, "seed": o.seed, "dice": dict(o.columns)} for o in joined]
    write_study(
        folder,
        study,
        figures,
        "\n\n".join(parts),
        sites=plain,
    )
    subject = [one for one in joined if one.label == study.subject] or list(joined)
    if subject:
        atomic.write_bytes(folder / f"{study.name}.svg", method_dots(_dots(subject)), mode=0o644)
    return figures


_HOW = (
    "Each site in turn is left out of the federation and then joins it. Dice in points of 100 on the site's test cases, mean over seeds. "
    "`member`: the site took part from the start. `unseen`: the shared model of a federation without the site. The other columns give "
    "the onboarding option and the number of labelled cases."
)


def _figures(label: str, rows: Sequence[Joined]) -> dict[str, float | None]:
    """The means over sites and seeds, and each column of the option in use as a share of the member's Dice, in per cent."""
    figures: dict[str, float | None] = {}
    for column in _columns(rows):
        figures[f"dice_mean.{label}.{column.replace(' ', '_')}"] = _mean(o.columns.get(column) for o in rows)
    member = _mean(one.columns.get(MEMBER) for one in rows)
    for column in _columns(rows):
        if column.rpartition(" ")[0] == rows[0].in_use and member:
            value = _mean(one.columns.get(column) for one in rows)
            cases = column.rpartition(" ")[2]
            figures[f"share_of_member.{label}.{cases}"] = 100 * value / member if value is not None else None
    return figures


def _table(rows: Sequence[Joined]) -> str:
    columns, sites = _columns(rows), sorted({one.site for one in rows})
    lines = []
    for site in sites:
        own = [one for one in rows if one.site == site]
        lines.append([site, *(format_value(_mean(o.columns.get(c) for o in own), 1) for c in columns)])
    lines.append(["**mean**", *(format_value(_mean(o.columns.get(c) for o in rows), 1) for c in columns)])
    return markdown(["site", *columns], lines)


def _dots(rows: Sequence[Joined]) -> dict[str, dict[str, list[float]]]:
    columns = _columns(rows)
    found = {
        site: {c: [o.columns[c] / 100 for o in rows if o.site == site and c in o.columns] for c in columns}
        for site in sorted({one.site for one in rows})
    }
    means = {c: [v for values in found.values() for v in values[c]] for c in columns}
    return found | {"mean": {c: [sum(v) / len(v)] for c, v in means.items() if v}}


def _columns(rows: Iterable[Joined]) -> list[str]:
    return list(dict.fromkeys(column for one in rows for column in one.columns))


def _mean(values: Iterable[float | None]) -> float | None:
    return mean_and_spread([value for value in values if value is not None])[0]
