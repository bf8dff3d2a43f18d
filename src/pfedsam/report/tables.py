"""Tables for the terminal: the sites and classes of one run, and several runs side by side. The command line prints them."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from rich.table import Table
from rich.text import Text

from pfedsam.core.small_numbers import OFF
from pfedsam.report.format import (
    MISSING,
    format_bytes,
    format_cases,
    format_count,
    format_gain,
    format_interval,
    format_seconds,
    format_value,
)
from pfedsam.report.intervals import (
    NO_INTERVALS,
    Interval,
    RunIntervals,
    are_apart,
    difference_interval,
    missing_note,
)
from pfedsam.report.summary_file import SINCE_RESUMED, Entry, SiteEntry, Summary, Values

Intervals: TypeAlias = Mapping[str, RunIntervals | None]
"""The intervals of each run by its label; None if the scores of single cases are not available."""

Mark: TypeAlias = Literal["", "best", "apart"]


def run_tables(summary: Summary) -> list[Table]:
    """The tables of one run: one of its sites and, if there are several classes, one of its classes."""
    by_class = class_table(summary)
    return [run_table(summary)] if by_class is None else [run_table(summary), by_class]


def run_table(summary: Summary) -> Table:
    """The table of one run: the models of each site, then the mean over sites and the site with the lowest Dice.

    The gain over local-only training is a column if the summary contains it (`with_local_only`). If the distances of some sites are in mm
    and those of others in pixels, each has its unit, and no mean and no worst value of the distances is shown.
    """
    unit = heading_unit(summary)
    mixed, least = not unit, summary.min_cases
    with_gain = any(site.local_only for site in summary.sites.values())
    size = f"{format_count(len(summary.sites), 'site')}, {format_count(summary.rounds, 'round')}"
    table = Table(title=f"{summary.method}: {size}", title_justify="left")
    _add_run_columns(table, unit, with_gain)
    for name, site in summary.sites.items():
        table.add_row(Text(name), *_run_cells(site, with_gain, distance_cells(site.in_use, mixed=mixed), least))
    table.add_section()
    mean_distances = distance_cells(summary.mean.in_use, mixed=mixed)
    table.add_row("mean", *_run_cells(summary.mean, with_gain, mean_distances), style="bold")
    if summary.worst_site is not None:
        worst = summary.sites[summary.worst_site]
        distances = distance_cells(None if mixed else worst.in_use, mixed=mixed)
        cells = _run_cells(worst, with_gain, distances, least)
        table.add_row(Text(f"lowest Dice: {summary.worst_site}"), *cells, style="bold")
    table.caption = " ".join(filter(None, (undefined_note(summary), small_numbers_note(summary)))) or None
    return table


def _add_run_columns(table: Table, unit: str, with_gain: bool) -> None:
    """The columns of `_run_cells`, after that of the sites' names; in a narrow terminal names are wrapped, and numbers stay whole."""
    table.add_column("site", overflow="fold")
    for heading in ("cases", "Dice", "IoU", f"HD95{unit}", f"ASSD{unit}", "missed", "Dice shared"):
        table.add_column(Text(heading), justify="right")
    if with_gain:
        table.add_column("gain over local-only", justify="right")


def class_table(summary: Summary) -> Table | None:
    """The table of the Dice and the missed cases of each class at each site; None if there is only one class."""
    mean = summary.mean.in_use
    if mean is None or len(mean.classes) < 2:
        return None
    table = Table(title="Dice by class, and missed cases of those that have the class", title_justify="left")
    table.add_column("site", no_wrap=True)
    for name in mean.classes:
        table.add_column(Text(name), justify="right")
    for name, site in summary.sites.items():
        if site.in_use:
            table.add_row(Text(name), *_class_cells(site.in_use))
    table.add_section()
    table.add_row("mean, all cases", *_class_cells(mean), style="bold")
    return table


def missed_cell(values: Values | None) -> str:
    """Missed cases as `3 of 12`: of the cases whose truth contains a class, those whose prediction does not; a dash if not known.

    For an entry, the pairs of cases and classes are counted. For a class that the site does not annotate, the cell is "not annotated".
    The cell of a withheld count is `- of 12` with an en dash: the count may be small, or so large that the rest of the cases is small.
    """
    if values is None:
        return MISSING
    if values.not_annotated and not any((values.present, values.extra, values.absent)):
        return "not annotated"
    if values.present is None:
        return MISSING
    return f"{format_cases(values.missed)} of {values.present}"


