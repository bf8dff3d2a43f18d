"""A new site joins a finished federation: it gets its own model from a few labelled cases, and nothing is sent.

There are up to four options, which are scored on the same held-out cases of the new site; those that train do the same number of steps:

* local part: the method's final phases train the local parameters, with the shared parameters fixed.
* everything: all parameters are fine-tuned, starting from the shared ones.
* alone: all parameters are trained from the backbone, without the federation.
* nothing: the shared model is used unchanged, if the method has a shared model.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from torch import Tensor

from pfedsam.core import atomic, tensors
from pfedsam.core.errors import DataError, OptionError, RunError
from pfedsam.core.lock import LOCK, exclusive
from pfedsam.core.log import get_logger
from pfedsam.core.tensors import NamedTensors
from pfedsam.data.check import refuse_problems
from pfedsam.data.facts import SiteFacts
from pfedsam.data.manifest import Site
from pfedsam.data.split import USED, refuse_other_split
from pfedsam.data.trained_on import TrainedOn, common, cut_as_trained, joins_other_kind, trained_sequences
from pfedsam.data.volume_options import Plane
from pfedsam.engine.model_selection import Parameters
from pfedsam.engine.opened import OpenRun
from pfedsam.engine.run import run_id
from pfedsam.engine.run_end import SUMMARY, part_sizes, write_end
from pfedsam.engine.server_files import save_state
from pfedsam.engine.site_files import SPLIT, write_site
from pfedsam.engine.site_session import SiteScorer
from pfedsam.evaluation.scores import CaseScores
from pfedsam.evaluation.summary import SiteSummary, summarize_site
from pfedsam.experiment.build import (
    BuiltModel,
    build_method,
    build_site_data,
    build_sites,
    build_study,
    check_cases,
)
from pfedsam.experiment.load import write_config
from pfedsam.experiment.options import RunOptions
from pfedsam.federation.server import ServerState
from pfedsam.federation.site_store import SiteState, SiteStore
from pfedsam.model.partition import Partition
from pfedsam.report.onboarded import (
    ALONE,
    EVERYTHING,
    LOCAL_PART,
    NOTHING,
    WAYS,
    Onboarded,
    read_onboarded,
    write_onboarded,
)
from pfedsam.report.page import write_missing_page
from pfedsam.report.summary_file import Communication
from pfedsam.training.client_round import ClientState, client_round
from pfedsam.training.options import TrainingOptions
from pfedsam.training.phases import Model, PhaseSpec
from pfedsam.training.site_data import SiteData

_LOG = get_logger(__name__)
_KEY: Final = "onboarding.key"
_CHUNKS: Final = 10
"""Number of parts of the training, between which the learning rate changes as it does between rounds."""


@dataclass(frozen=True)
class Newcomer:
    """A site that was not in the federation."""

    name: str
    folder: Path
    labels: int = 10
    """Largest number of training cases, which are taken patient by patient from the training part of the site's split."""
    steps: int = 120
    seed: int = 0


Weights = tuple[NamedTensors, NamedTensors]
"""Shared and local parameters."""


