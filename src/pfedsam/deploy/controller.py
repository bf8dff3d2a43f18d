"""NVFlare's controller at the coordinator: it sends the round loop's requests to the sites and collects the replies."""

import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from nvflare.apis.client import Client
from nvflare.apis.controller_spec import ClientTask, Task
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.impl.controller import Controller
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal

from pfedsam.core import atomic
from pfedsam.core.errors import PfedsamError, RunError
from pfedsam.core.log import configure, get_logger
from pfedsam.deploy.wire import failure, from_shareable, to_shareable
from pfedsam.engine.rounds import StudyRun
from pfedsam.engine.study_folder import AGAIN, StudyFolder, read_revoked
from pfedsam.engine.transport import Answers

STUDIES = "PFEDSAM_STUDIES"
"""The environment variable that holds the folder of the coordinator's studies."""
JOB_SITES = "job_sites.json"
"""The file that lists the sites of the current job; the supervisor reads it."""
_LOG = get_logger(__name__)


class StoppedError(RunError):
    """NVFlare ended the job; the study can continue from its last committed round."""


class _Replies:
    """The replies of the sites to one task, collected by the callbacks that NVFlare calls."""

    def __init__(self) -> None:
        self.wires: dict[str, dict[str, object]] = {}
        """The replies by site."""
        self.unusable: dict[str, str] = {}
        """Site -> why its reply cannot be used."""
        self.sent: dict[str, str] = {}
        """Id of a task that was sent and has no reply -> its site."""

    def note_sent(self, client_task: ClientTask, fl_ctx: FLContext) -> None:
        """Called when the task was sent to a site."""
        self.sent[client_task.id] = client_task.client.name

    def note_received(self, client_task: ClientTask, fl_ctx: FLContext) -> None:
        """Called when a site's reply has come; the reply is taken out of NVFlare's task, which would keep it in memory."""
        site, result = client_task.client.name, client_task.result
        self.sent.pop(client_task.id, None)
        client_task.result = None
        try:
            problem = failure(result)
            if problem is None:
                self.wires[site] = from_shareable(result)
            else:
                self.unusable[site] = f"NVFlare brought no reply: {problem}"
        except Exception:  # noqa: BLE001 - an exception here would end the task for every site
            self.unusable[site] = "its reply could not be unpacked"

    def unheard(self, sites: Sequence[str]) -> list[str]:
        """The sites, of those that were asked, from which no reply has come."""
        heard = {*self.wires, *self.unusable}
        return [site for site in sites if site not in heard]