def _class_cells(entry: Entry) -> list[Text]:
    """Dice and missed cases of each class of a model."""
    return [Text(f"{format_value(values.dice)}, {missed_cell(values)}") for values in entry.classes.values()]


def comparison_table(runs: Mapping[str, Summary], intervals: Intervals) -> Table:
    """The table of several runs: Dice of the model in use by site (rows) and run (columns), then mean, worst site, steps, bytes and time.

    The interval of a value is shown below it. The best values of a row, including equal ones, are bold; they are blue if their interval
    does not overlap with that of any other run. A dash stands for a site that a run did not have.
    """
    table = Table(title="Dice of the model that each site would use", title_justify="left")
    table.add_column("site")
    table.add_column("test cases (patients)", justify="right", max_width=10)
    for label in runs:
        table.add_column(Text(label), justify="right")
    rows, found = dice_rows(runs), interval_rows(runs, intervals)
    for name, values in rows.sites.items():
        table.add_row(Text(name), tested(runs, name), *_marked(values, found.sites[name]))
    table.add_section()
    table.add_row("mean over sites", "", *_marked(rows.mean, found.mean))
    lowest = _marked(rows.worst, found.worst)
    for cell, run in zip(lowest, runs.values(), strict=True):
        if run.worst_site is not None:
            cell.append(f"\n({run.worst_site})", style="not bold dim")
    table.add_row("lowest Dice of a site", "", *lowest)
    table.add_section()
    for heading, cost in _COSTS.items():
        table.add_row(heading, "", *map(cost, runs.values()))
    table.caption = " ".join(filter(None, (comparison_note(runs, intervals), time_note(runs))))
    return table


_COSTS: Final[Mapping[str, Callable[[Summary], str]]] = {
    "steps per site": lambda run: format_value(run.steps, 0),
    "sent per site and round": lambda run: format_bytes(run.communication.up_bytes_per_site_round),
    "time": lambda run: format_seconds(run.seconds.get("total")),
}
"""What a run cost, by the heading of the row of a comparison."""


def comparison_note(runs: Mapping[str, Summary], intervals: Intervals) -> str:
    """Notes on a comparison: its seeds, the meaning of the intervals, and whether the means are over the same sites."""
    seeds = sorted({run.seed for run in runs.values()})
    notes = [
        f"One seed ({seeds[0]}): with another split, other initial weights and other batches, every number would differ."
        if len(seeds) == 1
        else f"One seed per run ({', '.join(map(str, seeds))}): the runs were not tested on the same cases."
    ]
    if any(found is not None for found in intervals.values()):
        notes += filter(None, [INTERVAL_NOTE, missing_note(intervals.values())])
    else:
        notes.append(NO_INTERVALS)
    if len({frozenset(run.sites) for run in runs.values()}) > 1:
        notes.append("The runs have different sites: each mean is over the sites of its run.")
    return " ".join(notes)


def time_note(runs: Mapping[str, Summary]) -> str | None:
    """A note on the runs without a time, and why it is missing; None if all have one."""
    missing = [label for label, run in runs.items() if "total" not in run.seconds]
    resumed = {label: runs[label].seconds[SINCE_RESUMED] for label in missing if SINCE_RESUMED in runs[label].seconds}
    notes = []
    if resumed:
        parts = ", ".join(f"{label} {format_seconds(seconds)}" for label, seconds in resumed.items())
        notes.append(
            "The whole time of a run that was interrupted is not known, because an interrupted program does not record its time. From when "
            f"it was last resumed to its end: {parts}."
        )
    if unknown := [label for label in missing if label not in resumed]:
        notes.append(f"The time of {', '.join(unknown)} was not recorded.")
    return " ".join(notes) or None


def best_marks(values: Sequence[float | None], intervals: Sequence[Interval | None]) -> list[Mark]:
    """The marks of the values of a row.

    The highest values, as rounded for display, are marked `best`, or `apart` if their interval does not overlap with that of any other run.
    """
    shown = {place: format_value(value) for place, value in enumerate(values) if value is not None}
    best = max(shown.values(), default=None)
    marks: list[Mark] = [""] * len(values)
    for place, text in shown.items():
        if text == best:
            others = [intervals[other] for other in shown if other != place]
            marks[place] = _mark_of_best(intervals[place], others)
    return marks


