"""A suite: a file with the sites, options, methods and seeds of one comparison; every entry of it is an ordinary run.

A suite follows the protocol of docs/evidence.md: each seed has its own split by patient, and every method gets the same number of
optimiser steps at each site, namely rounds times steps of a round. The steps of final local fine-tuning are part of this number, so that
no method trains longer because another one has such a phase. A pooled method gets the sum of the steps of all sites.
"""

import copy
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Final, TypeAlias

from pydantic import AfterValidator, Field, ValidationError

from pfedsam.core.errors import DataError, OptionError
from pfedsam.core.options import Options
from pfedsam.core.text import short_repr
from pfedsam.core.yaml_files import read_mapping
from pfedsam.experiment.build import build_method
from pfedsam.experiment.effect import is_below, refuse_unused_by_all, unused, without_unused
from pfedsam.experiment.load import holds, overridden, override, put, validate
from pfedsam.experiment.options import RunOptions
from pfedsam.federation.methods import METHODS, find_method
from pfedsam.training.options import TrainingOptions

_ABLATIONS = "ablations"
"""Name of the shipped file of variants; it is not a suite."""
_MOST_STEPS: Final = 1000
"""Largest factor on the number of steps of a suite."""
_BY_THE_BENCHMARK: Final = {
    "seed": "give the seeds by --seeds, or by `seeds` of the suite",
    "method": "give the methods by --methods, by `methods` of the suite, or by `method` of a variant",
    "data.sites": "the sites are the folders in --data, or those of them that `sites` of the suite names",
    "runtime.workers": "give the number of processes by --workers",
    "runtime.threads": "every process computes with one thread; for more processes use --workers",
}
"""Key of the configuration that the benchmark itself sets for each run -> what to do instead of setting it."""
_BY_THE_STEPS: Final = {
    "training.rounds": "the rounds of a variant follow from its number of steps; give `steps`, a factor on the steps of the suite"
}
"""The same for keys that only a variant must not set."""


def _check_file_name(name: str) -> str:
    if not re.fullmatch(r"\w[\w.-]{0,99}", name):
        raise ValueError("use at most 100 letters, digits, '_', '-' and '.', beginning with a letter or digit")
    return name


FileName: TypeAlias = Annotated[str, AfterValidator(_check_file_name)]
"""A name that is a part of the names of files and folders."""


class Suite(Options):
    """The content of a suite file."""

    name: FileName = Field(description="Name of the suite; it is a part of the names of its files.")
    sites: list[str] = Field(
        default=[], description="Names of the sites, which are folders in the data folder; empty: all folders."
    )
    seeds: list[int] = Field(
        default=[0, 1, 2],
        min_length=1,
        description="Seeds; each method is run once per seed. The seed also determines the split.",
    )
    methods: list[str] = Field(default=[], description="Methods to compare; empty: all methods.")
    subject: str = Field(default="pfedsam", description="The method that the others are compared with.")
    options: dict[str, Any] = Field(
        description="Configuration of a run without its sites, method, seed, workers and threads; the keys are those of `pfedsam run`."
    )
    variants: dict[FileName, dict[str, Any]] = Field(
        default={},
        description="Variants by name (letters, digits, '_', '-' and '.'), in addition to the shipped ablations. A variant gives its "
        "`method`, the keys that differ from the suite, such as training.phases: joint, and `steps`, a factor on the number of optimiser "
        "steps.",
    )


@dataclass(frozen=True)
class Entry:
    """An entry of a comparison: a method, or a variant of a method."""

    label: str
    method: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    """The values that differ from the suite, by dotted key."""
    steps: float = 1.0
    """Factor on the suite's number of optimiser steps, for methods whose steps cost less."""

    @property
    def pooled(self) -> bool:
        """Whether the method pools the images of all sites in one place, so that it does not preserve privacy."""
        return find_method(self.method).roster.pool is not None


def shipped_suites() -> list[str]:
    """The names of the suites that come with the package."""
    names = (Path(one.name).stem for one in files("pfedsam.experiment").joinpath("suites").iterdir())
    return sorted(name for name in names if name != _ABLATIONS)


def load_suite(name: str) -> Suite:
    """Load a shipped suite by its name, or a suite from a YAML file; the shipped ablations are added to its variants.

    Raises:
        OptionError: there is no such suite, or it has mistakes, all of which the message names.
    """
    path = _shipped(name) if name in shipped_suites() else Path(name)
    if not path.exists():
        raise OptionError(
            f"There is no suite {name!r}: shipped are {', '.join(shipped_suites())}; or give the path of a YAML file."
        )
    suite = validate(Suite, read_mapping(path), path.name)
    wrong = [one for one in (*suite.methods, suite.subject) if one not in METHODS]
    if wrong:
        raise OptionError(f"{path.name}: there is no method {wrong[0]!r}; known: {', '.join(METHODS)}.")
    return suite.model_copy(update={"variants": read_mapping(_shipped(_ABLATIONS)) | suite.variants})


