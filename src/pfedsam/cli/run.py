"""`pfedsam run`, `compare`, `demo`: train federations."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pfedsam.cli.console import OUT, event_bars

if TYPE_CHECKING:
    from pfedsam.experiment.options import RunOptions
    from pfedsam.report.summary_file import Summary

Config = Annotated[Path, typer.Argument(help="YAML file with at least data.sites and data.classes.")]
Out = Annotated[
    Path, typer.Option("--out", "-o", help="Folder of the run or comparison; new, or the same again with --resume.")
]
Set = Annotated[list[str] | None, typer.Option("--set", help="Override a key, such as training.rounds=20; repeatable.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run in the folder.")]

DEMO_METHODS = ("local-only", "fedavg", "pfedsam")
DEMO_SETTINGS: dict[str, Any] = {
    "training": {"rounds": 27, "steps_per_round": 4, "final_steps": 12, "batch_size": 4},
    "evaluation": {"validate_every": 4},
    "runtime": {"workers": 2},
}
"""Small enough for five minutes on two cores."""


def run_command(config: Config, out: Out, overrides: Set = None, resume: Resume = False) -> None:
    """Train one federation and write its report.

    --set method=NAME takes any method of docs/methods.md; a name that is not known lists them.
    Example: pfedsam run nuclei.yaml --out runs/nuclei --set method=fedavg
    """
    from pfedsam.engine.run import run
    from pfedsam.experiment.load import load_options
    from pfedsam.report.tables import run_tables

    options = load_options(config, overrides or [])
    with event_bars() as tell:
        summary = run(options, out, resume=resume, progress=tell)
    for table in run_tables(summary):
        OUT.print(table)
    OUT.print(f"Report: {out / 'report.html'}")


def compare_command(
    config: Config,
    out: Out,
    methods: Annotated[
        str, typer.Option(help="Methods to compare, separated by commas.")
    ] = "local-only,fedavg,pfedsam",
    overrides: Set = None,
    resume: Resume = False,
) -> None:
    """Train several methods on the same sites, splits and seed, with equally many steps, and compare them site by site.

    Every method makes training.rounds times training.steps_per_round steps; one with a last local phase takes training.final_steps of them
    for it. A key that a method does not use is left out for it. Each method gets its own folder in --out.
    Example: pfedsam compare nuclei.yaml --out runs/nuclei --methods fedavg,pfedsam
    """
    from pfedsam.experiment.load import read_options

    options = read_options(config, overrides or [])
    names = dict.fromkeys(name.strip() for name in methods.split(",") if name.strip())
    compare(options, out, list(names), resume=resume)


def demo_command(out: Out = Path("runs/demo"), resume: Resume = False) -> None:
    """Offline demonstration: synthetic hospitals, three methods, a comparison; about five minutes on two cores."""
    from pfedsam.data.synthetic import LABELS, PATIENT_PATTERN, SyntheticOptions, write_sites
    from pfedsam.experiment.options import RunOptions

    sites = out / "sites"
    if not sites.exists():
        OUT.print("Generating four synthetic hospitals, each with its own scanner ...")
        draft = out / "sites.tmp"  # so that a folder `sites` is a whole one
        if draft.exists():
            shutil.rmtree(draft)
        write_sites(draft, SyntheticOptions(sites=4, cases=24), seed=0)
        draft.rename(sites)
    classes = {name: list(ids) for name, ids in LABELS.items()}
    folders = {folder.name: str(folder.resolve()) for folder in sorted(sites.iterdir()) if folder.is_dir()}
    data = {"sites": folders, "classes": classes, "patient_pattern": PATIENT_PATTERN}
    options = RunOptions.model_validate({"name": "demo", "data": data, **DEMO_SETTINGS})
    compare(options, out, list(DEMO_METHODS), resume=resume)


def compare(options: "RunOptions", out: Path, methods: list[str], *, resume: bool) -> None:
    """Run each method in its folder under `out`, all with the steps of the options' rounds; then the comparison.

    Raises:
        OptionError: there is no method, one is unknown, one cannot make as many steps in whole rounds, or an option is used by none;
            nothing was run.
        RunError: a folder holds another run, or a run and `resume` is not given.
    """
    from pfedsam.core.errors import OptionError
    from pfedsam.engine.run import run
    from pfedsam.experiment.effect import refuse_unused_by_all, unused
    from pfedsam.experiment.suite import equal_steps
    from pfedsam.federation.methods import find_method
    from pfedsam.report.intervals import read_intervals
    from pfedsam.report.page import write_comparison, write_page
    from pfedsam.report.tables import comparison_table

    if not methods:
        raise OptionError("--methods is empty: give the methods to compare, such as fedavg,pfedsam.")
    cached = options.runtime.model_copy(
        update={"cache_folder": options.runtime.cache_folder or (out / "cache").resolve()}
    )
    options = options.model_copy(update={"runtime": cached})
    chosen = {name: options.model_copy(update={"method": find_method(name).name}) for name in methods}
    refuse_unused_by_all(list(chosen.values()), "The configuration")
    steps = options.training.rounds * options.training.steps_per_round
    planned = {name: equal_steps(one, steps) for name, one in chosen.items()}
    for name, one in chosen.items():
        if idle := unused(one):
            OUT.print(f"{name} has no use for {', '.join(idle)}: left out.")
    summaries: dict[str, Summary] = {}
    for name, one in planned.items():
        folder = out / name
        with event_bars(name) as tell:
            summaries[name] = run(one, folder, resume=resume and (folder / "config.yaml").exists(), progress=tell)
    if "local-only" in methods:
        for name in methods:
            write_page(out / name, baseline=out / "local-only")
    page = write_comparison({name: out / name for name in methods}, out / "comparison.html")
    intervals = {name: read_intervals(out / name, summary) for name, summary in summaries.items()}
    OUT.print(comparison_table(summaries, intervals))
    OUT.print(f"Comparison: {page}")
    for name in methods:
        OUT.print(f"Report of {name}: {out / name / 'report.html'}")
