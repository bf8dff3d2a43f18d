"""`pfedsam bench`: comparisons of methods over several seeds by one protocol, with confidence intervals; they can be resumed."""

import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from pfedsam.cli.console import ERR, OUT, fitted

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pfedsam.bench.plan import Outcome, Plan, Step
    from pfedsam.report.onboarding_page import Joined

app = typer.Typer(
    no_args_is_help=True, help="Compare methods over several seeds by one protocol (docs/evidence.md). For research."
)

Data = Annotated[Path, typer.Option("--data", help="Folder that holds one folder for each site of the suite.")]
SuiteName = Annotated[
    str,
    typer.Option(
        "--suite",
        help="Name of a shipped suite (cardiac, disc, nuclei or retina), or path of your own suite file (YAML).",
    ),
]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder for all runs; give the same folder again to continue.")]
_METHODS = "Methods, separated by commas."
Seeds = Annotated[str | None, typer.Option("--seeds", help="Seeds, separated by commas; default: those of the suite.")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="Override a key of the configuration in every run, such as training.rounds=4; may be repeated. Refused for keys that the "
        "benchmark sets itself, such as seed and method.",
    ),
]
_LIMIT: Final = "data.split.max_train_cases"
"""Key of the configuration for the number of labelled training images per site."""
CONVERGED = 3
"""Factor by which `--converged` multiplies the rounds of a suite."""
Workers = Annotated[int, typer.Option("--workers", help="Number of processes that train sites in parallel.")]
Results = Annotated[
    Path | None, typer.Option("--results", help="Folder for the result files; default: the folder of --out.")
]


@app.command("accuracy")
def accuracy_command(
    data: Data,
    suite: SuiteName,
    out: Out = Path("runs/accuracy"),
    methods: Annotated[
        str | None,
        typer.Option(
            "--methods",
            help=f"{_METHODS} Default: those of the suite, or with --variants only the method whose variants these are.",
        ),
    ] = None,
    variants: Annotated[
        str, typer.Option("--variants", help="Variants (ablations) of the suite, separated by commas, or `all`.")
    ] = "",
    seeds: Seeds = None,
    train_limit: Annotated[
        int | None,
        typer.Option(
            "--train-limit",
            min=1,
            help="Number of labelled training images per site, taken patient by patient; default: all. Their runs are in a folder of their "
            "own in --out, which `bench labels` uses too.",
        ),
    ] = None,
    results: Results = None,
    name: Annotated[
        str | None,
        typer.Option(
            "--name",
            help="Name of the result files; default: accuracy-SUITE or ablation-SUITE, followed by -N with --train-limit N.",
        ),
    ] = None,
    overrides: Set = None,
    workers: Workers = 2,
) -> None:
    """Compare methods over several seeds, with an equal number of optimiser steps at each site.

    Writes the results as JSON, Markdown and a figure after every run. After an interruption, the same command continues and skips the
    runs that are finished.
    Example: pfedsam bench accuracy --data data/nuclei --suite nuclei --methods pfedsam,fedavg,local-only --out runs/nuclei
    """
    from pfedsam.bench.plan import run_plan, write_results

    if train_limit:
        _refuse_limit(overrides, "--train-limit")
    plan = _plan(data, suite, out, methods, variants, seeds, overrides, workers)
    kind = "ablation" if variants else "accuracy"
    words = [_command(plan, "accuracy", suite, methods, variants)]
    words += [f"--train-limit {train_limit}"] if train_limit else []
    words += [f"--name {shlex.quote(name)}"] if name else []
    command = " ".join(words)
    name = name or f"{kind}-{plan.suite.name}" + (f"-{train_limit}" if train_limit else "")
    plan = _limited(plan, str(train_limit)) if train_limit else plan
    folder = results or out

    def finished(outcome: "Outcome") -> None:
        write_results(plan, outcome, folder, name, command)

    with bench_bar(plan) as tell:
        outcome = run_plan(plan, tell, finished)
    OUT.print(f"Results: {folder / name}.md")
    _refuse_failures(outcome.failed)


