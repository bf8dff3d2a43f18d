"""Rows 6, 7 and 21 of docs/reliability.md: a coordinator and a site in processes of their own are killed; pipes replace the network.

The same with NVFlare is in `tests/system`. The processes are forked, so that a restart costs no import and a kill can come at any
moment of the work itself.
"""

import itertools
import multiprocessing
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from event_log import records_without_times

from pfedsam.core import tensors
from pfedsam.core.tensors import digest
from pfedsam.engine import site_session
from pfedsam.engine.round_policy import RoundPolicy
from pfedsam.engine.rounds import StudyRun
from pfedsam.engine.run import run
from pfedsam.engine.server_files import SERVER
from pfedsam.engine.site_agent import SiteAgent, SiteFolder
from pfedsam.engine.study_folder import create_study
from pfedsam.engine.transport import Answers
from pfedsam.experiment.options import RunOptions
from pfedsam.federation.manifest import read_manifest
from pfedsam.federation.messages import reply_to_wire, request_from_wire
from pfedsam.federation.site_policy import Gate
from pfedsam.federation.site_store import SiteState, SiteStore
from pfedsam.report.records import read_records

pytestmark = pytest.mark.system
FORKED = multiprocessing.get_context("fork")


def state_of(folder: Path) -> SiteState:
    state = SiteStore(next((folder / "studies").iterdir()) / "state").load()
    assert state is not None
    return state


def quick(options: RunOptions, rounds: int) -> RunOptions:
    """Options with this number of rounds, each with a phase of the local part alone, whose optimiser counts all steps of the site."""
    training = {"rounds": rounds, "shared_warmup_rounds": 0, "phases": "decoupled"}
    return options.model_copy(update={"training": options.training.model_copy(update=training)})


class FromTheCoordinator:
    """The coordinator's transport in its own process: its requests go through a pipe to the sites."""

    def __init__(self, pipe: Connection, names: Sequence[str]) -> None:
        self.pipe, self.names = pipe, list(names)

    def connected(self) -> list[str]:
        return self.names

    def needs_new_job(self) -> bool:
        return False

    def ask(self, request: Mapping[str, bytes], task: str, sites: Sequence[str], deadline_s: int) -> Answers:
        self.pipe.send((dict(request), task, list(sites), deadline_s))
        return self.pipe.recv()  # type: ignore[no-any-return]


def coordinate(study: Path, pipe: Connection, names: Sequence[str]) -> None:
    StudyRun(study, FromTheCoordinator(pipe, names)).run()


def until_it_ends(study: Path, sites: Any, kill_after_s: float | None) -> int:
    """Run a coordinator's process, answering for the sites, until it ends or is killed; its exit code."""
    ours, theirs = FORKED.Pipe()
    process = FORKED.Process(target=coordinate, args=(study, theirs, sites.connected()))
    process.start()
    theirs.close()
    timer = threading.Timer(kill_after_s or 0, process.kill)
    if kill_after_s is not None:
        timer.start()
    try:
        while True:
            ours.send(sites.ask(*ours.recv()))
    except (EOFError, OSError):
        process.join()
    timer.cancel()
    return int(process.exitcode or 0)


def test_a_coordinator_killed_at_20_random_instants_loses_at_most_a_round_and_no_bit(
    tmp_path: Path, toy_options: RunOptions, make_sites: Callable[..., Any], result: Callable[..., None]
) -> None:
    """Row 6, but for the time that NVFlare's processes take to come back."""
    options, chance, kills = quick(toy_options, 6), random.Random(11), 0
    started = time.monotonic()
    run(options, tmp_path / "here")
    round_s = (time.monotonic() - started) / options.training.rounds
    while kills < 20:
        study = create_study(options, tmp_path / "studies", RoundPolicy())
        sites = make_sites(options, read_manifest(study / "manifest.json"))
        while (code := until_it_ends(study, sites, chance.uniform(0, 2 * round_s) if kills < 20 else None)) != 0:
            assert code == -signal.SIGKILL
            kills += 1
        trained = [round_ for task, round_, _ in sites.asked if task == "train"]
        assert {after - before for before, after in itertools.pairwise(trained)} <= {0, 1}
        for name in options.data.sites:
            here, there = SiteStore(tmp_path / "here" / "sites" / name / "state").load(), state_of(sites.folders[name])
            assert (digest(here.local), digest(here.optimizer)) == (digest(there.local), digest(there.optimizer))
        one, other = tensors.load(study / SERVER)[0], tensors.load(tmp_path / "here" / SERVER)[0]
        assert digest(one) == digest(other)
        records = [records_without_times(f) for f in (study, tmp_path / "here")]
        assert records[0] == records[1]
        shutil.rmtree(study)
        shutil.rmtree(tmp_path / "hospitals")
    result(6, coordinator_kills=kills)