class StudyController(Controller):  # type: ignore[misc]
    """The NVFlare workflow that runs one study."""

    def __init__(self, study: str, may_wait: bool = False) -> None:
        """Called by NVFlare.

        Args:
            study: the id of the study.
            may_wait: as of `StudyRun`.
        """
        super().__init__(task_check_period=0.1)
        self._folder, self._may_wait = Path(os.environ.get(STUDIES, "")) / study, may_wait
        self._lock = threading.Lock()
        self._overdue: dict[str, str] = {}
        self._late: dict[str, int] = {}

    def start_controller(self, fl_ctx: FLContext) -> None:
        """Does nothing: all state is in the study's folder."""

    def stop_controller(self, fl_ctx: FLContext) -> None:
        """Does nothing: only committed rounds count, and they are stored already."""

    def control_flow(self, abort_signal: Signal, fl_ctx: FLContext) -> None:
        """Run the study from its last committed round on, and write its final state into its status."""
        configure("INFO", self._folder / "coordinator.log")
        self._watch_questions()
        folder = StudyFolder(self._folder)
        atomic.write_json(self._folder / JOB_SITES, self.clients())
        try:
            study = StudyRun(self._folder, _FlareTransport(self, fl_ctx, abort_signal), may_wait=self._may_wait)
            outcomes = {"finished": ("finished", ""), "again": ("submitted", "a site joins")}
            state, reason = outcomes.get(study.run()) or ("submitted", study.waits_for)
        except StoppedError as error:
            state, reason = "interrupted", str(error)
        except PfedsamError as error:
            _LOG.error("%s", error)
            state, reason = "stopped", f"{type(error).__name__}: {error}"
        (self._folder / AGAIN).unlink(missing_ok=True)
        now = folder.read_status()
        folder.write_status(state, round_=now["round"], rounds=now["rounds"], sites=now["sites"], reason=reason)

    def process_result_of_unknown_task(
        self, client: Client, task_name: str, client_task_id: str, result: Shareable, fl_ctx: FLContext
    ) -> None:
        """Ignore a reply that came too late; `handle_event` counts it."""

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Count the replies that arrive after their deadline."""
        super().handle_event(event_type, fl_ctx)
        if event_type == EventType.BEFORE_PROCESS_SUBMISSION:
            self._note(str(fl_ctx.get_prop(FLContextKey.TASK_ID)))

    def _watch_questions(self) -> None:
        """Count late replies that are not sent: an NVFlare client first asks whether its task still exists, and drops the reply if not."""
        known = self.communicator.process_task_check

        def check(task_id: str, fl_ctx: FLContext) -> object:
            found = known(task_id=task_id, fl_ctx=fl_ctx)
            if found is None:
                self._note(task_id)
            return found

        self.communicator.process_task_check = check

    def _note(self, task_id: str) -> None:
        with self._lock:
            site = self._overdue.pop(task_id, None)
            if site:
                self._late[site] = self._late.get(site, 0) + 1

    def ask(
        self,
        request: Mapping[str, bytes],
        task_name: str,
        sites: Sequence[str],
        deadline_s: int,
        fl_ctx: FLContext,
        abort_signal: Signal,
    ) -> Answers:
        """Send one task to the sites and wait until all have replied, the deadline has passed, or the remaining sites have disconnected.

        Raises:
            StoppedError: NVFlare ended the job.
        """
        missing = dict.fromkeys(filter(self.get_client_disconnect_time, sites), "its process ended")
        missing |= dict.fromkeys(self._revoked() & set(sites), "it was revoked")
        there = [site for site in sites if site not in missing]
        replies = _Replies()
        task = Task(
            name=task_name,
            data=to_shareable(request),
            timeout=deadline_s,
            after_task_sent_cb=replies.note_sent,
            result_received_cb=replies.note_received,
        )
        if there:
            self.broadcast_and_wait(task, fl_ctx, there, min_responses=len(there), abort_signal=abort_signal)
        if abort_signal.triggered:
            raise StoppedError("the job was ended from outside, or its processes died.")
        with self._lock:
            self._overdue |= replies.sent
            late, self._late = self._late, {}
        missing |= replies.unusable
        unheard = replies.unheard(there)
        overdue = [site for site in unheard if not self.get_client_disconnect_time(site)]
        missing |= dict.fromkeys(unheard, "its process ended")
        missing |= dict.fromkeys(overdue, f"no reply within {deadline_s} s")
        return Answers(replies.wires, missing, late, overdue)

    def needs_new_job(self) -> bool:
        """Whether the supervisor requests a new job."""
        return (self._folder / AGAIN).exists()

    def clients(self) -> list[str]:
        """The sites of this job that are not revoked."""
        return [client.name for client in self._engine.get_clients() if client.name not in self._revoked()]

    def _revoked(self) -> set[str]:
        return read_revoked(self._folder.parent.parent)


class _FlareTransport:
    """The coordinator's `Transport` over one NVFlare job."""

    def __init__(self, controller: StudyController, fl_ctx: FLContext, abort_signal: Signal) -> None:
        self._controller, self._fl_ctx, self._abort = controller, fl_ctx, abort_signal

    def connected(self) -> list[str]:
        """The sites to which a request can be sent now."""
        return self._controller.clients()

    def ask(self, request: Mapping[str, bytes], task: str, sites: Sequence[str], deadline_s: int) -> Answers:
        """As `transport.Transport.ask`."""
        return self._controller.ask(request, task, sites, deadline_s, self._fl_ctx, self._abort)

    def needs_new_job(self) -> bool:
        """As `transport.Transport.needs_new_job`."""
        return self._controller.needs_new_job()