@app.command("onboarding")
def onboarding_command(
    data: Data,
    suite: SuiteName,
    out: Out = Path("runs/accuracy"),
    methods: Annotated[str, typer.Option("--methods", help=_METHODS)] = "pfedsam",
    seeds: Seeds = None,
    labels: Annotated[
        str, typer.Option("--labels", help="Numbers of labelled cases of the new site, separated by commas.")
    ] = "5,10,20",
    steps: Annotated[
        int, typer.Option("--steps", min=1, help="Optimiser steps of each onboarding option that trains.")
    ] = 120,
    results: Results = None,
    overrides: Set = None,
    workers: Workers = 2,
) -> None:
    """Leave out each site in turn, score the shared model there, and let the site join with a few labelled cases.

    The shared model is scored if the method has one. If --out is the folder of an earlier `bench accuracy` of the same suite, its runs of
    the full federation are used.
    Example: pfedsam bench onboarding --data data/nuclei --suite nuclei --out runs/nuclei
    """  # noqa: DOC501 - shown as help
    from pfedsam.bench.new_sites import run_new_sites
    from pfedsam.bench.plan import study_of
    from pfedsam.core.errors import OptionError
    from pfedsam.report.onboarding_page import write_onboarding

    numbers = _numbers(labels, "--labels")
    if not numbers:
        raise OptionError("--labels is empty: give at least one number of labelled cases, such as 5,10,20.")
    plan = _plan(data, suite, out, methods, "", seeds, overrides, workers)
    name, folder = f"onboarding-{plan.suite.name}", results or out
    more = f" --labels {','.join(map(str, numbers))} --steps {steps}"
    study = study_of(plan, name, _command(plan, "onboarding", suite, methods, "") + more, {})

    def finished(joined: "Sequence[Joined]") -> None:
        write_onboarding(folder, study, joined)

    with bench_bar(plan) as tell:
        run_new_sites(plan, numbers, steps, tell, finished)
    OUT.print(f"Results: {folder / name}.md")


@app.command("labels")
def labels_command(
    data: Data,
    suite: SuiteName,
    out: Out = Path("runs/accuracy"),
    methods: Annotated[str, typer.Option("--methods", help=_METHODS)] = "local-only,fedavg,pfedsam",
    seeds: Seeds = None,
    limits: Annotated[
        str,
        typer.Option(
            "--limits", help="Numbers of labelled training images per site, separated by commas; `all` is always added."
        ),
    ] = "4,8,16",
    converged: Annotated[
        bool,
        typer.Option(
            "--converged",
            help=f"Train for {CONVERGED} times the suite's rounds; each site ends with the model of its best validation.",
        ),
    ] = False,
    results: Results = None,
    overrides: Set = None,
    workers: Workers = 2,
) -> None:
    """Measure Dice against the number of labelled images per site, which shows for how many labels a federation is worth it.

    If --out is the folder of an earlier `bench accuracy` of the same suite, its runs with all labels are used.
    Example: pfedsam bench labels --data data/nuclei --suite nuclei --limits 4,8,16 --out runs/nuclei
    """
    from pfedsam.bench.plan import Outcome, run_plan, study_of
    from pfedsam.report.labels_page import ALL, write_labels

    by_limit = {limit: Outcome() for limit in _limits(limits)}
    _refuse_limit(overrides, "--limits")
    plan = _plan(data, suite, out, methods, "", seeds, overrides, workers)
    name, folder = f"labels-{plan.suite.name}", results or out
    command = f"{_command(plan, 'labels', suite, methods, '')} --limits {shlex.quote(limits)}"
    if converged:
        name, command, plan = f"{name}-converged", f"{command} --converged", _converged(plan)
    study = study_of(plan, name, command, {})

    def finished(limit: str, outcome: Outcome) -> None:
        by_limit[limit] = outcome
        so_far = replace(study, failed=_over_limits(by_limit, lambda one: one.kinds))
        write_labels(folder, so_far, {limit: one.runs for limit, one in by_limit.items()}, converged=converged)

    for limit in by_limit:
        limited = _limited(plan, limit) if limit != ALL else plan
        with bench_bar(plan) as tell:
            run_plan(limited, tell, partial(finished, limit))
    OUT.print(f"Results: {folder / name}.md")
    _refuse_failures(_over_limits(by_limit, lambda one: one.failed))


def _limits(text: str) -> list[str]:
    """The numbers of labelled images in ascending order, followed by None for all images."""
    from pfedsam.report.labels_page import ALL

    numbers = ",".join(name for name in _names(text) or [] if name != ALL)
    return [*map(str, _numbers(numbers, "--limits")), ALL]


def _over_limits(by_limit: "Mapping[str, Outcome]", texts: "Callable[[Outcome], Mapping[str, str]]") -> dict[str, str]:
    """The texts of the outcomes, each by the name of the run and the limit."""
    return {f"{run}, {limit} labels": text for limit, one in by_limit.items() for run, text in texts(one).items()}


def _refuse_failures(failed: "Mapping[str, str]") -> None:
    """Raise an error if a run failed.

    Raises:
        RunError: a run failed; the message has the full text of every failure.
    """
    from pfedsam.core.errors import RunError

    if failed:
        raise RunError(
            f"{len(failed)} run(s) failed. The same command tries them again:\n"
            + "\n".join(f"{run}: {message}" for run, message in failed.items())
        )


