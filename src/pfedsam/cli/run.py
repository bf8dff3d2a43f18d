"""`pfedsam run`, `compare` and `demo`: commands that train federations on this machine."""

import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pfedsam.cli.console import OUT, event_bars

if TYPE_CHECKING:
    from pfedsam.experiment.options import RunOptions
    from pfedsam.report.summary_file import Summary

Config = Annotated[Path, typer.Argument(help="YAML file with at least data.sites and data.classes.")]
Out = Annotated[
    Path,
    typer.Option(
        "--out", "-o", help="New folder for the run or comparison; with --resume, the folder of an interrupted one."
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override a key of the configuration, such as training.rounds=20; may be repeated."),
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Continue an interrupted run in the folder; if it contains none, a new one begins, with a warning.",
    ),
]

DEMO_METHODS = ("local-only", "fedavg", "pfedsam")
DEMO_LABELLED = 8
"""Labelled training images of each hospital of the demonstration."""
DEMO_SETTINGS: dict[str, Any] = {
    "model": {"image_size": 128},  # the images have 96 to 128 pixels
    "training": {
        "rounds": 20,
        "steps_per_round": 4,
        "final_steps": 8,
        "batch_size": 4,
        "optimizer": {"learning_rate": 4e-3},  # 80 steps are few: docs/decisions/0020
    },
    "evaluation": {"validate_every": 5},
    "runtime": {"workers": "auto"},
}
"""Settings of the demonstration, which takes about five minutes on two cores."""


def run_command(config: Config, out: Out, overrides: Set = None, resume: Resume = False) -> None:
    """Train one federation on this machine, and write its scores, models and report to a folder.

    Choose a method with --set method=NAME (docs/methods.md); an unknown name prints the list of methods.
    Example: pfedsam run nuclei.yaml --out runs/nuclei --set method=fedavg
    """
    from pfedsam.engine.run import run
    from pfedsam.experiment.load import load_options
    from pfedsam.report.page import REPORT
    from pfedsam.report.tables import run_tables

    options = load_options(config, overrides or [])
    with event_bars() as tell:
        summary = run(options, out, resume=resume, progress=tell)
    for table in run_tables(summary):
        OUT.print(table)
    OUT.print(f"Report: {out / REPORT}")


def compare_command(
    config: Config,
    out: Out,
    methods: Annotated[
        str, typer.Option(help="Methods to compare, separated by commas.")
    ] = "local-only,fedavg,pfedsam",
    overrides: Set = None,
    resume: Resume = False,
) -> None:
    """Train several methods on the same sites, splits and seed, each until it no longer improves, and compare them site by site.

    A method ends when no site gains any more on its validation part (training.patience), at the latest after training.rounds rounds; with
    training.patience empty all methods make training.rounds times training.steps_per_round steps. A method with final local fine-tuning
    uses training.final_steps of them for it, by default at most a quarter. A key that a method does not use is left out for this method.
    Each method gets its own folder in --out.
    Example: pfedsam compare nuclei.yaml --out runs/nuclei --methods fedavg,pfedsam
    """
    from pfedsam.experiment.load import read_options

    _refuse_method(overrides or [])
    options = read_options(config, overrides or [])
    names = dict.fromkeys(name.strip() for name in methods.split(",") if name.strip())
    _tell_unused(options, names)
    compare(options, out, list(names), resume=resume)


def _refuse_method(overrides: Sequence[str]) -> None:
    """Refuse a method among the overrides of a comparison, where it would be without effect.

    Raises:
        OptionError: there is one.
    """
    from pfedsam.core.errors import OptionError
    from pfedsam.experiment.load import holds, overridden

    if holds(overridden(overrides), "method"):
        raise OptionError(
            "--set sets method, but a comparison has several. Leave it out, and give the methods by --methods."
        )


def _tell_unused(options: "RunOptions", methods: Iterable[str]) -> None:
    """Print for each method the keys of the configuration that it does not use."""
    from pfedsam.experiment.effect import unused
    from pfedsam.federation.methods import find_method

    for name in methods:
        if idle := unused(options.model_copy(update={"method": find_method(name).name})):
            OUT.print(f"{name} does not use {', '.join(idle)}; it is left out for this method.")


def demo_command(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the demonstration.")] = Path("runs/demo"),
) -> None:
    """Compare three methods on generated images of four synthetic hospitals, offline, in about five minutes on two cores.

    Each hospital has eight labelled training images, and a scanner that differs from the others in gain, contrast, field of view, noise and
    blur; one of them inverts its images. Which method is best is not built in.
    The same command again continues an interrupted demonstration, or shows the result of a finished one.
    """
    from pfedsam.data.synthetic import LABELS, PATIENT_PATTERN, SyntheticOptions, write_sites
    from pfedsam.experiment.options import RunOptions

    if _print_finished_demo(out):
        return
    sites = out / "sites"
    if not sites.exists():
        OUT.print("Generating four synthetic hospitals, each with its own scanner ...")
        draft = out / "sites.tmp"  # The folder is renamed at the end, so that a folder `sites` is always complete.
        if draft.exists():
            shutil.rmtree(draft)
        write_sites(draft, SyntheticOptions(sites=4, cases=24, shift="scanners"), seed=0)
        draft.rename(sites)
    classes = {name: list(ids) for name, ids in LABELS.items()}
    folders = {folder.name: str(folder.resolve()) for folder in sorted(sites.iterdir()) if folder.is_dir()}
    data = {
        "sites": folders,
        "classes": classes,
        "patient_pattern": PATIENT_PATTERN,
        "split": {"max_train_cases": DEMO_LABELLED},
    }
    options = RunOptions.model_validate({"name": "demo", "data": data, **DEMO_SETTINGS})
    begun = any((out / name / "config.yaml").exists() for name in DEMO_METHODS)
    compare(options, out, list(DEMO_METHODS), resume=begun)


def compare(options: "RunOptions", out: Path, methods: list[str], *, resume: bool) -> None:
    """Compare methods, show a progress bar for each, and print the comparison."""
    from pfedsam.engine.compare import compare as compare_methods

    with event_bars() as tell:
        summaries = compare_methods(
            options, out, methods, resume=resume, progress=lambda name, event: tell(event, name)
        )
    _print_comparison(out, summaries)


def _print_comparison(out: Path, summaries: "Mapping[str, Summary]") -> None:
    """The table of a comparison, and where its page and the reports are."""
    from pfedsam.engine.compare import PAGE
    from pfedsam.report.intervals import read_intervals
    from pfedsam.report.page import REPORT
    from pfedsam.report.tables import comparison_table

    intervals = {name: read_intervals(out / name, summary) for name, summary in summaries.items()}
    OUT.print(comparison_table(summaries, intervals))
    OUT.print(f"Comparison: {out / PAGE}")
    for name in summaries:
        OUT.print(f"Report of {name}: {out / name / REPORT}")


def _print_finished_demo(out: Path) -> bool:
    """Print the result of a demonstration if the folder has a finished one; returns whether it has."""
    from pfedsam.engine.compare import PAGE
    from pfedsam.report.summary_file import read_summary

    files = {name: out / name / "summary.json" for name in DEMO_METHODS}
    if not all(path.exists() for path in (out / PAGE, *files.values())):
        return False
    OUT.print(f"The demonstration in {out} is finished. This is its result; to repeat it, give another --out.")
    _print_comparison(out, {name: read_summary(path) for name, path in files.items()})
    return True
