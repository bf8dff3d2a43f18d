"""Figures as SVG, each small enough to be shown on a phone.

The colours are those of Okabe and Ito's palette, which colour-blind readers can distinguish; lines also differ in their dashes. Text is
stored as text and shown in the reader's font. It is never parsed as mathematics, so that a site may be called `$x$`.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import chain
from typing import Any, Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pfedsam.report.format import format_bytes
from pfedsam.report.intervals import Interval
from pfedsam.report.records import Record
from pfedsam.report.summary_file import Summary
from pfedsam.report.tables import dice_rows

PERSONAL: Final = "#0072B2"
SHARED: Final = "#D55E00"
INK: Final = "#1c2733"
MUTED: Final = "#66727f"
FAINT: Final = "#d3dae1"
METHODS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_LEGEND_SHARE: Final = 0.95
"""Share of the width of a figure that a legend may take; a reader's font can be wider than the one that is measured."""
_MARKERS: Final = "osD^vPX"
_FEW = 5
"""Largest number of methods in one row of dots."""

_STYLE: Final[dict[Any, Any]] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "pfedsam",  # seed of the ids of SVG elements, so that the same run gives the same file
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.sans-serif": ["Helvetica Neue", "Arial", "Liberation Sans", "DejaVu Sans", "sans-serif"],
    "font.size": 11,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
}


def learning_curve(records: Sequence[Record], site: str, rounds: int) -> bytes | None:
    """Validation Dice of one site over the rounds: personal model solid, shared model dashed, the other sites in a faint colour.

    A validation after the last of the `rounds` is drawn half a round after it. None if the site was never validated.
    """
    curves = _validation_curves(records, rounds)
    own = {model: points for (name, model), points in curves.items() if name == site}
    if not own:
        return None
    front = "personal" if "personal" in own else "shared"
    with mpl.rc_context(_STYLE):
        axes = _axes(300, 170)
        for (name, model), points in curves.items():
            if model == front and name != site:
                axes.plot(*_xy(points), color=FAINT, linewidth=1)
        _plot_models(axes, own)
        _round_axis(axes, curves.values())
        axes.set_ylim(0, 1)
        axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "", "0.5", "", "1"])
        return _svg(axes)


def _validation_curves(records: Sequence[Record], rounds: int) -> dict[tuple[Any, ...], dict[float, float]]:
    """Validation Dice by round, for each site and model; what follows the last of the `rounds` is half a round after it."""
    found = _curves(records, "validation", "dice", by=("site", "model"))
    return {one: {min(x, rounds + 0.5): y for x, y in points.items()} for one, points in found.items()}


def _plot_models(axes: Axes, curves: Mapping[str, Mapping[float, float]]) -> None:
    """Draw the curves of one site's models, the personal one in front; a long curve has no markers."""
    for model, color, dashes in (("shared", SHARED, (0, (4, 2))), ("personal", PERSONAL, "-")):
        if model in curves:
            x, y = _xy(curves[model])
            axes.plot(x, y, color=color, linestyle=dashes, marker="o", markersize=3 if len(x) < 30 else 0)


def loss_curve(records: Sequence[Record], phase: str) -> bytes | None:
    """Training loss of one phase over the rounds: a thin line per site and a bold line of the mean; the highest site is named.

    It is the segmentation loss if no site told the total loss (`evaluation.small_numbers`). None if the phase ran in fewer than two rounds,
    as final local fine-tuning does.
    """
    of_phase = [one for one in records if one.get("phase") == phase]
    part = "loss" if any(one.get("loss") is not None for one in of_phase) else "segmentation"
    found = _curves(of_phase, "round", part, by=("site",))
    curves = {site: points for (site,), points in found.items()}
    means = _mean_curve(curves.values())
    if len(means) < 2:
        return None
    with mpl.rc_context(_STYLE):
        axes = _axes(300, 170)
        for points in curves.values():
            axes.plot(*_xy(points), color=PERSONAL, alpha=0.35, linewidth=1)
        axes.plot(*_xy(means), color=INK, linewidth=2)
        _round_axis(axes, curves.values())
        axes.set_ylim(bottom=0)
        if len(curves) > 1:
            _name_highest(axes, curves)
        return _svg(axes)


def _mean_curve(curves: Iterable[Mapping[float, float]]) -> dict[float, float]:
    """The mean over the curves by round; a curve without a value in a round is left out of the round's mean."""
    values: dict[float, list[float]] = defaultdict(list)
    for x, y in chain.from_iterable(points.items() for points in curves):
        values[x].append(y)
    return {x: sum(present) / len(present) for x, present in values.items()}


