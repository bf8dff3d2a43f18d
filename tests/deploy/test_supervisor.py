"""The decisions of the supervisor, with a script in place of the server: what it submits, when it restarts, and when it gives up."""

import json
import os
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import grpc
import pytest

from pfedsam.core.errors import QuorumError, RunError
from pfedsam.deploy import processes, supervisor
from pfedsam.deploy.controller import JOB_SITES
from pfedsam.deploy.supervisor import Supervisor, _raise_as_ended
from pfedsam.engine.round_policy import RoundPolicy
from pfedsam.engine.study_folder import AGAIN, STOP, StudyFolder, write_revoked


class Session:
    """NVFlare's control connection, as far as it is used."""

    def __init__(self) -> None:
        self.connected, self.jobs, self.statuses, self.idle = ["north", "south"], [], {}, []
        self.disabled: list[str] = []
        self.may_wait: list[bool] = []
        """Of each job: whether its study may wait for sites that have not joined."""

    def disable_client(self, name: str) -> dict:
        self.disabled.append(name)
        return {}

    def enable_client(self, name: str) -> dict:
        self.disabled.remove(name)
        return {}

    def get_system_info(self):
        return SimpleNamespace(client_info=[SimpleNamespace(name=name) for name in self.connected])

    def submit_job(self, folder: str) -> str:
        config = json.loads((Path(folder) / "app" / "config" / "config_fed_server.json").read_text())
        args = config["workflows"][0]["args"]
        self.jobs.append(args["study"])
        self.may_wait.append(args["may_wait"])
        return f"job{len(self.jobs)}"

    def get_job_meta(self, job_id: str):
        return {"status": self.statuses.get(job_id, "RUNNING")}

    def get_client_job_status(self):
        return [{"client_name": n, "status": "no_jobs" if n in self.idle else "started"} for n in self.connected]


@pytest.fixture
def session() -> Session:
    return Session()


@pytest.fixture
def boss(tmp_path: Path, session: Session, monkeypatch: pytest.MonkeyPatch) -> Supervisor:
    monkeypatch.setattr(supervisor, "write_server_policy", lambda folder, limit: None)
    monkeypatch.setattr(supervisor, "known_as", lambda folder: ("test", "localhost", 58142))
    monkeypatch.setattr(supervisor, "_SETTLE_S", 0.0)
    boss = Supervisor(tmp_path)
    (tmp_path / "server").mkdir()
    boss.session = session
    boss.stop = SimpleNamespace(is_set=False, install=lambda: None, close=lambda: None)
    boss.engine = SimpleNamespace(alive=True, keep_alive=lambda: True, end=lambda: None, start=lambda: None)
    return boss


def study(boss: Supervisor, name: str = "a" * 16, *, join_s: int = 1000, state: str = "submitted") -> StudyFolder:
    folder = StudyFolder(boss.folder / "studies" / name)
    folder.path.mkdir(parents=True)
    (folder.path / "policy.json").write_text(RoundPolicy(quorum=2, join_s=join_s).model_dump_json())
    (folder.path / "config.yaml").write_text("data:\n  sites: {north: a, south: b}\n  classes: {n: [1]}\n")
    (folder.path / "manifest.json").touch()
    folder.write_status(state, round_=0, rounds=5, sites=[])
    return folder


def test_a_study_that_has_begun_waits_for_a_missing_site_no_longer_than_a_round(
    boss: Supervisor, session: Session
) -> None:
    one = study(boss, join_s=1000)
    policy = RoundPolicy(quorum=1, join_s=1000, deadline_s=5)
    (one.path / "policy.json").write_text(policy.model_dump_json())
    session.connected = ["north"]
    boss._waiting[one.path.name] = time.monotonic() - 6
    boss._step()
    assert session.jobs == []
    one.write_registered({"north": 4, "south": 4})
    boss._step()
    assert session.jobs == [one.path.name]


def test_a_study_begins_when_its_sites_are_there(boss: Supervisor, session: Session) -> None:
    one = study(boss)
    session.connected = ["north"]
    boss._step()
    assert session.jobs == []
    session.connected = ["north", "south"]
    boss._step()
    assert session.jobs == [one.path.name]
    assert json.loads((boss.folder / "connected.json").read_text()) == ["north", "south"]


def test_too_few_sites_stop_a_study_when_the_wait_is_over(boss: Supervisor, session: Session) -> None:
    one = study(boss, join_s=1)
    session.connected = ["north"]
    boss._step()
    boss._waiting[one.path.name] -= 2
    boss._step()
    assert one.read_status()["state"] == "stopped"
    with pytest.raises(QuorumError, match="quorum is 2"):
        _raise_as_ended(one)
    assert session.jobs == []


