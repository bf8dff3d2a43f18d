"""The local transport: all sites of a study on this machine, in this process or in worker processes.

Each site is run by the agent that a hospital runs (`engine.site_agent`), with the same messages. Three things differ, because all sites
belong to one user here and nothing leaves the machine: no operator approves the study, no ledger is written, and an error at a site ends
the run with its full message, whereas a coordinator would continue with the other sites.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from pfedsam.core.tensors import NamedTensors
from pfedsam.data.manifest import Site
from pfedsam.engine.model_selection import start_of
from pfedsam.engine.progress import Event, Progress
from pfedsam.engine.site_agent import SiteAgent
from pfedsam.engine.site_study import SiteStudy
from pfedsam.engine.transport import Answers
from pfedsam.engine.workers import Workers, busy_processes
from pfedsam.experiment.build import BuiltModel, build_model
from pfedsam.experiment.options import RunOptions
from pfedsam.federation.manifest import StudyManifest
from pfedsam.federation.messages import Reply, Request, reply_to_wire, request_from_wire
from pfedsam.federation.site_policy import RefusedError, read_broadcast
from pfedsam.federation.tasks import Task
from pfedsam.model.numerics import COMPUTING, configure_numerics, find_device


@dataclass(frozen=True)
class OneStudy:
    """Admits every request of the one study that the run trains."""

    manifest: StudyManifest

    def admit(self, request: Request) -> StudyManifest:
        """The manifest of the study.

        Raises:
            RefusedError: the request belongs to another study.
        """
        if request.digest != self.manifest.digest:
            raise RefusedError("other-configuration", "the request belongs to another study than this run.")
        return self.manifest

    def accept_broadcast(self, manifest: StudyManifest, request: Request, initial: NamedTensors) -> dict[str, Tensor]:
        """The shared parameters of a request, in the agreed shapes.

        Raises:
            RefusedError: they do not have the agreed form.
        """
        return read_broadcast(manifest, request)

    def reply_before(self, request: Request) -> Reply | None:
        """None, because in a local run a repeated request is computed again from the same state."""
        return None

    def keep_reply(self, request: Request, reply: Reply) -> None:
        """Does nothing; see `reply_before`."""

    def rounds(self, study: str) -> int | None:
        """The number of rounds of the study."""
        return self.manifest.rounds


@dataclass(frozen=True)
class LocalHost:
    """The host of one site's agent in a local run: its policy and its folder."""

    options: RunOptions
    policy: OneStudy
    site: Site
    run: Path
    """The run's folder."""
    built: BuiltModel

    def open(self, manifest: StudyManifest) -> SiteStudy:
        """The study at this site."""
        name = self.site.name
        cache = (self.options.runtime.cache_folder or self.run / "cache") / name
        return SiteStudy(
            manifest,
            self.options,
            self.built,
            self.site,
            self.run / "sites" / name,
            cache,
            lambda: start_of(self.options, self.built, self.run / "sites", name),
        )


@dataclass
class LocalSites:
    """The sites that are trained in one process; they share the model that the process has in memory."""

    study: "LocalStudy"
    built: BuiltModel
    _agents: dict[str, SiteAgent] = field(default_factory=dict)

    def __call__(self, name: str, request: Mapping[str, bytes]) -> dict[str, bytes]:
        """The reply of a site to a request; a failure is raised with its full message."""
        if name not in self._agents:
            study = self.study
            host = LocalHost(study.options, OneStudy(study.manifest), study.sites[name], study.folder, self.built)
            self._agents[name] = SiteAgent(host)
        runtime = self.study.options.runtime
        with COMPUTING:
            configure_numerics(runtime.threads, runtime.device)  # another run in this process may have other settings
            return reply_to_wire(self._agents[name].answer(request_from_wire(request)))


@dataclass(frozen=True)
class LocalStudy:
    """Everything that a process needs to train any site of a run; it can be pickled."""

    options: RunOptions
    manifest: StudyManifest
    sites: Mapping[str, Site]
    """All sites, including the pooled site if the method has one."""
    folder: Path

    def __call__(self) -> LocalSites:
        """Build the model in the calling process, and set the number of threads and the device of that process by the options."""
        runtime = self.options.runtime
        device = configure_numerics(runtime.threads, runtime.device)
        return LocalSites(self, build_model(self.options, device))


def worker_count(options: RunOptions) -> int:
    """The number of processes in which the sites of a local run are trained; with 1 they are trained in the calling process."""
    runtime, sites = options.runtime, len(options.data.sites)
    if runtime.workers != "auto":
        return min(runtime.workers, sites)
    if find_device(runtime.device).type != "cpu":
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return busy_processes(sites, max(1, cores // runtime.threads))


class LocalTransport:
    """Sends requests to the sites of a local run, and reports the progress site by site."""

    def __init__(self, study: LocalStudy, built: BuiltModel, tell: Progress) -> None:
        """Prepare the worker processes.

        Args:
            study: the run.
            built: the model of the run, which is trained if all sites are in this process; worker processes build their own models.
            tell: called after the reply of each site.
        """
        self._study, self._tell = study, tell
        count = worker_count(study.options)
        make = study if count > 1 else lambda: LocalSites(study, built)
        self._workers = Workers(make, list(study.options.data.sites), count)

    def connected(self) -> list[str]:
        """All sites."""
        return list(self._study.sites)

    def ask(self, request: Mapping[str, bytes], task: Task, sites: Sequence[str], deadline_s: int) -> Answers:
        """As `transport.Transport.ask`, but without a deadline; an error at a site is raised unchanged.

        Raises:
            DataError: a case cannot be read; the message names the site and the case.
            RefusedError: a site refused a request.
            StoreError: a site's state cannot be read or written.
        """
        asked, wires = request_from_wire({**request, "shared": b""}), {}
        for done, (site, wire) in enumerate(self._workers.each(sites, dict(request)), start=1):
            wires[site] = wire
            self._report(asked, site, done, len(sites))
        return Answers(wires)

    def needs_new_job(self) -> bool:
        """False, because in a local run all sites take part from the start."""
        return False

    def close(self) -> None:
        """End the worker processes."""
        self._workers.close()

    def _report(self, asked: Request, site: str, done: int, sites: int) -> None:
        if asked.task == "train":
            rounds, number = asked.ends or self._study.manifest.rounds, asked.round
            words = f"round {number + 1} of {'' if asked.ends else self._at_most}{rounds}, {site}"
            images = self._study.options.training.images_per_round
            drawn = ((number + 1) * images, rounds * images)
            self._tell(Event("train", number * sites + done, rounds * sites, words, drawn))
        elif asked.task in ("summarize", "finalize", "test"):
            self._tell(Event(asked.task, done, sites, site))

    @property
    def _at_most(self) -> str:
        return "at most " if self._study.options.training.patience else ""