def _name_highest(axes: Axes, curves: Mapping[str, Mapping[float, float]]) -> None:
    """Write the name of the site whose curve ends highest above the end of its curve."""
    ends = {site: (max(points), points[max(points)]) for site, points in curves.items()}
    highest = max(ends, key=lambda site: ends[site][1])
    above = {"color": PERSONAL, "fontsize": 10, "ha": "right"}
    axes.annotate(highest, ends[highest], (-2, 5), textcoords="offset points", **above)  # type: ignore[arg-type]


def expert_usage(usage: Mapping[int, Sequence[float]], *, highest: float) -> bytes:
    """Share of the tokens that each expert (columns) gets in each adapted block (rows), in per cent.

    Args:
        usage: shares of the experts by block.
        highest: the share with the darkest colour; it is the same for all sites of a page, so that they can be compared.
    """
    blocks = sorted(usage)
    shares = [list(usage[block]) for block in blocks]
    experts = range(max(map(len, shares)))
    with mpl.rc_context(_STYLE):
        axes = _axes(300, 44 + 24 * len(blocks))
        axes.grid(visible=False)
        axes.pcolormesh(shares, cmap="Blues", vmin=0, vmax=highest, edgecolors="white", linewidth=2)
        _write_shares(axes, shares, highest)
        axes.set_xticks([column + 0.5 for column in experts], [str(column + 1) for column in experts])
        axes.set_yticks([row + 0.5 for row in range(len(blocks))], [f"block {block}" for block in blocks])
        axes.set_xlabel("expert")
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.invert_yaxis()
        return _svg(axes)


def _write_shares(axes: Axes, shares: Sequence[Sequence[float]], highest: float) -> None:
    """Write each share into its cell in per cent, in white on a dark cell."""
    for row, values in enumerate(shares):
        for column, share in enumerate(values):
            color = "white" if share > 0.6 * highest else INK
            axes.text(column + 0.5, row + 0.5, f"{100 * share:.0f}", ha="center", va="center", color=color)


def component_bytes(by_component: Mapping[str, int]) -> bytes | None:
    """Bytes of one update by component, the largest first; None if nothing is sent."""
    parts = sorted(((size, name) for name, size in by_component.items() if size), reverse=True)
    if not parts:
        return None
    with mpl.rc_context(_STYLE):
        axes = _axes(560, 12 + 28 * len(parts))
        axes.grid(visible=False)
        sizes = [size for size, _ in parts]
        axes.barh(range(len(parts)), sizes, height=0.62, color=PERSONAL)
        for row, size in enumerate(sizes):
            label = f"{format_bytes(size)} ({100 * size / sum(sizes):.0f} %)"
            axes.annotate(label, (size, row), (6, 0), textcoords="offset points", va="center")
        axes.set_yticks(range(len(parts)), [name for _, name in parts])
        axes.tick_params(axis="y", labelcolor=INK)
        axes.set_xlim(0, 1.35 * sizes[0])
        axes.set_xticks([])
        axes.spines[:].set_visible(False)
        axes.invert_yaxis()
        return _svg(axes)


def comparison_dots(runs: Mapping[str, Summary]) -> bytes:
    """Dice of the model in use: one row per site with one dot per run; the last row is the mean over sites."""
    rows = dice_rows(runs)
    values = {**rows.sites, "mean": rows.mean}
    found = {name: dict(zip(runs, row, strict=True)) for name, row in values.items()}
    return method_dots({name: {run: [] if v is None else [v] for run, v in row.items()} for name, row in found.items()})


def method_dots(rows: Mapping[str, Mapping[str, Sequence[float]]]) -> bytes:
    """Dice by site and method: each is a dot at the mean over seeds, with a line from the lowest to the highest value.

    A few methods are shown as dots in one row per site; many methods are shown in one row each, with the sites as dots.

    Args:
        rows: values, one per seed, by site and method; the last key is the mean over sites. A list is empty if there is no run.
    """
    methods = list(dict.fromkeys(method for row in rows.values() for method in row))
    if len(methods) <= _FEW:
        return _dots(rows, methods, with_mean=False)
    turned = {method: {name: row.get(method, []) for name, row in rows.items()} for method in methods}
    return _dots(turned, list(rows), with_mean=True)


