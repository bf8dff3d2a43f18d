"""The result files of a comparison of methods: JSON, Markdown and a figure; the comparison may be unfinished."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pfedsam.core import atomic
from pfedsam.report.accuracy import (
    Comparison,
    Line,
    Runs,
    best_private_baseline,
    comparison_result,
    comparisons,
    headline,
    method_result,
)
from pfedsam.report.figures import method_curves, method_dots
from pfedsam.report.format import MISSING, format_bytes, format_seconds, format_value
from pfedsam.report.result_file import markdown, write_result

_DISTANCES: Final = frozenset({"hd95", "assd"})
_TITLES: Final = {"dice": "Dice (points of 100)", "iou": "IoU (points of 100)", "hd95": "HD95", "assd": "ASSD"}


@dataclass(frozen=True)
class Study:
    """The description of a comparison."""

    name: str
    """Name of the files."""
    subject: str
    command: str
    seeds: Sequence[int]
    lines: Sequence[Line]
    settings: Mapping[str, Any]
    failed: Mapping[str, str]
    """Class of the error of each failed run, by label and seed; the text of the error is left out, because it may name a case."""


def write_study(folder: Path, study: Study, figures: Mapping[str, float | None], table: str, **more: object) -> None:
    """Write NAME.json and NAME.md of a comparison.

    Raises:
        StoreError: a file could not be written.
    """
    about = {"command": study.command, "seeds": study.seeds, "settings": dict(study.settings)}
    write_result(folder, study.name, figures=figures, table=table, **about, **more)  # type: ignore[arg-type]


def write_accuracy(folder: Path, study: Study, runs: Runs) -> dict[str, float | None]:
    """Write NAME.json, NAME.md and NAME.svg of a comparison; a method without runs is listed as not run.

    Returns:
        The headline figures.

    Raises:
        StoreError: a file could not be written.
    """
    lines = [line for line in study.lines if runs.get(line.label)]
    results = {line.label: method_result(line, runs[line.label]) for line in lines}
    found = comparisons(study.subject, runs)
    figures = headline(lines, results, found)
    missing = not_run(study, runs)
    write_study(
        folder,
        study,
        figures,
        _text(study, lines, results, found, missing, _site_units(runs)),
        subject=study.subject,
        best_private_baseline=best_private_baseline(lines, found),
        methods=results,
        comparisons=comparison_result(found),
        not_run=missing,
        failed=dict(study.failed),
    )
    if results:
        atomic.write_bytes(folder / f"{study.name}.svg", method_dots(_dots(results)), mode=0o644)
        if lines_of := _lines(results):
            picture = method_curves(lines_of, "validation Dice (points)")
            atomic.write_bytes(folder / f"{study.name}-curves.svg", picture, mode=0o644)
    return figures


def _lines(results: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[float, float]]:
    """The learning curve of each method that was validated during training."""
    return {label: result["curve"] for label, result in results.items() if result["curve"]}


def not_run(study: Study, runs: Runs) -> dict[str, list[int]]:
    """The seeds without a finished run, by label."""
    missing = {line.label: [s for s in study.seeds if s not in runs.get(line.label, {})] for line in study.lines}
    return {label: seeds for label, seeds in missing.items() if seeds}


def _dots(results: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, list[float]]]:
    sites = list(dict.fromkeys(site for result in results.values() for site in result["sites"]))
    rows = {
        site: {label: _values(result["sites"].get(site)) for label, result in results.items()} for site in sorted(sites)
    }
    return rows | {"mean": {label: _values(result["mean"]) for label, result in results.items()}}


def _values(measures: Mapping[str, Any] | None) -> list[float]:
    """Dice in 0..1, one value per seed."""
    return [value / 100 for value in measures["dice"]["values"]] if measures else []


def _text(
    study: Study,
    lines: Sequence[Line],
    results: Mapping[str, Mapping[str, Any]],
    found: Mapping[str, Comparison],
    missing: Mapping[str, Sequence[int]],
    units: Mapping[str, str],
) -> str:
    parts = [f"# {study.name}", f"`{study.command}`", f"Seeds: {', '.join(map(str, study.seeds))}."]
    if missing:
        parts.append("**Not run:** " + "; ".join(f"{m} (seeds {', '.join(map(str, s))})" for m, s in missing.items()))
    if study.failed:
        parts.append("**Failed:** " + "; ".join(f"{run}: {text}" for run, text in study.failed.items()))
    if not results:
        return "\n\n".join(parts)
    parts += [
        f"![Dice by site and method]({study.name}.svg)",
        "Mean over seeds ± standard deviation between seeds, of the model that each site would use. "
        "`*`: pooled, that is, the images of all sites are in one place, which does not preserve privacy.",
    ]
    for measure in ("dice", "iou", "hd95", "assd"):
        parts += [f"## {_TITLES[measure]}{_unit(measure, results)}", _measure_table(measure, results, units)]
    if _lines(results):
        parts += [
            "## Learning curves",
            "Dice on the validation parts, the mean over sites of the model that each site used, and over seeds. The curves end "
            "with the last round; what a method gains in phases after it, such as local fine-tuning, is only in the tables.",
            f"![Validation Dice by round]({study.name}-curves.svg)",
        ]
    parts += [f"## {study.subject} minus the others, points of Dice", _comparison_table(lines, found)]
    parts += ["## Cost", _cost_table(results)]
    return "\n\n".join(parts)


def _site_units(runs: Runs) -> dict[str, str]:
    """The unit of the distances, by site."""
    entries = {
        name: site.in_use
        for found in runs.values()
        for run in found.values()
        for name, site in run.summary.sites.items()
    }
    return {name: entry.unit for name, entry in entries.items() if entry}


def _unit(measure: str, results: Mapping[str, Mapping[str, Any]]) -> str:
    units = sorted({str(result["unit"]) for result in results.values()})
    return f" ({'/'.join(units)})" if measure in _DISTANCES else ""


def _is_mixed(measure: str, results: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether the values of a measure are in mm at some sites and in pixels at others, so that there is no worst site."""
    return measure in _DISTANCES and {result["unit"] for result in results.values()} not in ({"mm"}, {"px"})