def end_now() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def before(owner: object, name: str) -> None:
    """This process ends as a function is called."""
    setattr(owner, name, lambda *args, **keywords: end_now())


def after(owner: object, name: str) -> None:
    """This process ends as a function returns."""
    real = getattr(owner, name)
    setattr(owner, name, lambda *args, **keywords: (real(*args, **keywords), end_now()))


DEATHS: dict[str, Callable[[], None]] = {
    "as it got the request": lambda: before(SiteAgent, "handle"),
    "before it trains": lambda: before(site_session, "client_round"),
    "having trained": lambda: after(site_session, "client_round"),
    "before it saves": lambda: before(SiteStore, "commit"),
    "as it saves, before a byte": lambda: before(os, "fchmod"),
    "as it saves, unsynced": lambda: before(os, "fsync"),
    "as it saves, before the rename": lambda: before(os, "replace"),
    "having renamed": lambda: after(os, "replace"),
    "having saved": lambda: after(SiteStore, "commit"),
    "having written the ledger, before it replies": lambda: after(Gate, "release"),
}


def be_a_site(folder: Path, name: str, pipe: Connection) -> None:
    """A site's process; with a request comes how it is to die of it, if at all."""
    agent, gate = SiteAgent(SiteFolder(folder)), Gate(folder, name)
    while True:
        request, death = pipe.recv()
        if death:
            agent.host.policy.accept_broadcast = lambda manifest, request, initial: tensors.from_bytes(  # type: ignore[method-assign]
                request.shared, max_bytes=10**8
            )[0]
            DEATHS[death]()
        pipe.send(gate.release(reply_to_wire(agent.handle(request_from_wire(request)))))


class OneInAProcess:
    """Sites of which one is a process of its own that comes, goes, and dies."""

    def __init__(self, sites: Any, victim: str) -> None:
        self.sites, self.victim = sites, victim
        self.death: Callable[[int], str | None] = lambda round_: None
        self.here: Callable[[int], bool] = lambda round_: True
        self.round = 0
        self._process: Any = None

    def connected(self) -> list[str]:
        return [site for site in self.sites.folders if site != self.victim or self.here(self.round)]

    def needs_new_job(self) -> bool:
        return False

    def ask(self, request: Mapping[str, bytes], task: str, sites: Sequence[str], deadline_s: int) -> Answers:
        round_ = request_from_wire(request).round
        self.round = round_ + 1 if task == "train" else self.round
        answers = self.sites.ask(request, task, [site for site in sites if site != self.victim], deadline_s)
        if self.victim not in sites:
            return answers
        if not self.here(round_):
            self.end()
            return Answers(answers.wires, {self.victim: "its process ended"})
        try:
            return Answers({**answers.wires, self.victim: self._tell(request, task, round_)})
        except (EOFError, OSError):
            self.end()
            return Answers(answers.wires, {self.victim: "its process ended"})

    def _tell(self, request: Mapping[str, bytes], task: str, round_: int) -> dict[str, bytes]:
        if self._process is None:
            self.pipe, theirs = FORKED.Pipe()
            args = (self.sites.folders[self.victim], self.victim, theirs)
            self._process = FORKED.Process(target=be_a_site, args=args)
            self._process.start()
            theirs.close()
        self.pipe.send((dict(request), self.death(round_) if task == "train" else None))
        return self.pipe.recv()  # type: ignore[no-any-return]

    def end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self.pipe.close()
        self._process = None