def onboard(
    opened: OpenRun,
    new: Newcomer,
    out: Path,
    *,
    cache: Path | None = None,
    tell: Callable[[str], None] | None = None,
) -> Onboarded:
    """Train the models of a new site; the folder `out` gets the layout of a run with this one site, for `predict` and `report`.

    Args:
        opened: the federation that the site joins.
        new: the site.
        out: a new or empty folder, or the folder of the same onboarding, whose result is then read.
        cache: folder of the cache of frozen features; None for a folder inside `out`. That of the run is not used: it may be at another
            place now, and belongs to other sites.
        tell: called with the name of each onboarding option before it is trained.

    Raises:
        RunError: the method shares nothing from which a new site could start, `out` has other content, or another process works in it.
        OptionError: the federation already has a site with this name.
        DataError: the site's data is wrong, or has changed since the result in `out`, or there are no training or no test cases.
    """
    tell = tell or (lambda _: None)
    known = [TrainedOn.read(place) for place in opened.places.values()]
    options = _options(opened, new, _plane(known), cache)
    key = _key(opened, options, new)
    site = build_sites(options)[new.name]
    done = _read(out, key, site)
    if done:
        return done
    facts = _check(opened.built.partition, options, site)
    _refuse_other_planes(opened, site, _plane(known))
    _refuse_other_sequences(known, site)
    _warn_of_other_kind(known, site)
    check_cases(options, site, opened.built.model.image_size)
    with exclusive(out):
        if done := _read(out, key, site):
            return done
        # The key is written first: a folder with it can be given again after an interruption, also while the images are read.
        atomic.write_text(out / _KEY, key)
        work = _Work(options, opened.built, opened.shared, site, out, new.steps, opened.rounds)
        return _train(work, key, facts, tell)


def _train(work: "_Work", key: str, facts: SiteFacts, tell: Callable[[str], None]) -> Onboarded:
    """Train and score each onboarding option that the method allows, and write the folder with the model of the option in use."""
    method, local = build_method(work.options), work.built.partition.local
    used = LOCAL_PART if local and method.final(_training(work.options, 1)) else NOTHING
    _begin(work, facts)
    scores: dict[str, list[CaseScores]] = {}
    for way, folder in _folders(work, used).items():
        tell(way)
        weights = work.train(way)
        scores[way] = work.score(way, weights, folder)
        if way == used:
            _commit(work, weights[1])
    ways = {way: _measures(summarize_site(found)) for way, found in scores.items()}
    numbers = {part: len(work.site.of(part)) for part in USED}
    result = Onboarded(ways, numbers["train"], numbers["test"], used, numbers["val"])
    write_onboarded(work.out, key, result)  # before the report, which shows it
    _finish(work, scores, used)
    return result


def _folders(work: "_Work", used: str) -> dict[str, Path]:
    """The folder of each onboarding option.

    The local part is only trained if this is the option in use, and the shared model is only scored if the method has one.
    """
    left_out = {LOCAL_PART} if work.built.has_shared_model else {LOCAL_PART, NOTHING}
    ways = [way for way in WAYS if way == used or way not in left_out]
    others = {way: work.out / "others" / way.replace(" ", "-") for way in ways}
    return others | {used: work.out / "sites" / work.site.name}


def warm_start(local: NamedTensors, shared: NamedTensors, origins: Mapping[str, str]) -> dict[str, Tensor]:
    """The local parameters, with personal copies of shared ones (Ditto) initialised from the federation's shared parameters.

    Without this, a new site's copies would start from the pretrained backbone, unlike those of the members.
    """
    copies = {name: origin for name, origin in origins.items() if name in local and origin in shared}
    return dict(local) | {name: shared[origin].clone() for name, origin in copies.items()}


