"""The processes that train sites side by side: each holds one model and the sites that are given to it, on one thread.

A site always goes to the same process, so its images are read once. Which process it is changes no result.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import torch

from pfedsam.core import tensors
from pfedsam.data.manifest import Site
from pfedsam.engine.model_selection import SiteModels, Validation, models_of, site_models
from pfedsam.engine.site_session import RoundReport, SiteScorer, SiteSession
from pfedsam.evaluation.scores import CaseScores
from pfedsam.experiment.build import POOLED, BuiltModel, build_cache, build_method, build_model, training_cases
from pfedsam.experiment.options import RunOptions
from pfedsam.model.numerics import configure_numerics

T = TypeVar("T")
_MAX_SHARED_BYTES = 4 * 2**30


@dataclass
class SiteWorker:
    """All that one process needs to work for any site of the run."""

    options: RunOptions
    study: str
    sites: dict[str, Site]
    folder: Path
    built: BuiltModel
    _sessions: dict[str, SiteSession] = field(default_factory=dict)

    def train(self, name: str, round_: int, shared: bytes) -> tuple[bytes, RoundReport]:
        """A client round: the encoded update (empty when nothing is shared), and the site's report."""
        return self._session(name).train(round_, _decode(shared))

    def finalize(self, name: str, round_: int, shared: bytes) -> RoundReport:
        """The phases after the last aggregation."""
        return self._session(name).finalize(round_, _decode(shared))

    def validate(self, site: str, round_: int, shared: bytes) -> Validation:
        """The validation after a round at a site."""
        scorer = self._scorer(site)
        models = models_of(self.options, self.built)
        return scorer.validate(self.sites[site].of("val"), models, self._models(site), round_, _decode(shared))

    def test(self, site: str, shared: bytes) -> dict[str, list[CaseScores]]:
        """Test scores at a site of each model; files go into the site's folder."""
        scorer = self._scorer(site)
        folder = self.folder / "sites" / site
        models = models_of(self.options, self.built)
        return scorer.test(self.sites[site].of("test"), models, self._models(site).in_use(_decode(shared)), folder)

    def _scorer(self, site: str) -> SiteScorer:
        trained_by = POOLED if build_method(self.options).pooled else site
        return SiteScorer(
            self.options, site, self.built, build_cache(self.options, self.built, self._cache(trained_by))
        )

    def _cache(self, site: str) -> Path:
        return (self.options.runtime.cache_folder or self.folder / "cache") / site

    def _models(self, site: str) -> SiteModels:
        return site_models(self.options, self.built, self.folder, site)

    def _session(self, name: str) -> SiteSession:
        if name not in self._sessions:
            pooled = build_method(self.options).pooled
            cases = training_cases(self.options, self.sites).get(name) or self.sites[name].of("train")
            # After pooled rounds a site goes on from the pooled model.
            start = self._models(name).initial if pooled and name != POOLED else None
            folder, cache = self.folder / "sites" / name, self._cache(name)
            self._sessions[name] = SiteSession(self.options, self.study, name, cases, self.built, folder, cache, start)
        return self._sessions[name]


def _decode(shared: bytes) -> dict[str, torch.Tensor]:
    return tensors.from_bytes(shared, max_bytes=_MAX_SHARED_BYTES)[0] if shared else {}


class Workers:
    """Runs a `SiteWorker`'s methods in this process, or in several others."""

    def __init__(self, make: "MakeWorker", order: list[str], count: int) -> None:
        self._place = {name: i % count for i, name in enumerate(order)}
        self._pools: list[ProcessPoolExecutor] = []
        self._own = None
        if count == 1:
            self._own = make()
        else:
            # Spawned, not forked: a fork of a process that has used threads may hang.
            self._pools = [
                ProcessPoolExecutor(1, get_context("spawn"), initializer=_start, initargs=(make, os.getpid()))
                for _ in range(count)
            ]

    def submit(self, site: str, method: str, *args: Any) -> "Future[Any]":  # noqa: ANN401 - of the method
        """`SiteWorker.<method>(site, *args)` in the site's process."""
        if self._own is None:
            with _interrupts_held():
                return self._pools[self._place.get(site, 0)].submit(_call, method, site, *args)
        future: Future[Any] = Future()
        future.set_result(getattr(self._own, method)(site, *args))
        return future

    def close(self) -> None:
        """End the processes at once; what they have not committed is done again by a resumed run."""
        for pool in self._pools:
            processes = list((pool._processes or {}).values())
            pool.shutdown(wait=False, cancel_futures=True)
            for process in processes:
                process.terminate()
            for process in processes:
                process.join(10)


_WORKER: SiteWorker | None = None


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """A process started meanwhile never sees Ctrl-C, not even while it imports: this one decides when to stop, and sees it afterwards."""
    if sys.platform == "win32":  # it cannot hold signals back
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start(make: "MakeWorker", parent: int) -> None:
    global _WORKER
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    _WORKER = make()


def _end_with(parent: int) -> None:
    """End this process when its parent is gone, however that ended."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _call(method: str, site: str, *args: Any) -> Any:  # noqa: ANN401 - of the method
    return getattr(_WORKER, method)(site, *args)


@dataclass(frozen=True)
class MakeWorker:
    """Builds the worker of a process; can be sent to it."""

    options: RunOptions
    study: str
    sites: dict[str, Site]
    folder: Path

    def __call__(self) -> SiteWorker:
        """The worker, its model built in the process that calls this, which computes as the options say from now on."""
        runtime = self.options.runtime
        device = configure_numerics(runtime.threads, runtime.device)
        return SiteWorker(self.options, self.study, self.sites, self.folder, build_model(self.options, device))
