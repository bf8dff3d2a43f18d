"""The result files of Dice against the number of labelled images per site, which shows when a federation is worth it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from pfedsam.core import atomic
from pfedsam.report.accuracy import Runs, method_result
from pfedsam.report.accuracy_page import Study, not_run, write_study
from pfedsam.report.figures import curves
from pfedsam.report.format import format_value
from pfedsam.report.result_file import markdown

ALL: Final = "all"


def write_labels(
    folder: Path, study: Study, by_limit: Mapping[str, Runs], *, converged: bool = False
) -> dict[str, float | None]:
    """Write NAME.json, NAME.md and NAME.svg from all results so far, list the missing runs, and return the headline figures.

    Args:
        folder: folder for the files.
        study: description of the comparison.
        by_limit: runs by the number of labelled images per site, or `all`; a number without runs is listed as not run.
        converged: whether the runs were trained longer than the suite says, with early stopping.

    Raises:
        StoreError: a file could not be written.
    """
    results = {
        limit: {line.label: method_result(line, runs[line.label]) for line in study.lines if runs.get(line.label)}
        for limit, runs in by_limit.items()
    }
    figures: dict[str, float | None] = {}
    for limit, found in results.items():
        for label, result in found.items():
            figures[f"dice_mean.{label}.{limit}"] = result["mean"]["dice"]["mean"]
            figures[f"dice_worst_site.{label}.{limit}"] = result["worst_site"]["dice"]
    limits, labels = list(by_limit), [line.label for line in study.lines]
    missing = {limit: seeds for limit, runs in by_limit.items() if (seeds := not_run(study, runs))}
    parts = [f"# {study.name}", f"`{study.command}`", *_gaps(study, missing)]
    parts.append(_HOW + (_CONVERGED if converged else _EQUAL))
    for title, key in (("Mean over sites", "dice_mean"), ("Worst site", "dice_worst_site")):
        rows = [[m, *(format_value(figures.get(f"{key}.{m}.{limit}"), 1) for limit in limits)] for m in labels]
        parts += [f"## {title}", markdown(["method", *limits], rows)]
    write_study(
        folder,
        study,
        figures,
        "\n\n".join(parts),
        methods=results,
        not_run=missing,
        failed=dict(study.failed),
    )
    drawn = {m: [figures.get(f"dice_mean.{m}.{limit}") for limit in limits] for m in labels}
    atomic.write_bytes(
        folder / f"{study.name}.svg", curves(limits, drawn, "labelled images per site", "Dice"), mode=0o644
    )
    return figures


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
