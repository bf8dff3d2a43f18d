"""`pfedsam coordinator start`: runs NVFlare's server, and submits the studies to it one after the other.

A study runs as one or several NVFlare jobs: NVFlare cannot add a site to a running job, so when a site joins or returns the job ends
after the current round, and a new job continues from the last committed round. The same happens after a crash of any process.

A study never has two jobs at a time, because both would write its folder. NVFlare's server stores its jobs, and a new process of it runs
those that had not begun. Therefore all of them are removed before a process of the server is started.
"""

import contextlib
import io
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from operator import methodcaller
from pathlib import Path
from typing import Any, Final

from nvflare.fuel.flare_api.flare_api import Session, new_secure_session

from pfedsam.core import atomic
from pfedsam.core.errors import QuorumError, RunError, StoreError
from pfedsam.core.log import get_logger
from pfedsam.deploy.certificates import ADMIN, known_as
from pfedsam.deploy.controller import JOB_SITES, STUDIES
from pfedsam.deploy.jobs import remove_old_jobs, write_job
from pfedsam.deploy.limits import message_limit
from pfedsam.deploy.processes import Engine, StopFlag, refuse_used_port
from pfedsam.deploy.provision import write_server_policy
from pfedsam.engine.joining import WAITS
from pfedsam.engine.round_policy import RoundPolicy
from pfedsam.engine.study_folder import (
    AGAIN,
    CONNECTED,
    STOP,
    STOPPED,
    STUDIES_FOLDER,
    UNFINISHED,
    StudyFolder,
    read_revoked,
)

_MODULE: Final = "nvflare.private.fed.app.server.server_train"
_POLL_S: Final = 1.0
_SETTLE_S: Final = 30.0
"""A site without a process in a job this long after the job's start counts as missing from the job."""
_MAX_BARREN: Final = 4
"""The study is stopped after this number of consecutive jobs without a newly committed round."""
_FIRST_PAUSE_S: Final = 30.0
_LONGEST_PAUSE_S: Final = 900.0
"""A study that waits for the approval of its sites asks them again after the first pause, then after pauses twice as long each."""
_LOG = get_logger(__name__)


@dataclass(frozen=True)
class _Pause:
    """The time until the sites of a study that has not begun are asked again."""

    seconds: float
    until: float


@dataclass
class _Job:
    """The NVFlare job that currently runs a study."""

    id: str
    study: StudyFolder
    round: int
    """The study's round when the job started."""
    told: int = -1
    """The last round that the log has named."""
    aborted: bool = False
    """Whether the server was told to end the job, because the operator stops the study."""
    end_told: bool = False
    """Whether the log has named the end of the study."""
    started: float = field(default_factory=time.monotonic)


