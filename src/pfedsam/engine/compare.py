"""Several methods on the same sites, splits and seed: a run for each, and a page that shows them side by side."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from pfedsam.core.errors import OptionError
from pfedsam.engine.progress import Event
from pfedsam.engine.run import run
from pfedsam.experiment.effect import refuse_unused_by_all
from pfedsam.experiment.options import RunOptions
from pfedsam.experiment.suite import equal_steps
from pfedsam.federation.methods import find_method
from pfedsam.report.page import write_comparison, write_page
from pfedsam.report.summary_file import LOCAL_ONLY, Summary

PAGE: Final = "comparison.html"
"""The comparison, in the folder that holds the runs."""


def compare(
    options: RunOptions,
    out: Path | str,
    methods: Sequence[str],
    *,
    resume: bool = False,
    progress: Callable[[str, Event], None] | None = None,
) -> dict[str, Summary]:
    """Run each method in its folder under `out`, each with at most the steps of the options' rounds; then the comparison.

    Args:
        options: of the runs, whatever their method is.
        out: holds a folder for each method, and `comparison.html` at the end.
        methods: names of `pfedsam.METHODS`.
        resume: go on with the runs that are there.
        progress: called with the method and what has been done of its run.

    Returns:
        The summary of each method's run.

    Raises:
        OptionError: there is no method, one is unknown, one cannot make as many steps in whole rounds, or an option is used by none;
            nothing was run.
        DataError: a site's data is wrong; every problem is named.
        RunError: a folder holds another run, or a run and `resume` is not given.
    """
    out = Path(out)
    summaries: dict[str, Summary] = {}
    for name, one in _plan(options, out, methods).items():
        folder, begun = out / name, (out / name / "config.yaml").exists()
        tell = partial(progress or _ignore, name)
        summaries[name] = run(one, folder, resume=resume and begun, progress=tell)
    if LOCAL_ONLY in methods:
        for name in methods:
            write_page(out / name, baseline=out / LOCAL_ONLY)
    write_comparison({name: out / name for name in methods}, out / PAGE)
    return summaries


def _ignore(method: str, event: Event) -> None: ...


def _plan(options: RunOptions, out: Path, methods: Sequence[str]) -> dict[str, RunOptions]:
    """The options of each method's run: of equal steps, with one cache for all.

    Raises:
        OptionError: as `compare`.
    """
    if not methods:
        raise OptionError("--methods is empty: give the methods to compare, such as fedavg,pfedsam.")
    cache = options.runtime.cache_folder or (out / "cache").resolve()
    options = options.model_copy(update={"runtime": options.runtime.model_copy(update={"cache_folder": cache})})
    chosen = {name: options.model_copy(update={"method": find_method(name).name}) for name in methods}
    refuse_unused_by_all(list(chosen.values()), "The configuration")
    steps = options.training.rounds * options.training.steps_per_round
    return {name: equal_steps(one, steps) for name, one in chosen.items()}