def test_a_member_that_the_study_does_not_name_counts_for_nothing_and_disturbs_nothing(
    boss: Supervisor, session: Session
) -> None:
    one = study(boss)
    session.connected = ["north", "stranger"]
    boss._waiting[one.path.name] = time.monotonic() - 2000
    boss._step()
    assert session.jobs == []  # two members are connected, one of the study's sites
    assert one.read_status()["state"] == "stopped"
    one.write_status("submitted", round_=0, rounds=5, sites=[])
    session.connected = ["north", "south", "stranger"]
    boss._step()
    assert session.jobs == [one.path.name]
    meta = json.loads((boss.folder / "job" / "meta.json").read_text())
    assert meta["deploy_map"] == {"app": ["server", "north", "south"]}
    one.write_status("running", round_=1, rounds=5, sites=["north"])
    (one.path / JOB_SITES).write_text(json.dumps(["north", "south"]))
    boss._step()
    assert not (one.path / AGAIN).exists()


def test_a_damaged_list_of_the_sites_of_a_job_counts_as_missing(boss: Supervisor, session: Session) -> None:
    one = study(boss)
    boss._step()
    one.write_status("running", round_=1, rounds=5, sites=["north"])
    (one.path / JOB_SITES).write_text('["nor')
    boss._step()
    assert (one.path / AGAIN).exists()


@pytest.mark.parametrize("how", ["came new", "lost its process"])
def test_a_site_that_waits_ends_the_job_with_its_round(boss: Supervisor, session: Session, how: str) -> None:
    one = study(boss)
    boss._step()
    one.write_status("running", round_=1, rounds=5, sites=["north"])
    (one.path / JOB_SITES).write_text(json.dumps(["north", "south"]))
    boss._step()
    assert not (one.path / AGAIN).exists()
    if how == "came new":
        (one.path / JOB_SITES).write_text(json.dumps(["north"]))
    else:
        session.idle = ["south"]
    boss._step()
    assert (one.path / AGAIN).exists()
    one.write_status("submitted", round_=2, rounds=5, sites=["north"])
    session.statuses["job1"] = "FINISHED:COMPLETED"
    boss._step()
    boss._step()
    assert session.jobs == [one.path.name] * 2
    assert not (one.path / AGAIN).exists()


def test_jobs_that_end_without_a_round_are_not_repeated_for_ever(boss: Supervisor, session: Session) -> None:
    one = study(boss)
    for _ in range(40):
        boss._step()
        session.statuses = {f"job{n}": "FINISHED:EXECUTION_EXCEPTION" for n in range(1, 99)}
    assert one.read_status()["state"] == "stopped"
    assert len(session.jobs) <= 6
    with pytest.raises(RunError, match="without a committed round"):
        _raise_as_ended(one)


def test_studies_are_worked_on_in_the_order_in_which_they_came(boss: Supervisor, session: Session) -> None:
    first, second = study(boss, "b" * 16), study(boss, "a" * 16)
    now = time.time()
    os.utime(first.path / "manifest.json", (now - 9, now - 9))
    # What a later submission writes does not change the order.
    os.utime(first.path / "config.yaml", (now + 9, now + 9))
    first.write_status("submitted", round_=0, rounds=5, sites=["north"])
    boss._step()
    first.write_status("finished", round_=5, rounds=5, sites=[])
    session.statuses["job1"] = "FINISHED:COMPLETED"
    boss._step()
    boss._step()
    assert session.jobs == [first.path.name, second.path.name]


def test_a_server_that_does_not_answer_is_waited_for(boss: Supervisor, session: Session, monkeypatch) -> None:
    def lost(*args: object, **more: object) -> None:
        raise ConnectionError("Jane Doe")

    study(boss)
    session.get_system_info = lost
    monkeypatch.setattr(supervisor, "new_secure_session", lost)
    boss._step()
    assert boss.session is None
    assert session.jobs == []


def test_a_revoked_site_is_shut_out_and_counts_for_nothing(boss: Supervisor, session: Session) -> None:
    one = study(boss, join_s=1)
    write_revoked(boss.folder, {"south"})
    boss._step()
    boss._step()
    assert session.disabled == ["south"]
    assert json.loads((boss.folder / "connected.json").read_text()) == ["north"]
    assert session.jobs == []
    write_revoked(boss.folder, set())
    boss._step()
    boss._step()
    assert session.disabled == []
    assert session.jobs == [one.path.name]


