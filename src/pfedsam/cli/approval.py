"""The table of a study that `pfedsam site approve` shows to the operator of a site."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from rich.table import Table

from pfedsam.cli.console import OUT
from pfedsam.core.text import some_of

if TYPE_CHECKING:
    from pfedsam.data.labels import LabelMap
    from pfedsam.experiment.options import RunOptions
    from pfedsam.federation.manifest import StudyManifest

_SHOWN: Final = 6
"""The number of names that are shown of the numbers of each task, unless all are asked for."""


def show_study(manifest: "StudyManifest", options: "RunOptions", *, tensors: bool) -> None:
    """Show the properties of a study that an operator needs for the approval; all are derived here from the configuration."""
    table = Table(f"study {manifest.study}", manifest.name)
    training, parts = options.training, manifest.component_bytes()
    table.add_row("method, rounds", f"{options.method}, {training.rounds}")
    table.add_row("may end earlier", _earlier_end(training.rounds, training.patience))
    table.add_row("in a round", f"{training.steps_per_round} steps of {training.batch_size} images each")
    table.add_row("learning rate", f"{training.optimizer.learning_rate:g}")
    table.add_row("backbone", manifest.configuration["model"]["backbone"])
    table.add_row("its SHA-256", manifest.backbone)
    table.add_row("patient pattern", options.data.patient_pattern or "none: every case is a patient")
    for site in options.data.sites:
        table.add_row("classes here", _class_texts(options.data.label_map(site)))
    table.add_row(
        "leaves in a round", f"{sum(parts.values())} bytes: " + ", ".join(f"{p} {n}" for p, n in parts.items())
    )
    table.add_row("before it leaves", "; then ".join(manifest.pipeline))
    counts = ", ".join(f"{part} {len(names)}" for part, names in manifest.components.items())
    table.add_row("tensors", counts if tensors else f"{counts} (their names: --tensors)")
    if tensors:
        for part, names in manifest.components.items():
            table.add_row(f"names, {part}", ", ".join(names))
    table.add_row("largest change", f"{manifest.max_change:.4g} in a round (L2 norm)")
    table.add_row("small numbers", _small_numbers(manifest.min_cases))
    table.add_row("summary of the data", _data_summary(manifest))
    for task, names in manifest.scalar_metrics.items():
        table.add_row(f"numbers, {task}", ", ".join(names) if tensors else _first_names(names))
    OUT.print(table)


def _first_names(names: Sequence[str]) -> str:
    """The first names of numbers, and how all are shown if there are more."""
    return some_of(names, _SHOWN) + (" (all: --tensors)" if len(names) > _SHOWN else "")


def _earlier_end(rounds: int, patience: int | None) -> str:
    """Whether and when a study of so many rounds may end earlier."""
    if not patience:
        return "no"
    if rounds <= 2 * patience:
        return f"no: that needs more than {2 * patience} rounds"
    return f"yes: {patience} rounds after a moment at which no site has gained for {patience} rounds"


def _class_texts(labels: "LabelMap") -> str:
    """The classes of a site, each with its ids in the masks."""
    return ", ".join(f"{name} {list(labels.ids[name]) or 'not annotated'}" for name in labels.names)


def _small_numbers(min_cases: int) -> str:
    if min_cases == 1:
        return "every count and score leaves the site, also over few cases (communication.min_cases is 1)"
    return f"counts and scores over fewer than {min_cases} cases stay here; the site's weight is at least {min_cases}"


def _data_summary(manifest: "StudyManifest") -> str:
    """Whether a summary of the site's data leaves it in this study, and what that is."""
    if "summarize" not in manifest.scalar_metrics:
        return "none leaves"
    return (
        "leaves once, before the first round: numbers of cases and patients; histograms of intensities, sizes and spacing over all cases, "
        "also those for validation and test; how many cases have each class, and how much of them it fills; no picture and nothing of a "
        "single case. `pfedsam data summary` shows it beforehand"
    )