class Supervisor:
    """Runs the coordinator's processes and studies in `folder`, which `pfedsam coordinator init` made."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self._limit = self._set_limit()
        self.stop = StopFlag()
        env = {STUDIES: str(self.folder / STUDIES_FOLDER)}
        settings = ["secure_train=true", "org=coordinator", "config_folder=config"]
        self.engine = Engine(_MODULE, self.folder / "server", "fed_server.json", settings, env)
        self.session: Session | None = None
        self.job: _Job | None = None
        self._waiting: dict[str, float] = {}
        """Since when each study waits for its sites."""
        self._pauses: dict[str, _Pause] = {}
        self._disabled: set[str] = set()
        self._barren: dict[str, int] = {}
        self._told: set[Path] = set()

    def run(self, *, until_idle: bool = False) -> None:
        """Serve until SIGTERM or SIGINT.

        Args:
            until_idle: return when no study is left to run, and raise the error that stopped the last one, if any.

        Raises:
            RunError: another program uses the coordinator's ports, the server does not start or, with `until_idle`, the last study failed.
            QuorumError: with `until_idle`, the last study had too few sites.
        """
        port = known_as(self.folder)[2]
        for one in (port, port + 1):
            refuse_used_port(one)
        self.stop.install()
        self._forget()
        self.engine.start()
        last: Path | None = None
        try:
            while not self.stop.is_set:
                self._step()
                pending = self._pending()
                last = pending[0].path if pending else last
                if until_idle and not pending and self.job is None:
                    break
                time.sleep(_POLL_S)
        finally:
            self._close()
            self.stop.close()
        if until_idle and last is not None:
            _raise_as_ended(StudyFolder(last))

    def _step(self) -> None:
        """Check the server, the job and the studies once, and do what is due.

        Raises:
            RunError: the server died too often.
        """
        if not self.engine.alive:
            self.session = None
            if self.job is not None:  # a new process of the server does not know it
                self._after(self.job)
            self._forget()
        if not self.engine.keep_alive():
            raise RunError(
                "NVFlare's server ended several times; see the end of server/engine.log and server/log.txt for the reason."
            )
        connected = self._connected()
        if connected is None:
            return
        revoked = read_revoked(self.folder)
        self._revoke(revoked)
        connected = [site for site in connected if site not in revoked]
        atomic.write_json(self.folder / CONNECTED, connected)
        if self.job is not None:
            self._watch(self.job, connected)
        else:
            self._begin_next(connected, revoked)

    def _forget(self) -> None:
        """Remove the jobs that an earlier process of NVFlare's server has stored, and let the next one disable the revoked sites only.

        Its own list of disabled sites can name sites that were readmitted while it did not run.
        """
        shutil.rmtree(self.folder / "server" / "jobs", ignore_errors=True)
        remove_old_jobs(self.folder / "server")
        revoked = sorted(read_revoked(self.folder))
        atomic.write_json(self.folder / "server" / "disabled_clients.json", {"disabled_clients": revoked})
        self._disabled.clear()

    def _set_limit(self) -> int:
        """Write the server's rules with a message limit that is enough for the present studies, and return that limit in bytes."""
        limit = message_limit((self.folder / STUDIES_FOLDER).glob("*/manifest.json"))
        write_server_policy(self.folder / "server", limit)
        return limit

    def _revoke(self, revoked: set[str]) -> None:
        """Disable revoked sites in NVFlare, and enable those that are no longer revoked."""
        for site in sorted(revoked - self._disabled):
            if self._ask(methodcaller("disable_client", site)) is not None:
                self._disabled.add(site)
        for site in sorted(self._disabled - revoked):
            if self._ask(methodcaller("enable_client", site)) is not None:
                self._disabled.discard(site)

    def _begin_next(self, connected: list[str], revoked: set[str]) -> None:
        """Begin the first study that is ready. A study that has not begun and waits for its sites lets later ones run meanwhile.

        A study with a damaged file is stopped with the reason, and does not keep others from running.
        """
        for study in self._pending():
            try:
                if (study.path / STOP).exists():
                    self._stop_study(study, STOPPED)
                elif not self._waits(study, connected, revoked):
                    self._begin(study, connected)
                    return
                elif study.read_registered():
                    return
            except StoreError as error:
                self._stop_study(study, f"{type(error).__name__}: {error}")

    def _waits(self, study: StudyFolder, connected: list[str], revoked: set[str]) -> bool:
        """Whether a study waits until all its sites are connected, or until it asks again whether they approve it.

        It does not wait for revoked sites, unless the others are fewer than the quorum.
        """
        if self._is_over(study):
            return False
        status, pause, sites = study.read_status(), self._pauses.get(study.path.name), set(study.read_sites())
        # A study that was submitted again meanwhile does not have this reason any more, and asks at once.
        paused = pause is not None and time.monotonic() < pause.until and status["reason"].startswith(WAITS)
        admitted = sites - revoked
        awaited = admitted if len(admitted) >= study.read_policy(RoundPolicy).quorum else sites
        return paused or not awaited.issubset(connected)

    def _is_over(self, study: StudyFolder) -> bool:
        """Whether the time in which a study waits for its sites is over."""
        since = self._waiting.setdefault(study.path.name, time.monotonic())
        return time.monotonic() - since >= _limit_of_wait(study)

    def _begin(self, study: StudyFolder, connected: list[str]) -> None:
        """Submit a study to the server, or stop it if too few of its sites are connected."""
        sites, quorum, status = study.read_sites(), study.read_policy(RoundPolicy).quorum, study.read_status()
        missing = [site for site in sites if site not in connected]
        if message_limit([study.path / "manifest.json"]) > self._limit:  # submitted since the server was started
            self._restart()
            return
        if (there := len(sites) - len(missing)) < quorum:
            reason = (
                f"{there} of {len(sites)} sites are connected after {_limit_of_wait(study)} s (not connected: {', '.join(missing)}); "
                f"the quorum is {quorum}"
            )
            self._stop_study(study, f"QuorumError: {reason}. Submit the study again when more sites are connected.")
            return
        (study.path / AGAIN).unlink(missing_ok=True)
        if status["reason"].startswith(WAITS):
            study.write_status("submitted", round_=status["round"], rounds=status["rounds"], sites=[])
        may_wait = not study.read_registered() and not self._is_over(study)
        job = write_job(self.folder / "job", study.path.name, sorted(sites), may_wait=may_wait)
        job_id = self._ask(lambda session: session.submit_job(str(job)))
        if job_id:
            self.job = _Job(job_id, study, int(status["round"]))
            _LOG.info("study %s runs as job %s", study.path.name, job_id)
        elif not self.stop.is_set:  # the server may have got the job all the same
            self._restart()

    def _restart(self) -> None:
        """Restart the server, without a job, and with a message limit that is enough for all present studies."""
        self.engine.end()
        self._drop_session()
        self._forget()
        self._limit = self._set_limit()
        self.engine.start()

    def _watch(self, job: _Job, connected: list[str]) -> None:
        """Check whether the job has ended, and whether a connected site of the study is not in it, and log the progress."""
        _log_progress(job)
        meta = self._ask(lambda session: session.get_job_meta(job.id))
        if meta is None:
            return
        if str(meta.get("status", "")).startswith("FINISHED"):
            self._after(job)
            return
        if (job.study.path / STOP).exists() and not job.aborted:
            job.aborted = True
            self._ask(lambda session: session.abort_job(job.id))
        settled = time.monotonic() - job.started >= _SETTLE_S and job.study.read_status()["state"] == "running"
        if not settled or (job.study.path / AGAIN).exists():
            return
        waiting = self._not_in_job(job, connected)
        if waiting:
            _LOG.info("waiting to join the study: %s; a new job starts with them after this round", ", ".join(waiting))
            job.study.request_new_job()

    def _not_in_job(self, job: _Job, connected: list[str]) -> list[str]:
        """The connected sites of the study that the job does not reach."""
        expected = set(job.study.read_sites())
        absent = expected - self._at_work(job)
        return [site for site in connected if site in absent]

    def _at_work(self, job: _Job) -> set[str]:
        """The sites that the job started with, without those that report no process for it."""
        try:
            began = set(json.loads((job.study.path / JOB_SITES).read_bytes()))
        except (OSError, ValueError, TypeError):  # missing or damaged: a new job writes it again
            began = set()
        rows: list[dict[str, Any]] = self._ask(lambda session: session.get_client_job_status()) or []
        # `no_reply` is not counted: a site that does not answer has not returned yet.
        return began - {str(row.get("client_name")) for row in rows if row.get("status") == "no_jobs"}

    def _after(self, job: _Job) -> None:
        """Handle the end of a study's job: stop the study if several consecutive jobs brought no committed round."""
        self.job = None
        _log_progress(job)
        before, status = self._barren.pop(job.study.path.name, 0), job.study.read_status()
        if status["state"] == "submitted" and status["reason"].startswith(WAITS):
            self._pause(job.study, status["reason"])
            return
        self._waiting.pop(job.study.path.name, None)
        self._pauses.pop(job.study.path.name, None)
        if status["state"] in ("finished", "stopped") or status["round"] > job.round:
            return
        count = self._barren[job.study.path.name] = before + 1
        if count >= _MAX_BARREN:
            self._stop_study(job.study, f"RunError: {count} jobs in a row ended without a committed round")

    def _pause(self, study: StudyFolder, reason: str) -> None:
        """Let a study that waits for its sites ask them again after a pause, which is longer each time."""
        before = self._pauses.get(study.path.name)
        seconds = min(2 * before.seconds, _LONGEST_PAUSE_S) if before else _FIRST_PAUSE_S
        self._pauses[study.path.name] = _Pause(seconds, time.monotonic() + seconds)
        _LOG.info("study %s %s; its sites are asked again in %.0f s", study.path.name, reason, seconds)

    def _pending(self) -> list[StudyFolder]:
        """The unfinished studies: those that have begun, then the others, both in the order in which they were submitted."""
        found = []
        manifests = (self.folder / STUDIES_FOLDER).glob("*/manifest.json")
        # The time of the manifest is that of the first submission; all other files may be written again.
        for folder in [path.parent for path in sorted(manifests, key=lambda path: path.stat().st_mtime)]:
            study = StudyFolder(folder)
            try:
                state = study.read_status()["state"]
            except StoreError as error:
                self._tell_once(folder, error)
                continue
            if state in UNFINISHED:
                found.append(study)
        return sorted(found, key=lambda study: not _has_begun(study))

    def _tell_once(self, folder: Path, error: StoreError) -> None:
        """Log once why a study is skipped."""
        if folder not in self._told:
            self._told.add(folder)
            _LOG.error("study %s is skipped: %s", folder.name, error)

    def _stop_study(self, study: StudyFolder, reason: str) -> None:
        (study.path / STOP).unlink(missing_ok=True)
        now = study.read_status()
        for noted in (self._waiting, self._pauses, self._barren):
            noted.pop(study.path.name, None)
        study.write_status("stopped", round_=now["round"], rounds=now["rounds"], sites=now["sites"], reason=reason)
        _log_end(study, "stopped", reason)

    def _connected(self) -> list[str] | None:
        info = self._ask(lambda session: session.get_system_info())
        return None if info is None else sorted(client.name for client in info.client_info)

    def _ask(self, command: Callable[[Session], Any]) -> Any:  # noqa: ANN401 - of the command
        """The reply of the server's control interface; None if it does not answer, or if this process is about to stop."""
        if self.stop.is_set:
            return None
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                if self.session is None:
                    self.session = new_secure_session(ADMIN, str(self.folder / "admin"), timeout=5.0)
                return command(self.session)
        except Exception as error:  # noqa: BLE001 - NVFlare raises many types, among them plain Exception
            _LOG.info("the server does not answer: %s", type(error).__name__)
            self._drop_session()
            return None

    def _drop_session(self) -> None:
        if self.session is not None:
            with contextlib.suppress(Exception):
                self.session.close()
        self.session = None

    def _close(self) -> None:
        if self.job is not None and self.session is not None:  # logging in again could take too long
            with contextlib.suppress(Exception), contextlib.redirect_stdout(io.StringIO()):
                self.session.abort_job(self.job.id)
        self._drop_session()
        self.engine.end()