def test_once_told_to_stop_it_asks_nothing_more_but_to_end_the_job(boss: Supervisor, session: Session) -> None:
    """Row 23 of docs/reliability.md: each question could take seconds, and there are ten of them."""
    session.get_system_info = lambda: pytest.fail("asked")
    aborted: list[str] = []
    session.abort_job, session.close = aborted.append, lambda: None
    ended: list[bool] = []
    boss.engine.end = lambda: ended.append(True)
    boss.job = SimpleNamespace(id="job1")
    boss.stop.is_set = True
    boss._step()
    boss._close()
    assert (aborted, ended) == (["job1"], [True])


def test_a_study_whose_jobs_get_nowhere_is_stopped_and_begins_anew_when_submitted_again(
    boss: Supervisor, session: Session
) -> None:
    one = study(boss)

    def jobs_until_stopped() -> int:
        before = len(session.jobs)
        while one.read_status()["state"] != "stopped":
            boss._step()
            session.statuses[f"job{len(session.jobs)}"] = "FINISHED:ABORTED"
            boss._step()
        return len(session.jobs) - before

    assert jobs_until_stopped() == 4
    assert "4 jobs in a row" in one.read_status()["reason"]
    one.write_status("submitted", round_=0, rounds=5, sites=[])
    assert jobs_until_stopped() == 4


def test_a_job_that_committed_a_round_starts_the_count_anew(boss: Supervisor, session: Session) -> None:
    one = study(boss)
    for number in range(1, 9):
        boss._step()
        if number % 3 == 0:
            one.write_status("interrupted", round_=number, rounds=99, sites=[])
        session.statuses[f"job{number}"] = "FINISHED:ABORTED"
        boss._step()
    assert one.read_status()["state"] == "interrupted"


UNAPPROVED = "waits for the approval of north, south"


def end_job(boss: Supervisor, session: Session, one: StudyFolder, reason: str = UNAPPROVED) -> None:
    """End the present job of a study, which has no round, with this reason."""
    one.write_status("submitted", round_=0, rounds=5, sites=[], reason=reason)
    session.statuses[f"job{len(session.jobs)}"] = "FINISHED:COMPLETED"
    boss._step()


def pause_is_over(boss: Supervisor, one: StudyFolder) -> float:
    """Let the pause of a study end now, and return how long it was, in seconds."""
    pause = boss._pauses[one.path.name]
    boss._pauses[one.path.name] = replace(pause, until=time.monotonic())
    return pause.seconds


def test_sites_that_have_not_approved_a_study_are_asked_again_until_the_wait_is_over(
    boss: Supervisor, session: Session, caplog: pytest.LogCaptureFixture
) -> None:
    """All sites are connected from the study before: neither four jobs without a round nor the first refusal stop it."""
    caplog.set_level("INFO")
    one, pauses = study(boss, join_s=604800), []
    for attempt in range(1, 9):
        boss._step()
        assert len(session.jobs) == attempt
        assert one.read_status()["reason"] == ""  # what the job before it left does not count for this one
        end_job(boss, session, one)
        boss._step()
        assert len(session.jobs) == attempt, "there is no pause"
        assert one.read_status() | {"time": ""} == {
            "state": "submitted",
            "round": 0,
            "rounds": 5,
            "sites": [],
            "reason": UNAPPROVED,
            "time": "",
        }
        pauses.append(pause_is_over(boss, one))
    assert pauses == [30, 60, 120, 240, 480, 900, 900, 900]
    assert f"study {one.path.name} {UNAPPROVED}; its sites are asked again in 30 s" in caplog.text
    assert session.may_wait == [True] * 8
    boss._pauses[one.path.name] = replace(boss._pauses[one.path.name], until=time.monotonic() + 900)
    boss._waiting[one.path.name] -= 604800
    boss._step()
    assert session.may_wait == [True] * 8 + [False]  # begins with those that approved it, or stops with the reasons


def test_a_study_that_is_submitted_again_asks_its_sites_at_once(boss: Supervisor, session: Session) -> None:
    one = study(boss)
    boss._step()
    end_job(boss, session, one)
    boss._step()
    assert len(session.jobs) == 1
    one.write_status("submitted", round_=0, rounds=5, sites=[])  # as `coordinator submit` writes it
    boss._step()
    assert len(session.jobs) == 2