def _marked(label: str, result: Mapping[str, Any]) -> str:
    return label if result["private"] else f"{label} *"


def _measure_table(measure: str, results: Mapping[str, Mapping[str, Any]], units: Mapping[str, str]) -> str:
    sites = sorted({site for result in results.values() for site in result["sites"]})
    mixed = _is_mixed(measure, results)
    headings = [f"{site} [{units[site]}]" if mixed else site for site in sites]
    header = ["method", *headings, "mean", "worst site", *(["validation"] if measure == "dice" else [])]
    rows = [_measure_row(measure, label, result, sites, mixed=mixed) for label, result in results.items()]
    return markdown(header, rows)


def _measure_row(
    measure: str, label: str, result: Mapping[str, Any], sites: Sequence[str], *, mixed: bool
) -> list[str]:
    """The cells of one method: each site, the mean, the worst site unless the units are mixed, and the validation of a Dice."""
    values = {site: measures[measure] for site, measures in result["sites"].items()}
    worst = None if mixed else _worst(measure, values.values())
    more = [_cell(result["validation"])] if measure == "dice" else []
    cells = [_cell(values.get(site)) for site in sites]
    return [_marked(label, result), *cells, _cell(result["mean"][measure]), format_value(worst, 1), *more]


def _worst(measure: str, values: Iterable[Mapping[str, Any]]) -> float | None:
    """The worst of the sites' means: the largest distance, or the lowest of every other measure; None if none is defined."""
    known = [value["mean"] for value in values if value["mean"] is not None]
    return max(known, default=None) if measure in _DISTANCES else min(known, default=None)


def _cell(value: Mapping[str, Any] | None) -> str:
    if value is None or value["mean"] is None:
        return MISSING
    spread = "" if value["spread"] is None else f" ± {value['spread']:.1f}"
    return f"{value['mean']:.1f}{spread}"


def _interval_cell(interval: tuple[float, float] | None) -> str:
    return "none: a site has one patient" if interval is None else f"{interval[0]:+.2f} to {interval[1]:+.2f}"


def _comparison_table(lines: Sequence[Line], found: Mapping[str, Comparison]) -> str:
    if not found:
        return "Nothing to compare yet."
    best, corrected = best_private_baseline(lines, found), comparison_result(found)
    rows = []
    for label, one in sorted(found.items(), key=lambda item: item[1].difference):
        site = min(one.sites, key=lambda name: one.sites[name])
        rows.append(
            [
                f"**{label}** (best private baseline)" if label == best else label,
                f"{one.difference:+.2f}",
                _interval_cell(one.interval),
                f"{one.p:.2g}",
                f"{corrected[label]['p_holm']:.2g}",
                f"{one.sites[site]:+.2f} ({site})",
                str(one.patients),
                str(len(one.seeds)),
            ]
        )
    header = [
        "against",
        "difference",
        "95 % interval",
        "Wilcoxon p",
        "p (Holm)",
        "smallest gain of a site",
        "patients",
        "seeds",
    ]
    return markdown(header, rows)


def _cost_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    header = [
        "method",
        "private",
        "up, a site and round",
        "down, a site and round",
        "rounds",
        "steps of a training site",
        "seconds",
        "of which training",
        "CPU seconds",
    ]
    rows = [
        [
            label,
            "yes" if result["private"] else "no",
            format_bytes(result["up_bytes"]),
            format_bytes(result["down_bytes"]),
            format_value(result["rounds"], 0),
            format_value(result["steps"], 0),
            format_seconds(result["seconds"]),
            format_seconds(result["training_seconds"]),
            format_value(result["cpu_seconds"], 0),
        ]
        for label, result in results.items()
    ]
    return markdown(header, rows)
