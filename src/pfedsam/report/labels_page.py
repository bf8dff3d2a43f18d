"""The result files of Dice against the number of labelled images per site, which shows when a federation is worth it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from pfedsam.core import atomic
from pfedsam.report.accuracy import Line, Runs, method_result
from pfedsam.report.accuracy_page import Study, not_run, write_study
from pfedsam.report.figures import curves
from pfedsam.report.format import format_value
from pfedsam.report.result_file import markdown

ALL: Final = "all"
_TITLES: Final = {"dice_mean": "Mean over sites", "dice_worst_site": "Worst site"}
"""The title of the table of a headline figure."""


def write_labels(
    folder: Path, study: Study, by_limit: Mapping[str, Runs], *, converged: bool = False
) -> dict[str, float | None]:
    """Write NAME.json, NAME.md and NAME.svg from all results so far, list the missing runs, and return the headline figures.

    Args:
        folder: folder for the files.
        study: description of the comparison.
        by_limit: runs by the number of labelled images per site, or `all`; a number without runs is listed as not run.
        converged: whether the runs were trained longer than the suite requires, with early stopping.

    Raises:
        StoreError: a file could not be written.
    """
    results = {limit: _results(study.lines, runs) for limit, runs in by_limit.items()}
    figures = _headline(results)
    missing = {limit: seeds for limit, runs in by_limit.items() if (seeds := not_run(study, runs))}
    parts = [f"# {study.name}", f"`{study.command}`", *_gaps(study, missing)]
    parts.append(_HOW + (_CONVERGED if converged else _EQUAL))
    limits = list(by_limit)
    for key, title in _TITLES.items():
        parts += [f"## {title}", _table(_rows(figures, key, study.lines, limits), limits)]
    write_study(
        folder,
        study,
        figures,
        "\n\n".join(parts),
        methods=results,
        not_run=missing,
        failed=dict(study.failed),
    )
    lines = _rows(figures, "dice_mean", study.lines, limits)
    atomic.write_bytes(
        folder / f"{study.name}.svg", curves(limits, lines, "labelled images per site", "Dice"), mode=0o644
    )
    return figures


def _results(lines: Sequence[Line], runs: Runs) -> dict[str, dict[str, Any]]:
    """The results of each method that has a run, by its label."""
    return {line.label: method_result(line, runs[line.label]) for line in lines if runs.get(line.label)}


def _headline(results: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, float | None]:
    """The mean over sites and the worst site of each method and number of labelled images, from results by number and label."""
    figures: dict[str, float | None] = {}
    for limit, found in results.items():
        for label, result in found.items():
            figures[f"dice_mean.{label}.{limit}"] = result["mean"]["dice"]["mean"]
            figures[f"dice_worst_site.{label}.{limit}"] = result["worst_site"]["dice"]
    return figures


def _rows(
    figures: Mapping[str, float | None], key: str, lines: Sequence[Line], limits: Sequence[str]
) -> dict[str, list[float | None]]:
    """A headline figure of each method, by its label, for each number of labelled images."""
    return {line.label: [figures.get(f"{key}.{line.label}.{limit}") for limit in limits] for line in lines}


def _table(rows: Mapping[str, Sequence[float | None]], limits: Sequence[str]) -> str:
    """The table of a headline figure: methods as rows, numbers of labelled images as columns."""
    cells = [[label, *(format_value(value, 1) for value in row)] for label, row in rows.items()]
    return markdown(["method", *limits], cells)


def _gaps(study: Study, missing: Mapping[str, Mapping[str, Sequence[int]]]) -> list[str]:
    """Notes about runs that are missing in the means."""
    parts = []
    if missing:
        names = [
            f"{label} with {limit} labels (seeds {', '.join(map(str, seeds))})"
            for limit, found in missing.items()
            for label, seeds in found.items()
        ]
        parts.append("**Not run:** " + "; ".join(names))
    if study.failed:
        parts.append("**Failed:** " + "; ".join(f"{run}: {kind}" for run, kind in study.failed.items()))
    return parts


_HOW = (
    "Dice in points of 100 of the model in use, mean over seeds, against the labelled training images per site (whole patients first); "
    "validation and test are the same throughout"
)
_EQUAL = ", and so is the number of steps."
_CONVERGED = ". Trained for several times the suite's rounds; each site ends with the best of its validations."