def _mark_of_best(interval: Interval | None, others: Sequence[Interval | None]) -> Mark:
    return "apart" if others and all(are_apart(interval, other) for other in others) else "best"


def _marked(values: Sequence[float | None], intervals: Sequence[Interval | None]) -> list[Text]:
    """The values with their intervals below; the best value is bold, and also blue if its interval does not overlap with any other."""
    styles = {"": "", "best": "bold", "apart": "bold blue"}
    cells = []
    for value, interval, mark in zip(values, intervals, best_marks(values, intervals), strict=True):
        cell = Text(format_value(value), style=styles[mark])
        if interval is not None and value is not None:
            cell.append(f"\n{format_interval(interval)}", style="not bold dim")
        cells.append(cell)
    return cells


def tested(runs: Mapping[str, Summary], site: str) -> str:
    """Numbers of test cases and patients of a site; several numbers if the runs were tested on different ones."""
    entries = [(run.sites[site].in_use, run.min_cases) for run in runs.values() if site in run.sites]
    return " / ".join(dict.fromkeys(format_cases(one.cases, one.patients, least) for one, least in entries if one))


INTERVAL_NOTE: Final = (
    "The range below a Dice is its 95 % interval (bootstrap over the site's test patients): how the Dice varies with the choice of "
    "patients of the same site. If two intervals overlap, the values may differ by chance. With few patients the interval is too narrow."
)
MISSED_NOTE: Final = (
    "A class is missed in a case if the truth contains it and the prediction does not. Such a case has Dice 0, but no HD95 and no ASSD. "
    "HD95 and ASSD are means over the cases in which the class was found, so they can be good although the class is often missed."
)
_SPELLING: Final = {"dice": "Dice", "iou": "IoU", "hd95": "HD95", "assd": "ASSD"}


@dataclass(frozen=True)
class DiceRows:
    """Dice of the model in use, one value per run in the order of the runs; None if undefined or if the run lacks the site."""

    sites: dict[str, list[float | None]]
    mean: list[float | None]
    worst: list[float | None]


@dataclass(frozen=True)
class IntervalRows:
    """The intervals of the values of `DiceRows`; None if a value has no interval."""

    sites: dict[str, list[Interval | None]]
    mean: list[Interval | None]
    worst: list[Interval | None]


def dice_rows(runs: Mapping[str, Summary]) -> DiceRows:
    """The Dice values of a comparison: all sites of all runs in alphabetical order, the means, and the worst sites."""
    return DiceRows(
        sites={name: [_dice(run.sites.get(name)) for run in runs.values()] for name in _all_sites(runs)},
        mean=[_dice(run.mean) for run in runs.values()],
        worst=[_dice(run.sites.get(run.worst_site or "")) for run in runs.values()],
    )


def interval_rows(runs: Mapping[str, Summary], intervals: Intervals) -> IntervalRows:
    """The intervals of the values that `dice_rows` returns."""
    return IntervalRows(
        sites={name: [_interval(intervals.get(label), name) for label in runs] for name in _all_sites(runs)},
        mean=[one.of_mean() if (one := intervals.get(label)) else None for label in runs],
        worst=[_interval(intervals.get(label), run.worst_site) for label, run in runs.items()],
    )


def _interval(known: RunIntervals | None, site: str | None) -> Interval | None:
    """The interval of a site's Dice in one run; None if the run has no intervals, or there is no such site."""
    return None if known is None or site is None else known.of_site(site)


def _all_sites(runs: Mapping[str, Summary]) -> list[str]:
    """The names of the sites of all runs in alphabetical order."""
    return sorted({name for run in runs.values() for name in run.sites})


def difference_rows(
    runs: Mapping[str, Summary], intervals: Intervals, against: str
) -> dict[str, dict[str, tuple[float, Interval | None]]]:
    """Dice minus that of the run `against`, with the interval of the difference, by site and run; the last key is the mean over sites.

    Both runs use the same resamples of patients, so that the interval is that of the paired difference.
    """
    rows, base = dice_rows(runs), intervals.get(against)
    table: dict[str, dict[str, tuple[float, Interval | None]]] = defaultdict(dict)
    for name, values in {**rows.sites, "mean over sites": rows.mean}.items():
        by_label = {label: value for label, value in zip(runs, values, strict=True) if value is not None}
        other = by_label.pop(against, None)
        if other is None:
            continue
        site = name if name in rows.sites else None
        for label, value in by_label.items():
            table[name][label] = (value - other, difference_interval(intervals.get(label), base, site))
    return dict(table)


