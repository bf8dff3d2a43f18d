"""The runs of a suite, one after the other: every pair of seed and method is an ordinary run in its own folder that can be resumed.

Finished runs are skipped, and the results are written after every run, so that an unfinished comparison can already be read. All runs
share one cache of frozen features: the features of an image are computed by the first run that uses the image.
"""

import json
import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from pfedsam.core import atomic
from pfedsam.core.errors import CheckpointError, DataError, PfedsamError, RunError, StoreError
from pfedsam.core.lock import exclusive
from pfedsam.core.log import get_logger
from pfedsam.engine.inputs import Inputs
from pfedsam.engine.progress import Event
from pfedsam.engine.run import is_finished, run
from pfedsam.experiment.options import RunOptions
from pfedsam.experiment.suite import Entry, Suite, refuse_idle_overrides, run_options, site_folders
from pfedsam.report.accuracy import Cost, Line, RunScores, read_run
from pfedsam.report.accuracy_page import Study, write_accuracy
from pfedsam.report.page import write_missing_page

_LOG = get_logger(__name__)
_COSTS: Final = ("seconds", "cpu_seconds")
"""The costs of a session in its file, in the order of `Cost`."""


@dataclass(frozen=True)
class Plan:
    """A comparison: its suite, entries, seeds, options and folders."""

    suite: Suite
    entries: Sequence[Entry]
    seeds: Sequence[int]
    data: Path
    out: Path
    overrides: Sequence[str] = ()
    workers: int = 2
    threads: int = 1
    cache: Path | None = None
    """Folder of the cache of frozen features; None for a folder inside `out`."""
    leave_out: str | None = None
    """Name of a site that is left out."""

    @property
    def sites(self) -> dict[str, Path]:
        """Name and folder of each site that takes part.

        Raises:
            DataError: a folder is missing.
        """
        return {n: folder for n, folder in site_folders(self.suite, self.data).items() if n != self.leave_out}

    @property
    def cache_folder(self) -> Path:
        """The folder of the cache of frozen features."""
        return self.cache or self.out / "cache"

    def inside(self, name: str, overrides: Sequence[str]) -> "Plan":
        """The same comparison with other overrides, in a subfolder of this one's folder, with the same cache."""
        return replace(self, overrides=overrides, out=self.out / name, cache=self.cache_folder)

    def options(self, entry: Entry, seed: int) -> RunOptions:
        """The configuration of one run.

        Raises:
            OptionError: the configuration has mistakes; the message names all of them.
            DataError: a site's folder is missing.
        """
        chosen = run_options(self.suite, entry, seed, self.sites, self.overrides)
        cache = chosen.runtime.cache_folder or self.cache_folder.resolve()
        runtime = {"workers": self.workers, "threads": self.threads, "cache_folder": cache}
        return chosen.model_copy(update={"runtime": chosen.runtime.model_copy(update=runtime)})

    def folder(self, entry: Entry, seed: int) -> Path:
        """The folder of a run."""
        base = self.out / f"without-{self.leave_out}" if self.leave_out else self.out
        return base / f"seed{seed}" / entry.label


@dataclass(frozen=True)
class Step:
    """Progress of a benchmark: the current run, and how many of all runs are done."""

    label: str
    seed: int
    done: int
    total: int
    event: Event | None
    """None when the run has ended."""