class _Work:
    """Training and scoring at the new site."""

    def __init__(
        self,
        options: RunOptions,
        built: BuiltModel,
        shared: NamedTensors,
        site: Site,
        out: Path,
        steps: int,
        rounds: int | None,
    ) -> None:
        self.rounds = options.training.rounds if rounds is None else rounds
        self.options, self.built, self.shared = options, built, shared
        self.site, self.out, self.steps = site, out, steps
        self.started = time.monotonic()
        cache = (options.runtime.cache_folder or out / "cache") / site.name
        self.data: SiteData = build_site_data(options, site.name, site.of("train"), built, cache)
        self.scorer = SiteScorer(options, site.name, built, self.data.cache)
        self.personal = bool(built.partition.local)

    def train(self, way: str) -> Weights:
        """The parameters at the end of an onboarding option."""
        start = self.built.start
        if way == ALONE:
            return self._phases(self._everything, start("shared"), start("local"))
        local = warm_start(start("local"), self.shared, self.built.model.origins())
        if way == NOTHING:
            return self.shared, local
        phases = self._everything if way == EVERYTHING else self._local_part
        return self._phases(phases, self.shared, local)

    def score(self, way: str, weights: Weights, folder: Path) -> list[CaseScores]:
        """Scores on the held-out cases; the files with scores and overlays are written to `folder`."""
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        model: Model = "personal" if self.personal and way != NOTHING else "shared"
        return self.scorer.test(self.site.of("test"), {model: model}, Parameters(*weights), folder)[model]

    def _phases(
        self, phases: Callable[[int], Sequence[PhaseSpec]], shared: NamedTensors, local: NamedTensors
    ) -> Weights:
        experts, state = self.options.model.experts, ClientState(local)
        chunks = min(_CHUNKS, self.steps)
        training = self.options.training.model_copy(update={"rounds": chunks, "patience": None})
        for chunk in range(chunks):
            steps = self.steps * (chunk + 1) // chunks - self.steps * chunk // chunks
            result = client_round(
                self.built.model,
                self.built.partition,
                self.data,
                phases(steps),
                shared=shared,
                state=state,
                round_=chunk,
                options=training,
                balance=experts.balance if experts else 0.0,
            )
            shared, state = result.shared, result.state
        return shared, state.local

    def _local_part(self, steps: int) -> Sequence[PhaseSpec]:
        return build_method(self.options).final(_training(self.options, steps))

    def _everything(self, steps: int) -> Sequence[PhaseSpec]:
        if self.personal:
            return (PhaseSpec("everything", ("shared", "local"), ("personal",), steps=steps),)
        return (PhaseSpec("everything", ("shared",), ("shared",), steps=steps),)


def _training(options: RunOptions, steps: int) -> TrainingOptions:
    # The local part of a new site is trained alone, whatever the form of the federation's rounds.
    return options.training.model_copy(update={"final_steps": steps, "phases": "decoupled"})


def _options(opened: OpenRun, new: Newcomer, plane: Plane | None, cache: Path | None) -> RunOptions:
    """The run's options with the new site as its only site, and with this cache of frozen features.

    Raises:
        OptionError: the federation already has a site with this name.
    """
    if new.name in opened.site_names:
        raise OptionError(f"The federation has a site {new.name!r} already. Give the new site another name by --name.")
    before = opened.options
    split = before.data.split.model_copy(update={"max_train_cases": new.labels})
    volume = before.data.volume
    if plane is not None and volume.axis == "auto":
        volume = volume.model_copy(update={"axis": plane})
    sites = {new.name: new.folder.resolve()}
    data = before.data.model_copy(update={"sites": sites, "split": split, "split_folder": None, "volume": volume})
    runtime = before.runtime.model_copy(update={"cache_folder": cache})
    return before.model_copy(update={"data": data, "seed": new.seed, "runtime": runtime})


def _plane(known: Iterable[TrainedOn]) -> Plane | None:
    """The plane of the training volumes of a federation's sites; None if it is not known, or if they have several."""
    return common(one.plane for one in known if one.plane is not None)


def _key(opened: OpenRun, options: RunOptions, new: Newcomer) -> str:
    """A digest of all that determines the result of an onboarding: options, steps and shared parameters."""
    parts = [run_id(options, opened.built.backbone), tensors.digest(opened.shared), new.steps]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _read(out: Path, key: str, site: Site) -> Onboarded | None:
    """The result of the same onboarding of this site, as it is now, in `out`; None if it is not finished.

    Raises:
        DataError: the onboarding is finished, and the site's data has changed since.
        RunError: the folder contains something else.
        StoreError: the result is damaged.
    """
    started = out / _KEY
    if not out.exists() or all(path.name == LOCK or path.suffix == ".tmp" for path in out.iterdir()):
        return None  # also after a call that was killed while it wrote the key
    if not started.exists():
        raise RunError(f"The folder {out.name!r} contains something else. Give a new or an empty folder.")
    finished = (out / SUMMARY).exists()
    if started.read_text("utf-8") != key:
        raise RunError(
            f"The folder {out.name!r} contains {'a finished' if finished else 'an unfinished'} onboarding already, of another site, "
            "federation, seed, or number of labels or steps. Give a new or an empty folder."
        )
    if not finished:  # it begins again, with the data as they are now
        return None
    refuse_other_split(out / "sites" / site.name / SPLIT, site)
    write_missing_page(out)
    return read_onboarded(out)