def undefined_note(summary: Summary) -> str | None:
    """A note on the number of values in the means of HD95 and ASSD, and why the others are undefined; None if all are defined."""
    entry = summary.mean.in_use
    undefined = _undefined_counts(entry) if entry else []
    if entry is None or not undefined:
        return None
    total = _scored_pairs(entry, summary.min_cases)
    if total is None:
        return f"Undefined and left out of the means: {', '.join(undefined)}."
    pairs = f"{total} values (cases times classes{', without classes that a site does not annotate' if entry.not_annotated else ''})"
    if entry.missed is None or entry.extra is None or entry.absent is None:
        return f"Undefined and left out of the means, of {pairs}: {', '.join(undefined)}."
    both = total - entry.missed - entry.extra - entry.absent
    return f"HD95 and ASSD are means of {both} of {pairs}. Undefined are: {_undefined_reasons(entry.missed, entry.extra, entry.absent)}."


def _scored_pairs(entry: Entry, min_cases: int) -> int | None:
    """The number of pairs of a case and a class that its site annotates; None if a count for it was withheld."""
    if entry.cases is None or (entry.not_annotated is None and min_cases != OFF):
        return None
    return entry.cases * len(entry.classes) - (entry.not_annotated or 0)


def _undefined_counts(entry: Entry) -> list[str]:
    """The measures of the table that are undefined somewhere, each with the number of undefined values."""
    counts = {spelling: entry.undefined.get(name) for name, spelling in _SPELLING.items()}
    return [f"{spelling} {count}" for spelling, count in counts.items() if count]


def _undefined_reasons(missed: int, extra: int, absent: int) -> str:
    """Why distances are undefined, each reason with its number of pairs of case and class; a reason without such pairs is left out."""
    reasons = {
        "the prediction misses the class": missed,
        "only the prediction holds the class": extra,
        "neither holds the class (no Dice and IoU either)": absent,
    }
    return "; ".join(f"{count} because {reason}" for reason, count in reasons.items() if count)


def small_numbers_note(summary: Summary) -> str | None:
    """A note for studies that withhold small numbers; None for other studies."""
    if summary.min_cases == OFF:
        return None
    least = summary.min_cases
    return (
        f"Counts and scores over fewer than {least} cases, and counts from which such a count could be computed, stayed at the sites, so "
        f"that some are missing here; a site with fewer training cases has the weight of one with {least}."
    )


def heading_unit(summary: Summary) -> str:
    """The unit of the distances of the models in use, as a suffix of a heading; an empty text if the sites have different units."""
    unit = summary.mean.in_use.unit if summary.mean.in_use else "px"
    return "" if unit == "mixed" else f" [{unit}]"


_VOLUME_UNITS: Final = {"mm2": "mm²", "px": "pixels"}
"""Spelling of the units of a volume or an area."""


def volume_cell(values: Values) -> str:
    """The volume difference with its unit; a dash if it is undefined."""
    found = values.volume_difference
    if found is None:
        return MISSING
    return f"{found:.4g} {_VOLUME_UNITS.get(str(values.volume_unit), values.volume_unit)}"


def distance_cells(entry: Values | None, *, mixed: bool) -> tuple[str, str]:
    """HD95 and ASSD of one model, each with its unit if the sites have different units; dashes if there is no model."""
    if entry is None:
        return MISSING, MISSING
    return _distance(entry.hd95, entry, mixed), _distance(entry.assd, entry, mixed)


def _distance(value: float | None, entry: Values, mixed: bool) -> str:
    return f"{format_value(value, 2)} {entry.unit}" if mixed and value is not None else format_value(value, 2)


def _run_cells(site: SiteEntry, with_gain: bool, distances: tuple[str, str], min_cases: int = OFF) -> list[Text]:
    """The numbers of one row of a run's table."""
    used = site.in_use
    cells = [Text(format_cases(used.cases, min_cases=min_cases) if used else MISSING)]
    cells += [Text(format_value(value)) for value in ((used.dice, used.iou) if used else (None, None))]
    cells += [Text(distance) for distance in distances]
    cells.append(Text(missed_cell(used)))
    cells.append(Text(format_value(site.shared.dice if site.shared else None)))
    if with_gain:
        cells.append(Text(format_gain(site.gain)))
    return cells


def _dice(site: SiteEntry | None) -> float | None:
    return None if site is None or site.in_use is None else site.in_use.dice
