"""A suite: the sites, options, methods and seeds of one comparison, as a file; every entry of it is an ordinary run.

The protocol (docs/evidence.md) as code: each seed has its own split by patient, and every method gets the same number of optimiser
steps at each site: rounds times steps of a round. A last local phase takes its steps out of them, so that no method is lengthened because
another one has such a phase. A pooled method gets the steps of all sites together.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from pfedsam.core.errors import DataError, OptionError
from pfedsam.core.options import Options
from pfedsam.core.yaml_files import read_mapping
from pfedsam.experiment.build import build_method
from pfedsam.experiment.effect import is_below, refuse_unused_by_all, unused, without_unused
from pfedsam.experiment.load import override, put, validate
from pfedsam.experiment.options import RunOptions
from pfedsam.federation.methods import METHODS, find_method
from pfedsam.training.options import TrainingOptions

_ABLATIONS = "ablations"
"""The shipped file of variants; not a suite."""


class Suite(Options):
    """The content of a suite file."""

    name: str = Field(pattern=r"^[\w.-]+$", description="Of the suite; part of its files' names.")
    sites: list[str] = Field(default=[], description="Folders of the data folder, each a site; empty = all of them.")
    seeds: list[int] = Field(
        default=[0, 1, 2], min_length=1, description="One run each; a seed also decides the split."
    )
    methods: list[str] = Field(default=[], description="Methods to compare; empty = all there are.")
    subject: str = Field(default="pfedsam", description="The method that the others are compared with.")
    options: dict[str, Any] = Field(
        description="The configuration of a run, without its sites, method and seed; keys as in `pfedsam run`."
    )
    variants: dict[str, dict[str, Any]] = Field(
        default={},
        description="Name to `method`, the keys that differ, such as training.phases: joint, and `steps`, times as many as the suite has; "
        "beside the shipped ablations.",
    )


@dataclass(frozen=True)
class Entry:
    """A line of a comparison: a method, or a variant of one."""

    label: str
    method: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Dotted keys and their values."""
    steps: float = 1.0
    """Times as many optimiser steps as the suite has: for methods whose steps cost less."""

    @property
    def pooled(self) -> bool:
        """Whether the images of all sites lie in one place, so that the privacy promise is broken."""
        return find_method(self.method).roster.pool is not None


def shipped_suites() -> list[str]:
    """The names of the suites that come with the package."""
    names = (Path(one.name).stem for one in files("pfedsam.experiment").joinpath("suites").iterdir())
    return sorted(name for name in names if name != _ABLATIONS)