@pytest.mark.parametrize("why", ["a site is not connected", "nobody has approved it"])
def test_a_study_that_waits_lets_the_next_one_run(boss: Supervisor, session: Session, why: str) -> None:
    first, second = study(boss, "b" * 16), study(boss, "a" * 16)
    now = time.time()
    os.utime(first.path / "manifest.json", (now - 9, now - 9))
    if why == "a site is not connected":
        (first.path / "config.yaml").write_text("data:\n  sites: {north: a, east: b}\n  classes: {n: [1]}\n")
    else:
        boss._step()
        end_job(boss, session, first)
        session.jobs.clear()
        session.statuses.clear()
    boss._step()
    assert session.jobs == [second.path.name]


def test_a_study_that_has_begun_is_continued_before_others_begin(boss: Supervisor, session: Session) -> None:
    """Not even while it waits for a site that has left: that wait is no longer than a round."""
    first, second = study(boss, "b" * 16), study(boss, "a" * 16)
    now = time.time()
    os.utime(first.path / "manifest.json", (now - 9, now - 9))
    second.write_registered({"north": 4, "south": 4})
    (second.path / "config.yaml").write_text("data:\n  sites: {north: a, south: b, east: c}\n  classes: {n: [1]}\n")
    boss._step()
    assert session.jobs == []
    boss._waiting[second.path.name] -= 2000
    boss._step()
    assert session.jobs == [second.path.name]
    assert session.may_wait == [False]


def test_the_reason_for_too_few_connected_sites_names_those_that_are_missing(
    boss: Supervisor, session: Session
) -> None:
    one = study(boss, join_s=7)
    session.connected = ["north"]
    boss._step()
    boss._waiting[one.path.name] -= 7
    boss._step()
    said = "1 of 2 sites are connected after 7 s (not connected: south); the quorum is 2"
    assert said in one.read_status()["reason"]


@pytest.mark.parametrize(
    ("state", "reason", "told"),
    [
        ("finished", "", "has ended; its report is {folder}/report.html"),
        ("stopped", "QuorumError: 0 of 2 sites joined", "was stopped: QuorumError: 0 of 2 sites joined"),
    ],
)
def test_the_end_of_a_study_is_logged_once(
    boss: Supervisor, session: Session, caplog: pytest.LogCaptureFixture, state: str, reason: str, told: str
) -> None:
    """NVFlare takes some time to report the end of the job; the status is read every second until then, and once more."""
    caplog.set_level("INFO")
    one = study(boss)
    boss._step()
    one.write_status(state, round_=0, rounds=5, sites=[], reason=reason)
    for _ in range(5):
        boss._step()
    session.statuses["job1"] = "FINISHED:COMPLETED"
    boss._step()
    ends = [record.getMessage() for record in caplog.records if "runs as job" not in record.getMessage()]
    assert ends == [f"study {one.path.name} {told.format(folder=one.path)}"]


def test_the_log_says_why_a_study_without_a_job_was_stopped(
    boss: Supervisor, session: Session, caplog: pytest.LogCaptureFixture
) -> None:
    one = study(boss, join_s=7)
    session.connected = []
    boss._step()
    boss._waiting[one.path.name] -= 7
    boss._step()
    (record,) = caplog.records
    assert record.getMessage() == f"study {one.path.name} was stopped: {one.read_status()['reason']}"


def test_a_study_that_has_not_begun_is_stopped_by_its_operator(boss: Supervisor, session: Session) -> None:
    one, other = study(boss, "a" * 16), study(boss, "b" * 16)
    assert one.request_stop(running=True)
    boss._step()
    assert one.read_status()["state"] == "stopped"
    assert "submit the study again" in one.read_status()["reason"]
    assert not (one.path / STOP).exists()
    assert session.jobs == [other.path.name]


def test_a_study_that_runs_is_stopped_by_its_operator_and_its_job_is_ended_once(
    boss: Supervisor, session: Session
) -> None:
    one, aborted = study(boss), []
    session.abort_job = aborted.append
    boss._step()
    one.write_status("running", round_=2, rounds=5, sites=["north"])
    assert one.request_stop(running=True)
    for _ in range(3):
        boss._step()
    assert aborted == ["job1"]
    one.write_status("interrupted", round_=2, rounds=5, sites=["north"])
    session.statuses["job1"] = "FINISHED:ABORTED"
    boss._step()
    boss._step()
    assert (one.read_status()["state"], one.read_status()["round"]) == ("stopped", 2)
    assert session.jobs == [one.path.name]