def choose_entries(suite: Suite, methods: Sequence[str] | None, variants: Sequence[str]) -> list[Entry]:
    """The entries of a comparison.

    Args:
        suite: the suite that defines them.
        methods: names of methods; None for those of the suite, or for the subject alone if variants are given.
        variants: names of variants; `all` for every variant.

    Raises:
        OptionError: a method or a variant is not known.
    """
    if methods is None:
        methods = [suite.subject] if variants else (suite.methods or list(METHODS))
    entries = [Entry(find_method(name).name, name) for name in dict.fromkeys(methods)]
    names = list(suite.variants) if "all" in variants else list(dict.fromkeys(variants))
    return entries + [_variant(suite, name) for name in names]


def _variant(suite: Suite, name: str) -> Entry:
    """The entry of a variant.

    Raises:
        OptionError: the suite has no such variant, a method has its name, or its number of steps is not allowed.
    """
    if name not in suite.variants or name in METHODS:
        raise OptionError(
            f"There is no variant {name!r} (or it has a method's name); known: {', '.join(suite.variants)}."
        )
    changes = dict(suite.variants[name])
    method = find_method(str(changes.pop("method", suite.subject))).name
    return Entry(name, method, steps=_factor(name, changes.pop("steps", 1.0)), changes=changes)


def _factor(variant: str, given: object) -> float:
    """The factor on the number of steps that a variant gives as `steps`.

    Raises:
        OptionError: it is not a number, or is not in the allowed range.
    """
    try:
        factor = float(str(given))
    except ValueError:
        factor = math.nan
    if not 0 < factor <= _MOST_STEPS:
        raise OptionError(
            f"The variant {variant} has the `steps` {short_repr(given)}. They are a factor on the number of steps of the suite: give "
            f"a number above 0 and at most {_MOST_STEPS}, such as 1.25."
        )
    return factor


def site_folders(suite: Suite, data: Path) -> dict[str, Path]:
    """Name and folder of each site of the suite.

    Raises:
        DataError: a folder is missing.
    """
    if not data.is_dir():
        raise DataError(f"There is no data folder {data.name!r}: give the folder that contains one folder per site.")
    names = suite.sites or _visible_folders(data)
    missing = [name for name in names if not (data / name).is_dir()]
    if missing or not names:
        raise DataError(
            f"The data folder {data.name!r} has no folder for the site(s) {', '.join(missing) or '(it contains no folder)'}; "
            f"the suite {suite.name!r} needs a folder for each site, with images/ and masks/."
        )
    return {name: (data / name).resolve() for name in names}


def _visible_folders(folder: Path) -> list[str]:
    """The names of the folders in a folder, without hidden ones."""
    return sorted(one.name for one in folder.iterdir() if one.is_dir() and not one.name.startswith("."))


def run_options(
    suite: Suite, entry: Entry, seed: int, sites: Mapping[str, Path], overrides: Sequence[str] = ()
) -> RunOptions:
    """The configuration of one run: the suite's options with the overrides, the entry's changes and an equal number of steps.

    Options that the suite or the overrides set for all entries are left out if they have no effect in this entry.

    Args:
        suite: the suite with the common options.
        entry: the method and its changes.
        seed: seed of the split, the weights, the batches and the augmentation.
        sites: folder of each site by name.
        overrides: texts of the form `key.path=value`, which apply to all entries.

    Raises:
        OptionError: the configuration has mistakes, or a change of the entry has no effect in it; the message names all of them. Or the
            suite, the overrides or the entry set a key that the benchmark sets itself.
    """
    chosen, steps = _chosen(suite, entry, seed, sites, overrides)
    idle = [text for key, text in unused(chosen).items() if is_below(key, entry.changes)]
    if idle:
        raise OptionError(f"The variant {entry.label} sets options without effect: {'; '.join(idle)}.")
    return equal_steps(chosen, round(steps * entry.steps))


def refuse_idle_overrides(
    suite: Suite, entries: Sequence[Entry], sites: Mapping[str, Path], overrides: Sequence[str]
) -> None:
    """Refuse overrides that have no effect in any entry; the arguments are those of `run_options`.

    Raises:
        OptionError: an override has no effect; the message names each of them. Or as for `run_options`.
    """
    runs = [_chosen(suite, entry, 0, sites, overrides)[0] for entry in entries]
    refuse_unused_by_all(runs, "--set", [text.partition("=")[0] for text in overrides])