def test_a_site_that_dies_ten_deaths_comes_back_each_time_with_the_experts_it_last_committed(
    tmp_path: Path, toy_options: RunOptions, make_sites: Callable[..., Any], result: Callable[..., None]
) -> None:
    """Row 7: it dies in every odd round; the round goes on at the quorum; in the next one it trains on from where it stood."""
    options = quick(toy_options, 2 * len(DEATHS) + 1)
    study = create_study(options, tmp_path / "studies", RoundPolicy(quorum=2))
    sites = make_sites(options, read_manifest(study / "manifest.json"))
    victim = list(options.data.sites)[1]
    transport, steps, deaths = OneInAProcess(sites, victim), options.training.steps_per_round, list(DEATHS)
    transport.death = lambda round_: deaths[round_ // 2] if round_ % 2 else None
    stands: dict[int, SiteState] = {}
    ask = transport.ask

    def watched(request: Mapping[str, bytes], task: str, names: Sequence[str], deadline_s: int) -> Answers:
        answers = ask(request, task, names, deadline_s)
        if task == "train":
            stands[request_from_wire(request).round] = state_of(sites.folders[victim])
        return answers

    transport.ask = watched  # type: ignore[method-assign]
    try:
        assert StudyRun(study, transport).run() == "finished"
    finally:
        transport.end()
    counted = {round_: _steps(state) for round_, state in stands.items()}
    for number, death in enumerate(deaths):
        round_ = 2 * number + 1
        saved = (
            death in deaths[7:]
        )  # those that come after the rename: the whole new state is there, else the whole old one
        assert counted[round_] == counted[round_ - 1] + saved * (counted[0]), death
        if not saved:
            assert digest(stands[round_].local) == digest(stands[round_ - 1].local), death
        assert counted[round_ + 1] == counted[round_] + counted[0], death
        assert stands[round_ + 1].round == round_ + 2
    assert counted[0] <= steps
    accepted = [row["accepted"] for row in read_records(study / "records.jsonl") if row["kind"] == "aggregate"]
    assert [victim in names for names in accepted] == [round_ % 2 == 0 for round_ in range(options.training.rounds)]
    assert all(len(names) >= 2 for names in accepted)
    result(7, site_kills=len(deaths))


def _steps(state: SiteState) -> float:
    """How many steps the experts' optimiser has done in the site's life."""
    return max(
        value.item() for name, value in state.optimizer.items() if name.startswith("local:") and name.endswith("step")
    )


def test_a_site_joins_at_3_leaves_at_5_and_returns_at_7_with_its_own_experts(
    tmp_path: Path, toy_options: RunOptions, make_sites: Callable[..., Any], result: Callable[..., None]
) -> None:
    """Row 21, but for the sum of the weights, which `tests/engine/test_rounds.py` counts."""
    options = quick(toy_options, 9)
    # No site goes back to an earlier model: its optimiser would start anew in the last phase, and no longer count.
    options = options.model_copy(update={"evaluation": options.evaluation.model_copy(update={"max_drop": None})})
    study = create_study(options, tmp_path / "studies", RoundPolicy(quorum=2))
    sites = make_sites(options, read_manifest(study / "manifest.json"))
    late = list(options.data.sites)[2]
    transport = OneInAProcess(sites, late)
    transport.here = lambda round_: 3 <= round_ < 5 or round_ >= 7
    try:
        assert StudyRun(study, transport).run() == "finished"
    finally:
        transport.end()
    rows = read_records(study / "records.jsonl")
    accepted = {row["round"]: late in row["accepted"] for row in rows if row["kind"] == "aggregate"}
    assert accepted == {round_: transport.here(round_) for round_ in range(9)}
    away = {row["round"] for row in rows if row["kind"] == "absent" and row["task"] == "train" and late in row["sites"]}
    assert away == {5, 6}
    final = options.training.final_steps
    once = _steps(state_of(sites.folders[next(iter(options.data.sites))])) - final
    assert (
        _steps(state_of(sites.folders[late])) - final == once * 4 / 9
    )  # it has trained in four rounds of nine, on from where it was
    result(21)
