"""The embedded runtime: the whole federation on one machine, deterministic, resumable after a kill at any moment.

Order of writing in a round: every site commits its own state; the server averages; records are written; then the server's state
is renamed into place, and with that the round is done. A resumed run starts at the server's round, sites go back to it, and
records after it are dropped, so that what is repeated is repeated from the same place.
"""

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pfedsam.core import atomic
from pfedsam.core.errors import RunError
from pfedsam.core.lock import LOCK, exclusive
from pfedsam.core.log import get_logger
from pfedsam.data.check import refuse_problems
from pfedsam.data.intensity import RANGE, IntensityRange, training_range, write_range
from pfedsam.data.manifest import Site
from pfedsam.data.split import read_split, write_split
from pfedsam.engine.export import export_adapter
from pfedsam.engine.run_end import part_sizes, summarize_models, write_end
from pfedsam.engine.server_files import (
    SERVER,
    load_state,
    record_aggregate,
    record_report,
    record_validation,
    save_state,
)
from pfedsam.engine.worker import MakeWorker, Workers
from pfedsam.evaluation.scores import CaseScores
from pfedsam.experiment.build import (
    BuiltModel,
    build_codec,
    build_method,
    build_model,
    build_sites,
    build_study,
    read_sites,
    training_cases,
)
from pfedsam.experiment.load import dump_options, load_options
from pfedsam.experiment.options import RunOptions
from pfedsam.federation.aggregation import open_messages
from pfedsam.federation.manifest import differences
from pfedsam.federation.server import ServerState, aggregate
from pfedsam.federation.update import UpdateSpec
from pfedsam.model.numerics import describe, find_device
from pfedsam.report.records import RecordWriter, read_records
from pfedsam.report.summary_file import Communication, Summary

_LOG = get_logger(__name__)


@dataclass(frozen=True)
class Event:
    """Progress: `done` of `total` steps of a stage (check, prepare, train, align, test), and what is at work."""

    stage: str
    done: int
    total: int
    detail: str


Progress = Callable[[Event], None]


def run(options: RunOptions, folder: Path, *, resume: bool = False, progress: Progress | None = None) -> Summary:
    """Train and evaluate a federation; everything it leaves is in `folder`.

    Args:
        options: of the run.
        folder: new or empty, or that of an interrupted run with `resume`.
        resume: go on with the run in `folder`.
        progress: called after each step.

    Raises:
        DataError: a site's data is wrong; every problem is named, and nothing was written.
        OptionError: there is no such device.
        RunError: the folder holds another run, or another process works in it.
    """
    tell = progress or (lambda _: None)
    device = find_device(options.runtime.device)
    _check_folder(options, folder, resume)
    tell(Event("prepare", 0, 2, "checking the sites' data"))
    sites, ranges = _sites(options, folder, tell)
    tell(Event("prepare", 1, 2, f"loading the backbone; sites compute on {describe(device)}"))
    built = build_model(options)
    with exclusive(folder):
        _check_folder(options, folder, resume)  # again: another process may have begun meanwhile
        _begin(options, folder, sites, ranges)
        tell(Event("prepare", 2, 2, "ready"))
        return _Run(options, folder, sites, built, tell).finish()


def study_id(options: RunOptions, backbone: str) -> str:
    """What identifies a study: its configuration, less what changes no result, and its backbone."""
    content = options.model_dump(mode="json", exclude={"runtime", "name"})
    return hashlib.sha256(json.dumps([content, backbone], sort_keys=True).encode()).hexdigest()[:16]


def is_finished(options: RunOptions, folder: Path) -> bool:
    """Whether `folder` holds the end of this very run.

    Raises:
        RunError: it holds another run, or something else.
    """
    _check_folder(options, folder, True)
    return (folder / "summary.json").exists()