def load_suite(name: str) -> Suite:
    """A shipped suite by name, or the one in a YAML file; with the shipped ablations among its variants.

    Raises:
        OptionError: there is none, or it has mistakes, all of which are named.
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
    """The lines of a comparison.

    Args:
        suite: that defines them.
        methods: their names; None for those of the suite, or for the subject alone where variants are asked for.
        variants: names of variants; `all` for every one.

    Raises:
        OptionError: one is not known.
    """
    if methods is None:
        methods = [suite.subject] if variants else (suite.methods or list(METHODS))
    entries = [Entry(find_method(name).name, name) for name in dict.fromkeys(methods)]
    names = list(suite.variants) if "all" in variants else list(dict.fromkeys(variants))
    for name in names:
        if name not in suite.variants or name in METHODS:
            raise OptionError(
                f"There is no variant {name!r} (or it has a method's name); known: {', '.join(suite.variants)}."
            )
        changes = dict(suite.variants[name])
        method = find_method(str(changes.pop("method", suite.subject))).name
        entries.append(Entry(name, method, steps=float(changes.pop("steps", 1.0)), changes=changes))
    return entries


def site_folders(suite: Suite, data: Path) -> dict[str, Path]:
    """Name and folder of each site of the suite.

    Raises:
        DataError: a folder is missing.
    """
    if not data.is_dir():
        raise DataError(f"There is no data folder {data.name!r}: give the folder that holds one folder per site.")
    names = suite.sites or sorted(one.name for one in data.iterdir() if one.is_dir() and not one.name.startswith("."))
    missing = [name for name in names if not (data / name).is_dir()]
    if missing or not names:
        raise DataError(
            f"The data folder {data.name!r} lacks the site(s) {', '.join(missing) or 'of any name'}; "
            f"the suite {suite.name!r} needs a folder for each site, with images/ and masks/."
        )
    return {name: (data / name).resolve() for name in names}


def run_options(
    suite: Suite, entry: Entry, seed: int, sites: Mapping[str, Path], overrides: Sequence[str] = ()
) -> RunOptions:
    """The configuration of one run: the suite's options, the overrides, the entry's changes, and equal steps.

    What the suite or the overrides set for all entries alike, and this one has no use for, is left out.

    Args:
        suite: whose options they are.
        entry: method and changes.
        seed: of split, weights, batches and views.
        sites: name to folder.
        overrides: `key.path=value`, for every entry alike.

    Raises:
        OptionError: naming every mistake, and every change of the entry that has no effect in it.
    """
    chosen, steps = _chosen(suite, entry, seed, sites, overrides)
    idle = [text for key, text in unused(chosen).items() if is_below(key, entry.changes)]
    if idle:
        raise OptionError(f"The variant {entry.label} sets what has no effect: {'; '.join(idle)}.")
    return equal_steps(chosen, round(steps * entry.steps))


def refuse_idle_overrides(
    suite: Suite, entries: Sequence[Entry], sites: Mapping[str, Path], overrides: Sequence[str]
) -> None:
    """Let overrides pass only if each has an effect in one entry at least; arguments as of `run_options`.

    Raises:
        OptionError: naming each that has none.
    """
    runs = [_chosen(suite, entry, 0, sites, overrides)[0] for entry in entries]
    refuse_unused_by_all(runs, "--set", [text.partition("=")[0] for text in overrides])


def _chosen(
    suite: Suite, entry: Entry, seed: int, sites: Mapping[str, Path], overrides: Sequence[str]
) -> tuple[RunOptions, int]:
    """An entry's options as they are set, whether they have an effect or not, and the steps of the suite's rounds."""
    content = copy.deepcopy(suite.options)
    put(content, "data.sites", {name: str(folder) for name, folder in sites.items()})
    override(content, overrides)
    content |= {"name": content.get("name", suite.name), "seed": seed, "method": entry.method}
    basis = validate(RunOptions, content, f"suite {suite.name}").training
    for key, value in entry.changes.items():
        put(content, key, value)
    return validate(RunOptions, content, f"suite {suite.name}, {entry.label}"), basis.rounds * basis.steps_per_round


def local_steps(options: RunOptions) -> int:
    """Optimiser steps of one training site over a whole run: all phases of all rounds, and the last ones."""
    method, training = build_method(options), options.training
    in_round = sum(phase.steps for phase in method.phases(training))
    return training.rounds * in_round + sum(phase.steps for phase in method.final(training))


def equal_steps(options: RunOptions, budget: int) -> RunOptions:
    """The options with as many rounds as make `budget` steps a site; a method's last phase takes its steps out of them.

    Where `training.final_steps` was not set, the last phase has no more than a quarter of the budget, and whole rounds' worth of it.
    A pooled method does the steps of all sites, in as many rounds as the others.

    Raises:
        OptionError: no whole number of rounds makes the budget.
    """
    method, training = build_method(options), options.training
    in_round = sum(phase.steps for phase in method.phases(training))
    if "final_steps" not in training.model_fields_set:
        most = min(training.final_steps, budget // 4)
        training = training.model_copy(update={"final_steps": most - most % in_round})
    last = sum(phase.steps for phase in method.final(training))
    rounds, left = divmod(budget - last, in_round)
    if left or rounds < 1:
        raise OptionError(
            f"{options.method}: {in_round} steps a round and {last} after the last cannot make {budget} steps in whole rounds, and "
            "every method must make equally many. Choose training.final_steps as a multiple of training.steps_per_round, and less than "
            "the steps of all rounds."
        )
    changes = {"rounds": rounds, "final_steps": training.final_steps}
    if method.roster.pool:
        sites = len(options.data.sites)
        changes |= {"steps_per_round": training.steps_per_round * sites, "final_steps": training.final_steps * sites}
    return without_unused(options.model_copy(update={"training": _changed(options.training, changes)}))


def _changed(options: TrainingOptions, update: Mapping[str, int]) -> TrainingOptions:
    """The options with other values; what was set stays set, and nothing else.

    Raises:
        OptionError: they do not go together.
    """
    try:
        return TrainingOptions.model_validate(options.model_dump(exclude_unset=True) | dict(update))
    except ValidationError as error:
        raise OptionError("; ".join(str(one["msg"]).removeprefix("Value error, ") for one in error.errors())) from error


def _shipped(name: str) -> Path:
    return Path(str(files("pfedsam.experiment").joinpath("suites", f"{name}.yaml")))