def _chosen(
    suite: Suite, entry: Entry, seed: int, sites: Mapping[str, Path], overrides: Sequence[str]
) -> tuple[RunOptions, int]:
    """An entry's options, including those without effect, and the number of steps of the suite's rounds.

    Raises:
        OptionError: as for `run_options`, but changes without effect are accepted.
    """
    _refuse_what_a_run_gets(suite, entry, overrides)
    content = copy.deepcopy(suite.options)
    put(content, "data.sites", {name: str(folder) for name, folder in sites.items()})
    override(content, overrides)
    content |= {"name": content.get("name", suite.name), "seed": seed, "method": entry.method}
    basis = validate(RunOptions, content, f"suite {suite.name}").training
    for key, value in entry.changes.items():
        put(content, key, value)
    return validate(RunOptions, content, f"suite {suite.name}, {entry.label}"), basis.rounds * basis.steps_per_round


def _refuse_what_a_run_gets(suite: Suite, entry: Entry, overrides: Sequence[str]) -> None:
    """Refuse keys that the benchmark sets for each run, so that a value given for them would be without effect.

    Raises:
        OptionError: there is such a key; the message says what to do instead.
    """
    changes: dict[str, Any] = {}
    for key, value in entry.changes.items():
        put(changes, key, value)
    for content, place, reserved in (
        (suite.options, f"The suite {suite.name} sets under `options`", _BY_THE_BENCHMARK),
        (overridden(overrides), "--set sets", _BY_THE_BENCHMARK),
        (changes, f"The variant {entry.label} sets", _BY_THE_BENCHMARK | _BY_THE_STEPS),
    ):
        wrong = [f"{key} ({instead})" for key, instead in reserved.items() if holds(content, key)]
        if wrong:
            raise OptionError(f"{place} what a benchmark sets for each run. Leave it out: {'; '.join(wrong)}.")


def local_steps(options: RunOptions, rounds: int | None = None) -> int:
    """Optimiser steps of one training site over a whole run: those of all phases of all rounds, and those of the final phases.

    With a pooled method these are the steps of the pool and those that the other sites do at the end, all together.

    Args:
        options: of the run.
        rounds: the number of its rounds; None for `training.rounds`, which is an upper bound with `training.patience`.
    """
    method, training = build_method(options), options.training
    in_round = sum(phase.steps for phase in method.phases(training))
    last = sum(phase.steps for phase in method.final(training))
    finalizing = len(options.data.sites) if method.roster.each_finalizes else 1
    return (training.rounds if rounds is None else rounds) * in_round + finalizing * last


def equal_steps(options: RunOptions, budget: int) -> RunOptions:
    """The options with the number of rounds that gives `budget` steps per site, including the steps of the final phase.

    Where they were not set, `training.final_steps` is at most a quarter of the budget and a multiple of the steps of a round, and
    `training.fine_tuning_rounds` is at most a third of the rounds for which the budget is enough.
    A pool does the steps of all sites in the same number of rounds as the other methods; a site that fine-tunes the pooled model alone does
    those of one site.

    Raises:
        OptionError: no whole number of rounds gives the budget.
    """
    method, training = build_method(options), options.training
    in_round = sum(phase.steps for phase in method.phases(training))
    if "final_steps" not in training.model_fields_set:
        most = min(training.final_steps, budget // 4)
        training = training.model_copy(update={"final_steps": most - most % in_round})
    if training.fine_tuning_rounds is None and any(phase.fine_tunes_after for phase in method.final(training)):
        most = min(budget // in_round // 3, (training.patience or budget) // 2)
        training = training.model_copy(update={"fine_tuning_rounds": most})
    last = sum(phase.steps for phase in method.final(training))
    rounds, left = divmod(budget - last, in_round)
    if left or rounds < 1:
        raise OptionError(
            f"{options.method}: with {in_round} steps in a round and {last} after the last round, no whole number of rounds gives "
            f"{budget} steps, and all methods must do equally many. Choose training.final_steps as a multiple of training.steps_per_round, "
            "and it and the steps of training.fine_tuning_rounds less than those of all rounds."
        )
    changes = {"rounds": rounds, "final_steps": training.final_steps, "fine_tuning_rounds": training.fine_tuning_rounds}
    if method.roster.pool:
        sites = len(options.data.sites)
        changes["steps_per_round"] = training.steps_per_round * sites
        if not method.roster.each_finalizes:
            changes["final_steps"] = training.final_steps * sites
    return without_unused(options.model_copy(update={"training": _changed(options.training, changes)}))


def _changed(options: TrainingOptions, update: Mapping[str, int | None]) -> TrainingOptions:
    """The options with other values; only the keys that were set before, and the changed ones, count as set.

    Raises:
        OptionError: the values contradict each other.
    """
    try:
        return TrainingOptions.model_validate(options.model_dump(exclude_unset=True) | dict(update))
    except ValidationError as error:
        raise OptionError("; ".join(str(one["msg"]).removeprefix("Value error, ") for one in error.errors())) from error


def _shipped(name: str) -> Path:
    return Path(str(files("pfedsam.experiment").joinpath("suites", f"{name}.yaml")))