def _limited(plan: "Plan", limit: str) -> "Plan":
    """The plan with a limited number of labelled training images per site, in its own folder but with the same cache.

    The plan's overrides do not limit it already (`_refuse_limit`).
    """
    return plan.inside(f"labels-{limit}", [*plan.overrides, f"{_LIMIT}={limit}"])


def _refuse_limit(overrides: "Sequence[str] | None", option: str) -> None:
    """Refuse an override that limits the training images where an option of the command does so.

    Raises:
        OptionError: there is one.
    """
    from pfedsam.core.errors import OptionError
    from pfedsam.experiment.load import holds, overridden

    if holds(overridden(overrides or []), _LIMIT):
        raise OptionError(f"--set sets {_LIMIT}, which {option} sets for each run. Leave it out, and give {option}.")


def _converged(plan: "Plan") -> "Plan":
    """The plan with more rounds and early stopping, in its own folder but with the same cache; `--set` takes precedence."""
    from pfedsam.training.options import TrainingOptions

    rounds = plan.suite.options.get("training", {}).get("rounds", TrainingOptions().rounds)
    longer = [f"training.rounds={CONVERGED * rounds}", "evaluation.max_drop=0"]
    return plan.inside("converged", [*longer, *plan.overrides])


def _plan(
    data: Path,
    suite: str,
    out: Path,
    methods: str | None,
    variants: str,
    seeds: str | None,
    overrides: list[str] | None,
    workers: int,
) -> "Plan":
    from pfedsam.bench.plan import Plan
    from pfedsam.experiment.suite import choose_entries, load_suite

    loaded = load_suite(suite)
    entries = choose_entries(loaded, _names(methods), _names(variants) or [])
    numbers = _numbers(seeds, "--seeds", least=0) or list(dict.fromkeys(loaded.seeds))
    return Plan(loaded, entries, numbers, data, out, overrides or [], workers)


@contextmanager
def bench_bar(plan: "Plan") -> Iterator["Callable[[Step], None]"]:
    """A progress bar over all runs with the remaining time, and a line for each run that ends."""
    columns = (
        TextColumn("{task.description:<60}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:.0f} %"),
        TimeRemainingColumn(),
    )
    started: float | None = None
    first = 0
    with Progress(*columns, console=ERR) as bars:
        task = bars.add_task("looking for finished runs", total=len(plan.entries) * len(plan.seeds))

        def tell(step: "Step") -> None:
            nonlocal started, first
            if started is None:
                started, first = time.monotonic(), step.done
            if step.event is None:
                passed = time.monotonic() - started
                left = passed / max(1, step.done - first) * (step.total - step.done)
                OUT.print(
                    f"{step.done} of {step.total} runs: {step.label}, seed {step.seed}; about {left / 60:.0f} min left"
                )
                bars.update(task, completed=step.done)
                return
            part = _PARTS.get(step.event.stage, 0.0) * step.event.done / max(1, step.event.total)
            before = {"finalize": 0.8, "test": 0.85}.get(step.event.stage, 0.0)
            text = f"{step.label}, seed {step.seed}: {step.event.detail}"
            bars.update(task, completed=step.done + before + part, description=fitted(text, beside=64, least=60))

        yield tell


_PARTS = {"train": 0.8, "finalize": 0.05, "test": 0.15}
"""The approximate share of a run's time that each stage takes."""


def _names(text: str | None) -> list[str] | None:
    names = [name.strip() for name in (text or "").split(",") if name.strip()]
    return names or None


def _numbers(text: str | None, option: str, *, least: int = 1) -> list[int]:
    """The whole numbers in the text of an option, without duplicates.

    Raises:
        OptionError: a part of the text is not a whole number, or is less than `least`.
    """
    from pfedsam.core.errors import OptionError

    names = _names(text) or []
    if not all(name.isascii() and name.isdecimal() and int(name) >= least for name in names):
        example = ",".join(map(str, range(least, least + 3)))
        raise OptionError(
            f"{option} {text!r}: give whole numbers from {least} on, separated by commas, such as {example}."
        )
    return list(dict.fromkeys(map(int, names)))


def _command(plan: "Plan", what: str, suite: str, methods: str | None, variants: str) -> str:
    """The command that reproduces these results, with DIR for the data folder, a folder for each suite, and no path of this machine."""
    words = ["pfedsam", "bench", what, "--data", "DIR", "--suite", Path(suite).name, "--out", f"runs/{plan.suite.name}"]
    words += ["--methods", methods] if methods else []
    words += ["--variants", variants] if variants else []
    words += ["--seeds", ",".join(map(str, plan.seeds))]
    words += [word for one in plan.overrides for word in ("--set", one)]
    return shlex.join(words)