def difference_bars(rows: Mapping[str, Mapping[str, tuple[float, Interval | None]]], against: str) -> bytes:
    """Differences of Dice with their intervals: one row per site with a dot and a bar per run; the last row is the mean.

    Args:
        rows: difference and its interval by site and run; the last key is the mean over sites.
        against: name of the run that is subtracted.
    """
    names = list(dict.fromkeys(chain.from_iterable(rows.values())))
    with mpl.rc_context(_STYLE):
        axes = _row_axes(list(rows), 90 + 36 * len(rows))
        axes.axvline(0, color=INK, linewidth=1)
        for index, name in enumerate(names):
            found = {y: row[name] for y, row in enumerate(rows.values()) if name in row}
            color, marker = METHODS[index % len(METHODS)], _MARKERS[index % len(_MARKERS)]
            _plot_differences(axes, found, shift=0.5 * _beside(index, len(names)), color=color, marker=marker)
            axes.plot([], [], marker=marker, color=color, label=name)
        axes.axhline(len(rows) - 1.5, color=MUTED, linewidth=0.8)
        axes.set_xlabel(f"Dice minus that of {against}, with the 95 % interval of the difference")
        _legend_above(axes, columns=min(5, len(names)), gap=0.4)
        return _svg(axes)


def _plot_differences(
    axes: Axes, found: Mapping[int, tuple[float, Interval | None]], *, shift: float, color: str, marker: str
) -> None:
    """Draw the differences of one run and their intervals, given by row, `shift` below the middle of the rows."""
    for y, (value, interval) in found.items():
        if interval is not None:
            axes.plot(interval, [y + shift] * 2, color=color, linewidth=2, alpha=0.6)
        axes.plot(value, y + shift, marker=marker, markersize=8, markeredgecolor="white", color=color)


@dataclass(frozen=True)
class _DotTable:
    """The sizes of a table of dots, in CSS pixels unless stated otherwise."""

    row_height: int
    dot: int
    span: int
    """Width of the line from the lowest to the highest dot of a row."""
    spread: float
    """Part of a row's height over which the dots of the row are distributed, so that equal values are all seen."""
    legend_columns: int


_HIGH_ROWS: Final = _DotTable(row_height=34, dot=8, span=6, spread=0.3, legend_columns=5)
_LOW_ROWS: Final = _DotTable(row_height=22, dot=6, span=3, spread=0.0, legend_columns=8)


