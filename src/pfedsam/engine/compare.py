"""Compares several methods on the same sites, splits and seed: one run for each method, and a page that shows them side by side."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from pfedsam.core.errors import DataError, OptionError, RunError
from pfedsam.engine.inputs import Inputs
from pfedsam.engine.progress import Event
from pfedsam.engine.run import check_folder, refuse_other_inputs, run, warn_nothing_to_resume
from pfedsam.engine.site_options import CONFIG as SITE
from pfedsam.experiment.build import build_label_form, build_method, build_sites, refuse_too_few_sites, with_pool
from pfedsam.experiment.effect import refuse_unused_by_all
from pfedsam.experiment.options import RunOptions
from pfedsam.experiment.suite import equal_steps
from pfedsam.federation.methods import find_method
from pfedsam.report.page import write_comparison, write_page
from pfedsam.report.summary_file import LOCAL_ONLY, Summary

PAGE: Final = "comparison.html"
"""The file with the comparison, in the folder that contains the runs."""


def compare(
    options: RunOptions,
    out: Path | str,
    methods: Sequence[str],
    *,
    resume: bool = False,
    progress: Callable[[str, Event], None] | None = None,
) -> dict[str, Summary]:
    """Run each method in its own folder under `out`, with at most the steps of the configured rounds, and write the comparison.

    Args:
        options: the options of the runs; the method in them is not used.
        out: the folder for the runs, one folder for each method, and for `comparison.html`.
        methods: names of methods in `pfedsam.METHODS`.
        resume: whether to continue existing runs; if there are none, new ones begin, and a warning is logged.
        progress: called with the name of the method and the progress of its run.

    Returns:
        The summary of each method's run.

    Raises:
        OptionError: no method is given, a method is unknown, cannot do the same number of steps in whole rounds or cannot be trained with
            these sites, or no method uses an option; nothing was run.
        DataError: a site's data is wrong; every problem is named. Or a method would begin with other data than another one has begun
            with.
        RunError: a folder contains another run, or a run although `resume` is not set; or `out` is itself the folder of a run. Nothing
            was run.
    """
    out = Path(out)
    planned = _plan(options, out, methods)
    _refuse_run(out)
    for name, one in planned.items():
        _refuse_sites(one)
        check_folder(one, out / name, resume)
    begun = {name for name in planned if (out / name / "config.yaml").exists()}
    if resume and not begun:
        warn_nothing_to_resume(out)
    if resume and begun != planned.keys():
        _refuse_other_inputs({name: one for name, one in planned.items() if name in begun}, out)
    summaries: dict[str, Summary] = {}
    for name, one in planned.items():
        tell = partial(progress or _ignore, name)
        summaries[name] = run(one, out / name, resume=resume and name in begun, progress=tell)
    if LOCAL_ONLY in methods:
        for name in methods:
            write_page(out / name, baseline=out / LOCAL_ONLY)
    write_comparison({name: out / name for name in methods}, out / PAGE)
    return summaries


def _refuse_run(out: Path) -> None:
    """Refuse the folder of a run, of a study or of a site, because the runs of a comparison would be mixed with its files.

    Raises:
        RunError: `out` is such a folder.
    """
    if any((out / name).exists() for name in ("config.yaml", SITE)):
        raise RunError(
            f"{out.name!r} is the folder of a run or of a site. Give a new or an empty folder, or that of an earlier comparison."
        )


def _refuse_sites(options: RunOptions) -> None:
    """Refuse sites with which a method cannot be trained, which would otherwise be found when the methods before it have ended.

    Raises:
        OptionError: there are too few sites, or they cannot be pooled.
        DataError: a site cannot be read, to pool it.
    """
    refuse_too_few_sites(options)
    pool = build_method(options).roster.pool
    if pool:
        build_label_form(options, with_pool(options, build_sites(options))[pool].cases)


def _refuse_other_inputs(begun: Mapping[str, RunOptions], out: Path) -> None:
    """Refuse to begin a further method on other data, or with another backbone, than those with which the others have begun.

    Raises:
        DataError: the data have changed.
        RunError: the configuration or the backbone has changed.
    """
    inputs = Inputs()
    for name, options in begun.items():
        try:
            refuse_other_inputs(options, out / name, inputs)
        except (DataError, RunError) as error:
            raise type(error)(f"No further method can be compared with {name}, which has begun: {error}") from error


def _ignore(method: str, event: Event) -> None: ...


def _plan(options: RunOptions, out: Path, methods: Sequence[str]) -> dict[str, RunOptions]:
    """The options of each method's run, with equal numbers of steps and a common cache.

    Raises:
        OptionError: as for `compare`.
    """
    if not methods:
        raise OptionError("--methods is empty: give the methods to compare, such as fedavg,pfedsam.")
    cache = options.runtime.cache_folder or (out / "cache").resolve()
    options = options.model_copy(update={"runtime": options.runtime.model_copy(update={"cache_folder": cache})})
    chosen = {name: options.model_copy(update={"method": find_method(name).name}) for name in methods}
    refuse_unused_by_all(list(chosen.values()), "The configuration")
    steps = options.training.rounds * options.training.steps_per_round
    return {name: equal_steps(one, steps) for name, one in chosen.items()}