def _has_begun(study: StudyFolder) -> bool:
    """Whether sites have joined a study, or its registrations are damaged."""
    try:
        return bool(study.read_registered())
    except StoreError:
        return True


def _limit_of_wait(study: StudyFolder) -> int:
    """The number of seconds for which a study waits for its sites; a study that has begun waits no longer than a round."""
    policy = study.read_policy(RoundPolicy)
    return policy.return_s if study.read_registered() else policy.join_s


def _log_progress(job: _Job) -> None:
    """Log the number of committed rounds of a job's study, once for each, and its end, once."""
    try:
        status = job.study.read_status()
    except StoreError:
        return  # whoever needs the status reports it
    if status["round"] > max(job.told, 0):
        job.told = status["round"]
        _LOG.info("study %s: %d of at most %d round(s) done", job.study.path.name, job.told, status["rounds"])
    if status["state"] in ("finished", "stopped") and not job.end_told:
        job.end_told = True
        _log_end(job.study, status["state"], status["reason"])


def _log_end(study: StudyFolder, state: str, reason: str) -> None:
    """Log that a study has ended, or why it was stopped."""
    if state == "finished":
        _LOG.info("study %s has ended; its report is %s", study.path.name, study.path / "report.html")
    else:
        _LOG.error("study %s was %s: %s", study.path.name, state, reason)


def _raise_as_ended(study: StudyFolder) -> None:
    """Raise the error that stopped a study; do nothing if it finished."""
    status = study.read_status()
    if status["state"] == "stopped":
        kind, _, text = str(status["reason"]).partition(": ")
        raise QuorumError(text) if kind == "QuorumError" else RunError(text or kind)
