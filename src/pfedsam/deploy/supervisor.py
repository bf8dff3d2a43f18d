"""`pfedsam coordinator start`: NVFlare's server, and beside it the loop that gives it studies, one after the other.

A study is run as one NVFlare job, or as several: NVFlare cannot take a site into a job that runs, so when a site comes (back)
the job ends at its round's end and a new one goes on from the committed round. The same happens after a crash of any part.
"""

import contextlib
import io
import json
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
from pfedsam.deploy.controller import AGAIN, JOB_SITES, STUDIES
from pfedsam.deploy.jobs import write_job
from pfedsam.deploy.limits import message_limit
from pfedsam.deploy.processes import Engine, StopFlag
from pfedsam.deploy.provision import ADMIN, write_server_policy
from pfedsam.engine.rounds import RoundPolicy
from pfedsam.engine.study_folder import CONNECTED, STUDIES_FOLDER, StudyFolder, read_revoked
from pfedsam.experiment.load import read_config

_MODULE: Final = "nvflare.private.fed.app.server.server_train"
_POLL_S: Final = 1.0
_SETTLE_S: Final = 30.0
"""A site whose process has not appeared in a job so long after its start is taken to have lost it."""
_MAX_BARREN: Final = 4
"""Jobs in a row that may end without one more committed round."""
_LOG = get_logger(__name__)


@dataclass
class _Job:
    """The NVFlare job that runs a study now."""

    id: str
    study: StudyFolder
    round: int
    """The study's round at its start."""
    started: float = field(default_factory=time.monotonic)