def _check_folder(options: RunOptions, folder: Path, resume: bool) -> None:
    config = folder / "config.yaml"
    if not config.exists():
        if folder.exists() and not folder.is_dir():
            raise RunError(f"{folder.name!r} is a file, where a folder has to be. Give a new or an empty folder.")
        if folder.exists() and not _is_unstarted(folder):
            raise RunError(f"The folder {folder.name!r} is not empty and holds no run. Give a new or an empty folder.")
        return
    if not resume:
        raise RunError(
            f"The folder {folder.name!r} holds a run already. Go on with it by --resume, or give another folder."
        )
    before = load_options(config).model_dump(mode="json", exclude={"runtime", "name"})
    now = options.model_dump(mode="json", exclude={"runtime", "name"})
    changed = differences(before, now)
    if changed:
        raise RunError(
            f"The run in {folder.name!r} has another configuration; different: {', '.join(changed[:8])}. "
            "Resume with the configuration it was started with, or give another folder."
        )


def _is_unstarted(folder: Path) -> bool:
    """Whether there is nothing but what a run leaves that was killed before it had its configuration: splits, nothing trained."""
    left = (path for path in folder.rglob("*") if not path.is_dir())
    return all(path.name in ("split.json", RANGE, LOCK) or path.suffix == ".tmp" for path in left)


def _sites(options: RunOptions, folder: Path, tell: Progress) -> tuple[dict[str, Site], dict[str, IntensityRange]]:
    """The checked sites, and the intensities of their training images where the run begins; a resumed run keeps its split and cases.

    Raises:
        DataError: naming every problem, or what changed since the run began.
    """
    if (folder / "config.yaml").exists():
        now = read_sites(options, masks_required=False)
        return {name: read_split(folder / "sites" / name / "split.json", site) for name, site in now.items()}, {}
    sites = build_sites(options)
    report = refuse_problems(
        list(sites.values()),
        build_study(options),
        tell=lambda done, total, site: tell(Event("check", done, total, site)),
    )
    for warning in report.warnings:
        _LOG.warning("%s", warning)
    return sites, {facts.name: found for facts in report.facts if (found := training_range(facts)) is not None}


def _begin(options: RunOptions, folder: Path, sites: Mapping[str, Site], ranges: Mapping[str, IntensityRange]) -> None:
    if (folder / "config.yaml").exists():
        return
    for name, site in sites.items():
        (folder / "sites" / name).mkdir(parents=True, exist_ok=True, mode=0o700)
        write_split(folder / "sites" / name / "split.json", site, digests=True)
        if name in ranges:
            write_range(folder / "sites" / name, ranges[name])
    # Last: a folder with a configuration is one that can be resumed.
    atomic.write_text(folder / "config.yaml", dump_options(options))