def _check(partition: Partition, options: RunOptions, site: Site) -> SiteFacts:
    """Refuse data with problems, log a warning for suspicious data, and return the facts about the images.

    Raises:
        RunError: the method shares nothing.
        DataError: the site's data is wrong.
    """
    if not partition.shared:
        raise RunError(f"The method {options.method!r} shares nothing, so a new site has nothing to start from.")
    report = refuse_problems([site], build_study(options))
    for warning in report.warnings:
        _LOG.warning("%s", warning)
    return report.facts[0]


def _refuse_other_planes(opened: OpenRun, site: Site, plane: Plane | None) -> None:
    """Refuse a site with thick slices in another plane than the slices of the federation, if that plane is known.

    Raises:
        DataError: it has.
    """
    data = opened.options.data
    for case in site.cases:
        cut_as_trained(case, data.image, data.volume, plane)


def _refuse_other_sequences(known: Iterable[TrainedOn], site: Site) -> None:
    """Refuse a site whose volumes have another number of sequences than those of the federation's sites, where that is known.

    Raises:
        DataError: they have.
    """
    number = trained_sequences(site)
    for theirs in (one.sequences for one in known if one.sequences is not None):
        if number is not None and number != theirs:
            raise DataError(
                f"site {site.name!r}: its cases have {number} sequence(s), and those of the federation have {theirs}; give every case the "
                "sequences of the federation, in the same order (data.volume.channels, or joined by ';' in a manifest)"
            )


def _warn_of_other_kind(known: Iterable[TrainedOn], site: Site) -> None:
    """Log a warning if the site has pictures and a site of the federation has volumes, or the reverse."""
    volume = any(case.volume for case in site.of("train"))
    said = [text for one in known if (text := joins_other_kind(site.name, one.volumes, volume=volume))]
    if said:
        _LOG.warning("%s", said[0])


def _begin(work: _Work, facts: SiteFacts) -> None:
    """Write the folder of a run with one site: split, shared parameters and configuration."""
    site_folder = work.out / "sites" / work.site.name
    site_folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_site(site_folder, facts)
    backbone = work.built.backbone
    save_state(work.out, run_id(work.options, backbone), ServerState(work.rounds, work.shared), backbone=backbone)
    write_config(work.out / "config.yaml", work.options)


def _commit(work: _Work, local: NamedTensors) -> None:
    if not work.personal:
        return
    state = SiteState(
        study=run_id(work.options, work.built.backbone),
        site=work.site.name,
        round=work.rounds,
        phase="onboarding",
        local=local,
        optimizer={},
    )
    SiteStore(work.out / "sites" / work.site.name / "state").commit(state)


def _finish(work: _Work, scores: Mapping[str, list[CaseScores]], used: str) -> None:
    ways = {"shared": NOTHING} | ({"personal": used} if used != NOTHING else {})
    models = {m: {work.site.name: summarize_site(scores[way])} for m, way in ways.items() if way in scores}
    nothing_sent = Communication(up_bytes_per_site_round=0, down_bytes_per_site_round=0, by_component={})
    seconds = {"total": round(time.monotonic() - work.started, 1)}
    sizes = part_sizes({work.site.name: work.site})
    steps = 0 if used == NOTHING else work.steps
    write_end(work.out, work.options, models, sizes, nothing_sent, seconds, rounds=work.rounds, steps=steps)


def _measures(site: SiteSummary) -> dict[str, float | None]:
    return {"dice": site.mean.dice, "iou": site.mean.iou, "hd95": site.mean.hd95, "assd": site.mean.assd}