@dataclass
class Outcome:
    """The finished runs, and the errors of those that failed."""

    runs: dict[str, dict[int, RunScores]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    """Full error message by run, for the user of the command; it may name a case."""
    kinds: dict[str, str] = field(default_factory=dict)
    """Class of the error by run, for the result files, which must not name cases."""


def run_plan(plan: Plan, tell: Callable[[Step], None], finished: Callable[[Outcome], None]) -> Outcome:
    """Run every run that is not finished yet. If one fails, its error is recorded and the others are still run.

    Args:
        plan: the comparison.
        tell: called on progress.
        finished: called with all results so far, once at the start and after every run.

    Raises:
        CheckpointError: the backbone of a finished run cannot be loaded.
        DataError: the data of a finished run have changed since.
        RunError: another process works in the same folder, a run's folder holds another configuration, or the backbone of a finished run
            has other weights now.
        OptionError: an entry's configuration is wrong, or no entry uses an override; nothing was run.
    """
    refuse_idle_overrides(plan.suite, plan.entries, plan.sites, plan.overrides)
    planned = [(entry, seed, plan.options(entry, seed)) for seed in plan.seeds for entry in plan.entries]
    with exclusive(plan.out, plan.cache_folder):
        outcome, inputs = Outcome(), Inputs()
        waiting = []
        for entry, seed, options in planned:
            if _is_done(plan, entry, seed, options, inputs):
                _collect(plan, entry, seed, outcome)
            else:
                waiting.append((entry, seed, options))
        finished(outcome)
        for done, (entry, seed, options) in enumerate(waiting, start=len(planned) - len(waiting)):

            def pass_on(event: Event, entry: Entry = entry, seed: int = seed, done: int = done) -> None:
                tell(Step(entry.label, seed, done, len(planned), event))

            try:
                _run_one(plan, entry, seed, options, pass_on)
                _collect(plan, entry, seed, outcome)
            except PfedsamError as error:
                name = f"{entry.label}, seed {seed}"
                outcome.failed[name], outcome.kinds[name] = str(error), type(error).__name__
            finished(outcome)
            tell(Step(entry.label, seed, done + 1, len(planned), None))
    return outcome


def _is_done(plan: Plan, entry: Entry, seed: int, options: RunOptions, inputs: Inputs) -> bool:
    """Whether a run is finished, as `is_finished`; an error names the run. A report that the run could not write is written."""
    folder = plan.folder(entry, seed)
    try:
        finished = is_finished(options, folder, inputs)
        if finished:
            write_missing_page(folder)
        return finished
    except (CheckpointError, DataError, RunError, StoreError) as error:
        raise type(error)(f"{entry.label}, seed {seed}: {error}") from error


def write_results(plan: Plan, outcome: Outcome, folder: Path, name: str, command: str) -> dict[str, float | None]:
    """Write JSON, Markdown and a figure of all results so far, and return the headline figures.

    Raises:
        StoreError: a file could not be written.
    """
    study = study_of(plan, name, command, outcome.kinds)
    runs = {label: {s: found[s] for s in plan.seeds if s in found} for label, found in outcome.runs.items()}
    return write_accuracy(folder, study, runs)


def study_of(plan: Plan, name: str, command: str, failed: Mapping[str, str]) -> Study:
    """The description of a comparison for its result files; `failed` has the form of `Outcome.kinds`."""
    return Study(
        name=name,
        subject=plan.suite.subject,
        command=command,
        seeds=plan.seeds,
        lines=[Line(entry.label, entry.method, not entry.pooled) for entry in plan.entries],
        settings=_settings(plan),
        failed=failed,
    )


def _settings(plan: Plan) -> dict[str, Any]:
    """The suite as it was run, without the paths of folders."""
    content = plan.suite.model_dump(mode="json", exclude={"variants"})
    changes = {entry.label: dict(entry.changes) for entry in plan.entries if entry.changes}
    return {**content, "set": list(plan.overrides), "variants": changes, "workers": plan.workers}


def _run_one(plan: Plan, entry: Entry, seed: int, options: RunOptions, tell: Callable[[Event], None]) -> None:
    folder = plan.folder(entry, seed)
    with _measured(_cost_file(plan, entry, seed)):
        run(options, folder, resume=(folder / "config.yaml").exists(), progress=tell)


def _collect(plan: Plan, entry: Entry, seed: int, outcome: Outcome) -> None:
    cost = _read_cost(_cost_file(plan, entry, seed))
    outcome.runs.setdefault(entry.label, {})[seed] = read_run(plan.folder(entry, seed), cost)


def _cost_file(plan: Plan, entry: Entry, seed: int) -> Path:
    path = plan.out / "costs" / plan.folder(entry, seed).relative_to(plan.out)
    return path.with_name(f"{path.name}.json")  # `with_suffix` would turn `lr-0.001` into `lr-0`


@contextmanager
def _measured(path: Path) -> Iterator[None]:
    """Add the cost of the enclosed code to a run's costs; a session that was killed leaves a null, so that the total is then unknown."""
    path.parent.mkdir(parents=True, exist_ok=True)
    before = _sessions(path)
    atomic.write_json(path, [*before, None])
    started, used = time.monotonic(), _cpu_seconds()
    yield
    session = dict(zip(_COSTS, (time.monotonic() - started, _cpu_seconds() - used), strict=True))
    atomic.write_json(path, [*before, session])


def _sessions(path: Path) -> list[Mapping[str, float] | None]:
    """The costs of the sessions of a run, None for one whose costs are unknown; of a damaged file, one such session.

    Raises:
        OSError: the file cannot be read.
    """
    if not path.exists():
        return []
    try:
        content = json.loads(path.read_bytes())
        return [None if one is None else {key: float(one[key]) for key in _COSTS} for one in content]
    except (ValueError, TypeError, LookupError, RecursionError):
        _LOG.warning("%s is damaged: the costs of this run are unknown.", path)
        return [None]


def _read_cost(path: Path) -> Cost:
    sessions = _sessions(path)
    known = [one for one in sessions if one is not None]
    if not known or len(known) < len(sessions):
        return Cost(None, None)
    return Cost(*(sum(one[key] for one in known) for key in _COSTS))


def _cpu_seconds() -> float:
    """CPU time of this process and of its child processes that have ended."""
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in both)