def test_a_study_waits_for_no_revoked_site(boss: Supervisor, session: Session) -> None:
    one = study(boss, join_s=604800)
    sites = "data:\n  sites: {north: a, south: b, east: c}\n  classes: {n: [1]}\n"
    (one.path / "config.yaml").write_text(sites)
    boss._step()
    assert session.jobs == []
    write_revoked(boss.folder, {"east"})
    boss._step()
    assert session.jobs == [one.path.name]


def stored_jobs(boss: Supervisor) -> Path:
    """The folder in which NVFlare's server stores jobs (`write_server_policy`), with one that an earlier process left."""
    jobs = boss.folder / "server" / "jobs"
    (jobs / "left").mkdir(parents=True)
    return jobs


def test_the_jobs_of_an_earlier_server_do_not_run_beside_a_new_one(boss: Supervisor, session: Session) -> None:
    """NVFlare's server runs every stored job that has not begun, so that a study would have two.

    The folders of jobs that ended with it contain their logs; the last five stay.
    """
    jobs, seen = stored_jobs(boss), []
    for _ in range(7):
        (boss.folder / "server" / str(uuid.uuid4())).mkdir()
    boss.engine.start = lambda: seen.append(jobs.exists())
    boss.session = None
    boss.run(until_idle=True)
    assert seen == [False]
    assert len(list((boss.folder / "server").iterdir())) == 5 + 1  # and the list of disabled sites


def test_a_server_that_died_takes_its_job_with_it(boss: Supervisor, session: Session) -> None:
    """A new process of the server reports the job as running for ever."""
    one, jobs = study(boss), stored_jobs(boss)
    boss._step()
    one.write_status("running", round_=2, rounds=5, sites=["north", "south"])
    boss.engine.alive = False
    boss._step()
    assert not jobs.exists()
    boss.engine.alive, boss.session = True, session
    boss._step()
    assert session.jobs == [one.path.name] * 2


def test_a_job_of_which_the_server_does_not_say_whether_it_has_it_is_not_submitted_twice(
    boss: Supervisor, session: Session
) -> None:
    one, jobs, calls, submit = study(boss), stored_jobs(boss), [], session.submit_job
    boss.engine.end, boss.engine.start = lambda: calls.append("end"), lambda: calls.append(jobs.exists())

    def lost(folder: str) -> str:
        raise TimeoutError

    session.submit_job, session.close = lost, lambda: None
    boss._step()
    assert calls == ["end", False]
    session.submit_job, boss.session = submit, session
    boss._step()
    assert session.jobs == [one.path.name]


def test_a_site_that_was_readmitted_while_the_coordinator_was_stopped_is_not_disabled(boss: Supervisor) -> None:
    """NVFlare's server reads this file when it starts (`ClientManager._load_disabled_clients` of NVFlare 2.9)."""
    disabled, seen = boss.folder / "server" / "disabled_clients.json", []
    disabled.write_text(json.dumps({"disabled_clients": ["north", "south"]}))
    write_revoked(boss.folder, {"north"})
    boss.engine.start = lambda: seen.append(json.loads(disabled.read_text()))
    boss.session = None
    boss.run(until_idle=True)
    assert seen == [{"disabled_clients": ["north"]}]


@pytest.mark.parametrize("file", ["policy.json", "registered.json", "config.yaml"])
def test_a_study_with_a_damaged_file_is_stopped_and_the_others_run(
    boss: Supervisor, session: Session, file: str
) -> None:
    damaged, other = study(boss, "a" * 16), study(boss, "b" * 16)
    (damaged.path / file).write_text("# sha256 of what follows: 0\n{")
    boss._step()
    assert session.jobs == [other.path.name]
    assert damaged.read_status()["state"] == "stopped"
    assert damaged.read_status()["reason"].startswith(f"StoreError: {file} is damaged")


@pytest.mark.parametrize("port", [58142, 58143])
def test_a_coordinator_does_not_start_beside_a_program_on_one_of_its_ports(
    boss: Supervisor, session: Session, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """gRPC listens beside another server of gRPC on the same port, and the sites would reach one of the two by chance."""
    monkeypatch.setattr(processes, "_FREE_S", 0.0)
    boss.engine.start = lambda: pytest.fail("it started")
    other = grpc.server(ThreadPoolExecutor(1))
    assert other.add_insecure_port(f"0.0.0.0:{port}") == port
    other.start()
    try:
        with pytest.raises(RunError, match=f"the port {port} of this machine cannot be used"):
            boss.run(until_idle=True)
    finally:
        other.stop(None).wait()