class Supervisor:
    """The coordinator's processes and studies in `folder`, which `pfedsam coordinator init` made."""

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
        self._disabled: set[str] = set()
        self._barren: dict[str, int] = {}
        self._told: set[Path] = set()

    def run(self, *, until_idle: bool = False) -> None:
        """Serve until told to stop.

        Args:
            until_idle: end when no study is left to work on, and then say how the last one ended.

        Raises:
            RunError: the server does not start, or a study failed (with `until_idle`).
            QuorumError: a study has too few sites (with `until_idle`).
        """
        self.stop.install()
        self.engine.start()
        last: Path | None = None
        try:
            while not self.stop.is_set:
                self._step()
                study = self._next_study()
                last = study.path if study else last
                if until_idle and study is None and self.job is None:
                    break
                time.sleep(_POLL_S)
        finally:
            self._close()
            self.stop.close()
        if until_idle and last is not None:
            _raise_as_ended(StudyFolder(last))

    def _step(self) -> None:
        """One look at the server, the job and the studies.

        Raises:
            RunError: the server died too often, or cannot be reached.
        """
        if not self.engine.alive:
            self.session = None
        if not self.engine.keep_alive():
            raise RunError("NVFlare's server ended several times; its last words are in server/engine.log.")
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
            study = self._next_study()
            if study is not None:
                self._begin(study, connected)

    def _set_limit(self) -> int:
        """Write the server's rules, with room for the longest message of the studies that are here, and say how long that is."""
        limit = message_limit((self.folder / STUDIES_FOLDER).glob("*/manifest.json"))
        write_server_policy(self.folder / "server", limit)
        return limit

    def _revoke(self, revoked: set[str]) -> None:
        """Tell NVFlare who must not register any more, and who may again."""
        for site in sorted(revoked - self._disabled):
            if self._ask(methodcaller("disable_client", site)) is not None:
                self._disabled.add(site)
        for site in sorted(self._disabled - revoked):
            if self._ask(methodcaller("enable_client", site)) is not None:
                self._disabled.discard(site)

    def _begin(self, study: StudyFolder, connected: list[str]) -> None:
        """Submit a study once its sites are there, or once the wait for them is over and they are enough."""
        policy = study.read_policy(RoundPolicy)
        expected = set(read_config(study.path / "config.yaml").data.sites)
        connected = [site for site in connected if site in expected]
        since = self._waiting.setdefault(study.path.name, time.monotonic())
        limit = policy.return_s if study.read_registered() else policy.join_s
        over = time.monotonic() - since >= limit
        if not expected <= set(connected) and not over:
            return
        if message_limit([study.path / "manifest.json"]) > self._limit:  # submitted since the server was started
            self.engine.end()
            self._drop_session()
            self._limit = self._set_limit()
            self.engine.start()
            return
        if len(connected) < policy.quorum:
            reason = f"{len(connected)} site(s) are connected after {limit} s; the quorum is {policy.quorum}"
            self._end_study(study, "stopped", f"QuorumError: {reason}. Submit the study again when more are there.")
            return
        (study.path / AGAIN).unlink(missing_ok=True)
        job = write_job(self.folder / "job", study.path.name, sorted(expected))
        job_id = self._ask(lambda session: session.submit_job(str(job)))
        if job_id:
            self.job = _Job(job_id, study, int(study.read_status()["round"]))
            _LOG.info("study %s runs as job %s", study.path.name, job_id)

    def _watch(self, job: _Job, connected: list[str]) -> None:
        """See whether the job has ended, and whether a site waits that it does not have."""
        meta = self._ask(lambda session: session.get_job_meta(job.id))
        if meta is None:
            return
        if str(meta.get("status", "")).startswith("FINISHED"):
            self._after(job)
            return
        settled = time.monotonic() - job.started >= _SETTLE_S and job.study.read_status()["state"] == "running"
        if not settled or (job.study.path / AGAIN).exists():
            return
        expected = read_config(job.study.path / "config.yaml").data.sites
        missing = [site for site in connected if site in expected and site not in self._at_work(job)]
        if missing:
            _LOG.info("%s wait(s); the job ends with its round and goes on with them", ", ".join(missing))
            atomic.write_text(job.study.path / AGAIN, "")

    def _at_work(self, job: _Job) -> set[str]:
        """The sites that the job began with, less those that say they have no process in it."""
        path = job.study.path / JOB_SITES
        began = set(json.loads(path.read_text("utf-8"))) if path.exists() else set()
        rows: list[dict[str, Any]] = self._ask(lambda session: session.get_client_job_status()) or []
        # Not `no_reply`: a site that does not answer has not come back yet.
        return began - {str(row.get("client_name")) for row in rows if row.get("status") == "no_jobs"}

    def _after(self, job: _Job) -> None:
        """What becomes of a study whose job has ended."""
        self.job = None
        self._waiting.pop(job.study.path.name, None)
        before, status = self._barren.pop(job.study.path.name, 0), job.study.read_status()
        if status["state"] in ("finished", "stopped") or status["round"] > job.round:
            return
        count = self._barren[job.study.path.name] = before + 1
        if count >= _MAX_BARREN:
            self._end_study(job.study, "stopped", f"RunError: {count} jobs in a row ended without a committed round")

    def _next_study(self) -> StudyFolder | None:
        """The study that was submitted first and is not finished."""
        folders = [path.parent for path in (self.folder / STUDIES_FOLDER).glob("*/config.yaml")]
        # The status is written anew all the time, the configuration once.
        for folder in sorted(folders, key=lambda folder: (folder / "config.yaml").stat().st_mtime):
            study = StudyFolder(folder)
            try:
                state = study.read_status()["state"]
            except StoreError as error:
                self._tell_once(folder, error)
                continue
            if state in ("submitted", "running", "interrupted"):
                return study
        return None

    def _tell_once(self, folder: Path, error: StoreError) -> None:
        """Log why a study is not worked on."""
        if folder not in self._told:
            self._told.add(folder)
            _LOG.error("study %s is left out: %s", folder.name, error)

    def _end_study(self, study: StudyFolder, state: str, reason: str) -> None:
        now = study.read_status()
        self._waiting.pop(study.path.name, None)
        self._barren.pop(study.path.name, None)
        study.write_status(state, round_=now["round"], rounds=now["rounds"], sites=now["sites"], reason=reason)

    def _connected(self) -> list[str] | None:
        info = self._ask(lambda session: session.get_system_info())
        return None if info is None else sorted(client.name for client in info.client_info)

    def _ask(self, command: Callable[[Session], Any]) -> Any:  # noqa: ANN401 - of the command
        """The answer of the server's control interface; None while it does not answer, or once it is time to stop."""
        if self.stop.is_set:
            return None
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                if self.session is None:
                    self.session = new_secure_session(ADMIN, str(self.folder / "admin"), timeout=5.0)
                return command(self.session)
        except Exception as error:  # noqa: BLE001 - NVFlare raises many kinds, bare Exception among them
            _LOG.info("the server does not answer: %s", type(error).__name__)
            self._drop_session()
            return None

    def _drop_session(self) -> None:
        if self.session is not None:
            with contextlib.suppress(Exception):
                self.session.close()
        self.session = None

    def _close(self) -> None:
        if self.job is not None and self.session is not None:  # to log in again could take longer than there is time
            with contextlib.suppress(Exception), contextlib.redirect_stdout(io.StringIO()):
                self.session.abort_job(self.job.id)
        self._drop_session()
        self.engine.end()


def _raise_as_ended(study: StudyFolder) -> None:
    """Raise what a study was stopped by; nothing for one that is finished."""
    status = study.read_status()
    if status["state"] == "stopped":
        kind, _, text = str(status["reason"]).partition(": ")
        raise QuorumError(text) if kind == "QuorumError" else RunError(text or kind)