def _dots(rows: Mapping[str, Mapping[str, Sequence[float]]], names: Sequence[str], *, with_mean: bool) -> bytes:
    """A row of dots for each key of `rows`.

    Args:
        rows: values by row and name of the dot.
        names: names of the dots, for the legend.
        with_mean: if True, the last name is the mean over the other names, and the rows are low. If False, the last row is the mean over
            the other rows, and the rows are high enough to show dots of equal value one above the other.
    """
    table, mean = (_LOW_ROWS, names[-1]) if with_mean else (_HIGH_ROWS, None)
    with mpl.rc_context(_STYLE):
        height = 70 + 18 * (len(names) // table.legend_columns) + table.row_height * len(rows)
        axes = _row_axes(list(rows), height)
        _plot_spans(axes, rows.values(), table.span)
        for index, name in enumerate(names):
            shift = table.spread * _beside(index, len(names))
            found = {y + shift: row[name] for y, row in enumerate(rows.values()) if row.get(name)}
            _plot_seeds(axes, found, name, _MEAN_TICK if name == mean else _dot_style(index, table.dot))
        if mean is None:
            axes.axhline(len(rows) - 1.5, color=MUTED, linewidth=0.8)
        axes.set_xlabel("Dice")
        _legend_above(axes, columns=min(table.legend_columns, len(names)), gap=0.2)
        return _svg(axes)


_MEAN_TICK: Final[Mapping[str, Any]] = {
    "marker": "|",
    "markersize": 14,
    "markeredgewidth": 2.5,
    "markeredgecolor": INK,
    "color": INK,
}


def _dot_style(index: int, size: int) -> Mapping[str, Any]:
    """How the dots of a name are drawn: colours and markers are combined so that they repeat as late as possible."""
    return {
        "marker": _marker(index),
        "markersize": size,
        "markeredgewidth": 1,
        "markeredgecolor": "white",
        "color": METHODS[index % len(METHODS)],
    }


def _marker(index: int) -> str:
    return _MARKERS[(index + index // len(METHODS)) % len(_MARKERS)]


def _plot_spans(axes: Axes, rows: Iterable[Mapping[str, Sequence[float]]], width: int) -> None:
    """Draw in each row a faint line from the lowest to the highest mean."""
    for y, row in enumerate(rows):
        means = [sum(values) / len(values) for values in row.values() if values]
        if means:
            axes.plot([min(means), max(means)], [y, y], color=FAINT, linewidth=width, zorder=1)


def _plot_seeds(axes: Axes, found: Mapping[float, Sequence[float]], name: str, style: Mapping[str, Any]) -> None:
    """Draw the values of one name, given by height: a dot at the mean over seeds, and a line from the lowest to the highest."""
    means = [sum(values) / len(values) for values in found.values()]
    axes.plot(means, list(found), linestyle="none", label=name, **style)
    for y, values in found.items():
        axes.plot([min(values), max(values)], [y] * 2, color=style["color"], linewidth=1, alpha=0.5)


def _beside(index: int, number: int) -> float:
    """The position, from -0.5 to 0.5, of one of `number` items that are distributed over a height of 1."""
    return (index + 0.5) / number - 0.5


def _row_axes(names: Sequence[str], height: int) -> Axes:
    """Axes with a named row for each of the names, the first one at the top, and vertical grid lines."""
    axes = _axes(860, height)
    axes.grid(visible=False, axis="y")
    axes.grid(visible=True, axis="x")
    axes.set_yticks(range(len(names)), list(names))
    axes.tick_params(axis="y", labelcolor=INK)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.spines["left"].set_visible(False)
    return axes


def _legend_above(axes: Axes, *, columns: int, gap: float | None = None) -> None:
    """Put a legend above the axes, in at most so many columns, and in as few that its names are inside the figure."""
    for count in range(columns, 0, -1):
        legend = axes.figure.legend(loc="outside upper left", ncols=count, frameon=False, handletextpad=gap)
        if count == 1 or legend.get_window_extent().width <= _LEGEND_SHARE * axes.figure.bbox.width:
            return
        legend.remove()


def curves(ticks: Sequence[str], lines: Mapping[str, Sequence[float | None]], across: str, up: str) -> bytes:
    """Lines over a few evenly spaced, named positions on the x axis; a missing value leaves a gap.

    Args:
        ticks: names of the positions along x, in order.
        lines: one value per position, by the label of the line.
        across: label of the x axis.
        up: label of the y axis.
    """
    known = {label: {float(x): y for x, y in enumerate(values) if y is not None} for label, values in lines.items()}
    with mpl.rc_context(_STYLE):
        axes = _line_axes(known, across, up)
        axes.set_xticks(range(len(ticks)), list(ticks))
        return _svg(axes)


def method_curves(lines: Mapping[str, Mapping[float, float]], up: str) -> bytes:
    """A line for each method over the rounds.

    Args:
        lines: the values by round, counted from 1, by the label of the line.
        up: label of the y axis.
    """
    with mpl.rc_context(_STYLE):
        return _svg(_line_axes(lines, "round", up, markersize=3))


def _line_axes(
    lines: Mapping[str, Mapping[float, float]], across: str, up: str, markersize: float | None = None
) -> Axes:
    """Axes with a line for each label, from its values by position on the x axis."""
    axes = _axes(560, 300)
    for index, (label, points) in enumerate(lines.items()):
        color = METHODS[index % len(METHODS)]
        axes.plot(*_xy(points), marker=_marker(index), markersize=markersize, color=color, label=label)
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    if lines:
        _legend_above(axes, columns=min(5, len(lines)))
    return axes


def _curves(
    records: Sequence[Record], kind: str, value: str, *, by: tuple[str, ...]
) -> dict[tuple[Any, ...], dict[float, float]]:
    """The values by round, counted from 1, for each combination of the fields `by`; undefined values are left out."""
    curves: dict[tuple[Any, ...], dict[float, float]] = {}
    for record in records:
        if record["kind"] == kind and record.get(value) is not None:
            curves.setdefault(tuple(record[field] for field in by), {})[record["round"] + 1] = record[value]
    return curves


def _xy(points: Mapping[float, float]) -> tuple[list[float], list[float]]:
    """The rounds in ascending order and their values."""
    rounds = sorted(points)
    return rounds, [points[x] for x in rounds]


def _round_axis(axes: Axes, curves: Any) -> None:  # noqa: ANN401 - a view of a mapping's values
    """Set whole rounds as ticks along x, with the same range for every site."""
    rounds = {x for points in curves for x in points}
    first, last = min(rounds), max(rounds)
    axes.set_xlim(first - 0.02 * (last - first or 1), last + 0.02 * (last - first or 1))
    if first == last:
        axes.set_xticks([first])  # for less than one round, the locator would choose fractions
    else:
        axes.xaxis.get_major_locator().set_params(integer=True, nbins=6)  # type: ignore[call-arg]
    axes.set_xlabel("round")


def _axes(width: int, height: int) -> Axes:
    """Axes in a figure of this many CSS pixels at 1:1 (72 to the inch)."""
    figure = Figure(figsize=(width / 72, height / 72), layout="constrained", facecolor="none")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_facecolor("none")
    return axes


def _svg(axes: Axes) -> bytes:
    """The figure of the axes as SVG, without a date."""
    figure = axes.get_figure(root=True)
    target = BytesIO()
    if isinstance(figure, Figure):
        figure.savefig(target, format="svg", metadata={"Date": None, "Creator": None})
    return target.getvalue()
