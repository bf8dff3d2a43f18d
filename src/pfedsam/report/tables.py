"""Tables for the terminal: one run, its classes, and several runs side by side; the command line prints them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from rich.table import Table
from rich.text import Text

from pfedsam.report.format import MISSING, format_bytes, format_count, format_gain, format_seconds, format_value
from pfedsam.report.summary_file import SiteEntry, Summary, Values


def run_tables(summary: Summary) -> list[Table]:
    """What the terminal shows of one run: a table of its sites, and one of its classes where there are several."""
    by_class = class_table(summary)
    return [run_table(summary)] if by_class is None else [run_table(summary), by_class]


def run_table(summary: Summary) -> Table:
    """One run: each site's models, then the mean and the worst site.

    The gain over local training alone is a column where the summary knows it (`with_local_only`). Where distances of some
    sites are in mm and of others in pixels, each has its unit, and there is no mean and no worst site of them.
    """
    unit = heading_unit(summary)
    mixed = not unit
    with_gain = any(site.local_only for site in summary.sites.values())
    size = f"{format_count(len(summary.sites), 'site')}, {format_count(summary.rounds, 'round')}"
    table = Table(title=f"{summary.method}: {size}", title_justify="left")
    table.add_column("site", no_wrap=True)
    for heading in ("cases", "Dice", "IoU", f"HD95{unit}", f"ASSD{unit}", "missed", "Dice shared"):
        table.add_column(Text(heading), justify="right", no_wrap=True)
    if with_gain:
        table.add_column("gain over local-only", justify="right")
    for name, site in summary.sites.items():
        table.add_row(Text(name), *_run_cells(site, with_gain, distance_cells(site.in_use, mixed=mixed)))
    table.add_section()
    mean_distances = distance_cells(summary.mean.in_use, mixed=mixed)
    table.add_row("mean", *_run_cells(summary.mean, with_gain, mean_distances), style="bold")
    if summary.worst_site is not None:
        worst = summary.sites[summary.worst_site]
        distances = distance_cells(None if mixed else worst.in_use, mixed=mixed)
        table.add_row(Text(f"worst: {summary.worst_site}"), *_run_cells(worst, with_gain, distances), style="bold")
    table.caption = undefined_note(summary)
    return table


def class_table(summary: Summary) -> Table | None:
    """Dice of each class at each site, and in how many of the cases that have it it was missed; None where there is one class only."""
    mean = summary.mean.in_use
    if mean is None or len(mean.classes) < 2:
        return None
    table = Table(title="Dice by class, and missed cases of those that have the class", title_justify="left")
    table.add_column("site", no_wrap=True)
    for name in mean.classes:
        table.add_column(Text(name), justify="right")
    for name, site in summary.sites.items():
        if site.in_use:
            table.add_row(Text(name), *(_class_cell(values) for values in site.in_use.classes.values()))
    table.add_section()
    table.add_row("mean, all cases", *(_class_cell(values) for values in mean.classes.values()), style="bold")
    return table


def missed_cell(values: Values | None) -> str:
    """`3 of 12`: cases (of an entry, cases times classes) whose truth holds a class and whose prediction does not; a dash if not known."""
    if values is None or values.missed is None:
        return MISSING
    return f"{values.missed} of {values.present}"


def _class_cell(values: Values) -> Text:
    return Text(f"{format_value(values.dice)}, {missed_cell(values)}")


def comparison_table(runs: Mapping[str, Summary]) -> Table:
    """Several runs: Dice of the model in use, sites down and runs across; then mean, worst site, bytes and seconds.

    The best value of a row is bold; a site that a run did not have is a dash.
    """
    table = Table(title="Dice of the model that each site would use", title_justify="left")
    table.add_column("site", no_wrap=True)
    for label in runs:
        table.add_column(Text(label), justify="right", no_wrap=True)
    rows = dice_rows(runs)
    for name, values in rows.sites.items():
        table.add_row(Text(name), *_best_bold(values))
    table.add_section()
    table.add_row("mean", *_best_bold(rows.mean))
    table.add_row("worst site", *_best_bold(rows.worst))
    if len({frozenset(run.sites) for run in runs.values()}) > 1:
        table.caption = "the runs have different sites: each mean is over the run's own"
    table.add_section()
    table.add_row("sent per site and round", *(_up_bytes(run) for run in runs.values()))
    table.add_row("time", *(format_seconds(run.seconds.get("total")) for run in runs.values()))
    return table


MISSED_NOTE: Final = (
    "A class is missed in a case where the truth holds it and the prediction has nothing of it. Such a case counts with Dice 0, but it "
    "has no HD95 and no ASSD: these are means over the cases in which the class was found, and look good where it is missed."
)
_SPELLING: Final = {"dice": "Dice", "iou": "IoU", "hd95": "HD95", "assd": "ASSD"}


@dataclass(frozen=True)
class DiceRows:
    """Dice of the model in use, one value a run in the order of the runs; None where undefined or no such site."""

    sites: dict[str, list[float | None]]
    mean: list[float | None]
    worst: list[float | None]


def dice_rows(runs: Mapping[str, Summary]) -> DiceRows:
    """What a comparison of runs shows: every site of any run in alphabetical order, the means, the worst sites."""
    names = sorted({name for run in runs.values() for name in run.sites})
    return DiceRows(
        sites={name: [_dice(run.sites.get(name)) for run in runs.values()] for name in names},
        mean=[_dice(run.mean) for run in runs.values()],
        worst=[_dice(run.sites.get(run.worst_site or "")) for run in runs.values()],
    )


def undefined_note(summary: Summary) -> str | None:
    """Of how many values HD95 and ASSD are means, and why the others are undefined; None where all are defined."""
    entry = summary.mean.in_use
    if entry is None or not any(entry.undefined.get(name) for name in ("dice", "iou", "hd95", "assd")):
        return None
    total = entry.cases * len(entry.classes)
    if entry.missed is None or entry.extra is None or entry.absent is None:
        known = {name: count for name, count in entry.undefined.items() if count and name in _SPELLING}
        parts = ", ".join(f"{_SPELLING[name]} {count}" for name, count in known.items())
        return f"Undefined and left out of the means, of {total} values (cases times classes): {parts}."
    reasons = {
        "the prediction misses the class": entry.missed,
        "only the prediction holds the class": entry.extra,
        "neither holds the class (no Dice and IoU either)": entry.absent,
    }
    told = "; ".join(f"{count} because {reason}" for reason, count in reasons.items() if count)
    both = total - entry.missed - entry.extra - entry.absent
    return f"HD95 and ASSD are means of {both} of {total} values (cases times classes). Undefined are: {told}."


def heading_unit(summary: Summary) -> str:
    """The unit of the distances of the models in use, as a heading ends with it; nothing where the sites differ in it."""
    unit = summary.mean.in_use.unit if summary.mean.in_use else "px"
    return "" if unit == "mixed" else f" [{unit}]"


def volume_cell(values: Values) -> str:
    """The volume difference with its unit; a dash where it is not defined."""
    found = values.volume_difference
    if found is None:
        return MISSING
    return f"{found:.4g} {str(values.volume_unit).replace('mm2', 'mm²')}"


def distance_cells(entry: Values | None, *, mixed: bool) -> tuple[str, str]:
    """HD95 and ASSD of one model, each with its unit where the sites differ in it; dashes where there is no model."""
    if entry is None:
        return MISSING, MISSING
    return _distance(entry.hd95, entry, mixed), _distance(entry.assd, entry, mixed)


def _distance(value: float | None, entry: Values, mixed: bool) -> str:
    return f"{format_value(value, 2)} {entry.unit}" if mixed and value is not None else format_value(value, 2)


def _run_cells(site: SiteEntry, with_gain: bool, distances: tuple[str, str]) -> list[Text]:
    """The numbers of one row of a run's table."""
    used = site.in_use
    cells = [Text(str(used.cases) if used else MISSING)]
    cells += [Text(format_value(value)) for value in ((used.dice, used.iou) if used else (None, None))]
    cells += [Text(distance) for distance in distances]
    cells.append(Text(missed_cell(used)))
    cells.append(Text(format_value(site.shared.dice if site.shared else None)))
    if with_gain:
        gain = site.gain
        style = "" if gain is None else ("green" if gain > 0 else "red")
        cells.append(Text(format_gain(gain), style=style))
    return cells


def _best_bold(values: list[float | None]) -> list[Text]:
    """The values, the highest in bold."""
    best = max((value for value in values if value is not None), default=None)
    return [Text(format_value(value), style="bold" if value is not None and value == best else "") for value in values]


def _up_bytes(run: Summary) -> str:
    return format_bytes(run.communication.up_bytes_per_site_round)


def _dice(site: SiteEntry | None) -> float | None:
    return None if site is None or site.in_use is None else site.in_use.dice