class _Run:
    """A run in its folder, from its last finished round to its report."""

    def __init__(
        self, options: RunOptions, folder: Path, sites: dict[str, Site], built: BuiltModel, tell: Progress
    ) -> None:
        self.options, self.folder, self.sites, self.built, self.tell = options, folder, sites, built, tell
        self.trainers = {name: len(cases) for name, cases in training_cases(options, sites).items()}
        self.study = study_id(options, built.backbone)
        self.state = self._load_state()
        self.seconds: dict[str, float] = {}

    def _load_state(self) -> ServerState:
        if not (self.folder / SERVER).exists():
            return ServerState(0, self.built.start("shared"))
        return load_state(self.folder, self.study)

    def finish(self) -> Summary:
        """Train the rounds that are left, finalize, test, and write summary and report."""
        started, resumed = time.monotonic(), self.state.round > 0
        make = MakeWorker(self.options, self.study, self.sites, self.folder)
        workers = Workers(make, list(self.sites), min(self.options.runtime.workers, len(self.sites)))
        try:
            with RecordWriter(self.folder / "records.jsonl") as records:
                records.truncate_after(self.state.round - 1)
                self._rounds(workers, records)
                trained = round(time.monotonic() - started, 1)
                self._finalize(workers, records)
                scores = self._test(workers)
                total = round(time.monotonic() - started, 1)
                self.seconds = {"since resumed": total} if resumed else {"train": trained, "total": total}
                records.write({"kind": "timing", **self.seconds})
        finally:
            workers.close()
        export_adapter((self.folder / SERVER).parent, self.options, self.built, self.state.shared)
        models, sizes = summarize_models(scores), part_sizes(self.sites)
        return write_end(self.folder, self.options, models, sizes, self._communication(), self.seconds)

    def _rounds(self, workers: Workers, records: RecordWriter) -> None:
        rounds = self.options.training.rounds
        done, total = self.state.round * len(self.trainers), rounds * len(self.trainers)
        self.tell(Event("train", done, total, f"round {self.state.round + 1} of {rounds}"))
        while self.state.round < rounds:
            current = self.state.round
            shared = self.state.to_bytes()
            futures = {name: workers.submit(name, "train", current, shared) for name in self.trainers}
            messages = {}
            for name, future in futures.items():
                messages[name], report = future.result()
                record_report(records, current, name, report)
                done += 1
                self.tell(Event("train", done, total, f"round {current + 1} of {rounds}, {name}"))
            self.state = self._aggregate(messages, records)
            every = self.options.evaluation.validate_every
            if every and ((current + 1) % every == 0 or current + 1 == rounds):
                self._validate(workers, records, current)
            save_state(self.folder, self.study, self.state)

    def _aggregate(self, messages: Mapping[str, bytes], records: RecordWriter) -> ServerState:
        current = self.state
        if not self.built.partition.shared:
            return ServerState(current.round + 1, current.shared)
        spec = UpdateSpec.of(current.shared, build_codec(self.options))
        updates, unread = open_messages(messages, spec, current.shared)
        state, result = aggregate(current, updates, spec, self.trainers)
        record_aggregate(records, current.round, result.accepted, {**unread, **result.rejected}, messages)
        return state

    def _validate(self, workers: Workers, records: RecordWriter, round_: int) -> None:
        shared = self.state.to_bytes()
        futures = {site: workers.submit(site, "validate", round_, shared) for site in self.sites}
        for site, future in futures.items():
            record_validation(records, round_, site, future.result())

    def _finalize(self, workers: Workers, records: RecordWriter) -> None:
        method = build_method(self.options)
        if not method.final(self.options.training):
            return
        rounds, shared = self.options.training.rounds, self.state.to_bytes()
        names = self.sites if method.own_end else self.trainers
        futures = {name: workers.submit(name, "finalize", rounds, shared) for name in names}
        for done, (name, future) in enumerate(futures.items(), start=1):
            record_report(records, rounds, name, future.result())
            self.tell(Event("finalize", done, len(futures), name))
        if self.options.evaluation.validate_every:
            self._validate(
                workers, records, rounds
            )  # what is chosen on validation is the model that the site ends with

    def _test(self, workers: Workers) -> dict[str, dict[str, list[CaseScores]]]:
        shared = self.state.to_bytes()
        futures = {site: workers.submit(site, "test", shared) for site in self.sites}
        scores = {}
        for done, (site, future) in enumerate(futures.items(), start=1):
            scores[site] = future.result()
            self.tell(Event("test", done, len(futures), site))
        return scores

    def _communication(self) -> Communication:
        """Bytes of the last round's messages, measured, and of an update's values by component."""
        shared = self.state.shared
        sizes = UpdateSpec.of(shared, build_codec(self.options)).sizes if shared else {}
        by_component = {
            component: sum(sizes[name] for name in names)
            for component, names in self.built.partition.components.items()
            if set(names) <= set(self.built.partition.shared)
        }
        sent = [r["up_bytes"] for r in read_records(self.folder / "records.jsonl") if r["kind"] == "aggregate"]
        return Communication(
            up_bytes_per_site_round=max(sent[-1].values()) if sent else 0,
            down_bytes_per_site_round=len(self.state.to_bytes()),
            by_component=by_component,
        )
