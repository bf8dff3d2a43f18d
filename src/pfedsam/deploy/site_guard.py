"""The message filter of a site: which requests are accepted from the coordinator, and which jobs.

NVFlare 2.9 is more permissive: it checks an authorisation only if the request itself asks for the check. So the coordinator's certificate
could read a site's system information, statistics and log, change its log level, or measure its network. A study needs none of that; the
lists below contain the requests that it needs.

NVFlare also unpacks the files of a job into a folder of the workspace that has the job's id as its name, whatever this name is: the job
`startup` would delete the site's key, the job `local` the site's rules. From a job's files NVFlare adds `custom/` to the path of Python's
modules. So a job must have an id of the form that NVFlare gives, and the files that `jobs.write_job` writes, and no others.
"""

import io
import os
import zipfile
import zlib
from pathlib import Path
from typing import Any, Final

from nvflare.apis.event_type import EventType
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_constant import FLContextKey, ReservedTopic
from nvflare.apis.fl_context import FLContext
from nvflare.apis.job_def import JobMetaKey
from nvflare.fuel.f3.cellnet.defs import CellChannel, CellChannelTopic, MessageHeaderKey, MessagePropKey, ReturnCode
from nvflare.fuel.f3.cellnet.fqcn import FQCN
from nvflare.fuel.f3.cellnet.utils import make_reply
from nvflare.fuel.f3.message import Message
from nvflare.lighter.tool_consts import NVFLARE_SIG_FILE, NVFLARE_SUBMITTER_CRT_FILE
from nvflare.private.admin_defs import Message as Command
from nvflare.private.admin_defs import error_reply
from nvflare.private.defs import RequestHeader, TrainingTopic

from pfedsam.core.log import add_file, get_logger
from pfedsam.deploy.guard import ABOUT_STREAMS, asked
from pfedsam.deploy.jobs import CLIENT_FILE, CONFIG_FOLDER, JOB_ID, SERVER_FILE
from pfedsam.deploy.site_service import SITE_FOLDER
from pfedsam.engine.site_options import LOG
from pfedsam.federation.update import label

_COMMANDS: Final = frozenset(
    {
        TrainingTopic.DEPLOY,
        TrainingTopic.CHECK_RESOURCE,
        TrainingTopic.CANCEL_RESOURCE,
        TrainingTopic.START_JOB,
        TrainingTopic.CHECK_STATUS,
        TrainingTopic.NOTIFY_JOB_STATUS,
        TrainingTopic.ABORT,
        TrainingTopic.DELETE_RUN,
    }
)
"""Commands to the site's parent process: deploy, start, query and end the process of a job."""
_ABOUT_TASKS: Final = frozenset({ReservedTopic.END_RUN, ReservedTopic.ABORT_ASK})
"""Auxiliary messages to the process of a job: end the job, or end one task."""
_CHANNELS: Final = frozenset({CellChannel.CLIENT_MAIN, CellChannel.RETURN_ONLY})
"""Channels on which every request is accepted; commands on the first are limited to `_COMMANDS` after they are unpacked."""
_SIGNATURES: Final = (NVFLARE_SIG_FILE, NVFLARE_SUBMITTER_CRT_FILE)
_JOB_FILES: Final = frozenset(
    {
        *_SIGNATURES,
        f"{CONFIG_FOLDER}/",
        *(f"{CONFIG_FOLDER}/{name}" for name in (CLIENT_FILE, SERVER_FILE, *_SIGNATURES)),
    }
)
_MAX_JOB_BYTES: Final = 2**20
_LOG = get_logger(__name__)


class SiteGuard(FLComponent):  # type: ignore[misc]
    """Checks every request that arrives at the site; a component of NVFlare's client, named in the site's `local/resources.json`."""

    def __init__(self) -> None:
        """Called by NVFlare."""
        super().__init__()
        self._site = ""

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Install the message filter once networking is up, and limit the commands once they are registered."""
        if event_type == EventType.SYSTEM_BOOTSTRAP:
            client = fl_ctx.get_prop(FLContextKey.SITE_OBJ)
            self._site = client.client_name
            client.cell.core_cell.set_message_interceptor(self.look)
            if own := os.environ.get(SITE_FOLDER):
                add_file(Path(own) / LOG)
        elif event_type == EventType.SYSTEM_START:
            commands = fl_ctx.get_engine().admin_agent.processors
            for topic in set(commands) - _COMMANDS:
                del commands[topic]
            for topic, command in commands.items():
                commands[topic] = _Checked(command)

    def look(self, message: Message) -> Message | None:
        """Return None for a request that is allowed, else the refusal to send back."""
        if self._is_ours(message) or may_come_in(message):
            return None
        channel, topic = asked(message)
        _LOG.warning("refused a request of the coordinator: topic %s on channel %s", label(topic), label(channel))
        return make_reply(ReturnCode.UNAUTHENTICATED, error="a coordinator may not send this request")

    def _is_ours(self, message: Message) -> bool:
        """Whether the message comes from a process of this site: its connection has the site's name and the site's certificate."""
        endpoint = message.get_prop(MessagePropKey.ENDPOINT)
        name = message.get_prop(MessagePropKey.COMMON_NAME)
        return endpoint is not None and FQCN.split(str(endpoint.name))[0] == self._site and name in (None, self._site)


class _Checked:
    """One of NVFlare's commands at the site, which is carried out only for a job that is allowed."""

    def __init__(self, command: Any) -> None:  # noqa: ANN401 - NVFlare's `RequestProcessor`
        self._command = command

    def process(self, request: Command, engine: object) -> Command:
        """The reply of the command, or the refusal to send back."""
        problem = problem_of_job(request)
        if problem is None:
            return self._command.process(request, engine)
        _LOG.warning("refused a command of the coordinator (%s): %s", label(request.topic), problem)
        return error_reply(f"the site refuses this job: {problem}")


def problem_of_job(request: Command) -> str | None:
    """Why a command about a job is refused, or None if it is allowed."""
    job, meta = request.get_header(RequestHeader.JOB_ID), request.get_header(RequestHeader.JOB_META)
    if job and not (isinstance(job, str) and JOB_ID.fullmatch(job)):
        return "its id is not of the form that NVFlare gives to jobs"
    if isinstance(meta, dict) and meta.get(JobMetaKey.JOB_ID.value, job) != job:
        return "its description has another id"
    if request.topic == TrainingTopic.DEPLOY and not _is_study(request.body):
        return "its files are not those of a study"
    return None


def _is_study(archive: object) -> bool:
    """Whether the archive of a job's files contains the two configurations of a study with their signatures, and nothing else."""
    if not isinstance(archive, bytes):
        return False
    try:
        with zipfile.ZipFile(io.BytesIO(archive)) as files:
            entries = files.infolist()
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, RuntimeError):
        return False
    small = sum(entry.file_size for entry in entries) <= _MAX_JOB_BYTES
    return small and all(entry.filename in _JOB_FILES for entry in entries)


def may_come_in(message: Message) -> bool:
    """Whether the coordinator may send this message."""
    outer = message.get_header(MessageHeaderKey.CHANNEL), message.get_header(MessageHeaderKey.TOPIC)
    if outer in ABOUT_STREAMS:
        return True
    channel, topic = asked(message)
    if channel == CellChannel.CELLNET:  # its topic "bulk" can carry any other request
        return bool(topic == CellChannelTopic.Bye)
    return channel in _CHANNELS or (channel == CellChannel.AUX_COMMUNICATION and topic in _ABOUT_TASKS)
