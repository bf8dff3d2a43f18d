"""The message filter of the coordinator: which requests are accepted from a connection with a site's certificate.

NVFlare 2.9 is more permissive: every certificate of a federation can log in to its control interface (a site's certificate has no role
there, but some commands require none), and messages of its cell network, `stop` among them, are forwarded to every process of every party.
The two lists below contain the requests that a site needs for its work; the coordinator refuses all others.
"""

from typing import Any, Final

from nvflare.apis.event_type import EventType
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_constant import FLContextKey, ReservedTopic, ServerCommandNames
from nvflare.apis.fl_context import FLContext
from nvflare.fuel.f3.cellnet.defs import CellChannel, CellChannelTopic, MessageHeaderKey, MessagePropKey, ReturnCode
from nvflare.fuel.f3.cellnet.fqcn import FQCN
from nvflare.fuel.f3.cellnet.utils import make_reply
from nvflare.fuel.f3.message import Message
from nvflare.fuel.f3.streaming.stream_const import STREAM_ACK_TOPIC, STREAM_CHANNEL, STREAM_ERROR_TOPIC, StreamHeaderKey
from nvflare.private.defs import CellMessageHeaderKeys, JobFailureMsgKey

from pfedsam.core.log import get_logger
from pfedsam.federation.update import label

_TO_SERVER: Final = {
    (CellChannel.SERVER_MAIN, CellChannelTopic.Challenge),
    (CellChannel.SERVER_MAIN, CellChannelTopic.Register),
    (CellChannel.SERVER_MAIN, CellChannelTopic.HEART_BEAT),
    (CellChannel.SERVER_MAIN, CellChannelTopic.Quit),
    (CellChannel.SERVER_MAIN, CellChannelTopic.REPORT_JOB_FAILURE),  # answered here, see `job_failure`
    (CellChannel.CELLNET, CellChannelTopic.Bye),
}
"""Channel and topic of the requests that a site may send to NVFlare's server."""
_TO_JOB: Final = {
    (CellChannel.SERVER_COMMAND, ServerCommandNames.GET_TASK),
    (CellChannel.SERVER_COMMAND, ServerCommandNames.SUBMIT_UPDATE),
    (CellChannel.AUX_COMMUNICATION, ReservedTopic.SYNC_RUNNER),
    (CellChannel.AUX_COMMUNICATION, ReservedTopic.JOB_HEART_BEAT),
    (CellChannel.AUX_COMMUNICATION, ReservedTopic.TASK_CHECK),
    (CellChannel.CELLNET, CellChannelTopic.Bye),
}
"""Channel and topic of the requests that a site may send to the process of a job."""
ABOUT_STREAMS: Final = {(STREAM_CHANNEL, STREAM_ACK_TOPIC), (STREAM_CHANNEL, STREAM_ERROR_TOPIC)}
"""Channel and topic of the messages that acknowledge a stream or report that it failed."""
_JOB, _CODE = JobFailureMsgKey.JOB_ID, JobFailureMsgKey.CODE
_LOG = get_logger(__name__)


class CoordinatorGuard(FLComponent):  # type: ignore[misc]
    """Checks every request that arrives at the coordinator; a component of NVFlare's server."""

    def __init__(self, own: tuple[str, ...] | list[str]) -> None:
        """Called by NVFlare.

        Args:
            own: the common names of the coordinator's own certificates, which may send any request.
        """
        super().__init__()
        self._own = frozenset(own)

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Install the message filter once NVFlare's networking is up."""
        if event_type == EventType.SYSTEM_BOOTSTRAP:
            server = fl_ctx.get_prop(FLContextKey.SITE_OBJ)
            server.cell.core_cell.set_message_interceptor(self.look)
            server.cell.register_request_cb(
                channel=CellChannel.SERVER_MAIN,
                topic=CellChannelTopic.REPORT_JOB_FAILURE,
                cb=job_failure,  # a plain function, because NVFlare reads its `__name__`
                server=server,
            )

    def look(self, message: Message) -> Message | None:
        """Return None for a request that is allowed, else the refusal to send back."""
        name = message.get_prop(MessagePropKey.COMMON_NAME)
        # A message without a name came over this machine's loopback, from the process of a job.
        if not name or name in self._own or _may_pass(message, name):
            return None
        channel, topic = asked(message)
        _LOG.warning("refused a request of site %s: topic %s on channel %s", label(name), label(topic), label(channel))
        return make_reply(ReturnCode.UNAUTHENTICATED, error="a site may not send this request")


def job_failure(request: Message, server: Any) -> Message:  # noqa: ANN401 - NVFlare's server
    """Handle a site's report that its process of a job has failed: only that site leaves the job.

    NVFlare 2.9 would end the job for every site; here the job's process is notified as if that site had disconnected.
    """
    client = server.client_manager.clients.get(request.get_header(CellMessageHeaderKeys.TOKEN))
    payload = request.payload
    job, code = (payload.get(key) for key in (_JOB, _CODE)) if isinstance(payload, dict) else (None, None)
    if client is None or not isinstance(job, str):
        return make_reply(
            ReturnCode.UNAUTHENTICATED,
            error="the report of a failure must come from a site of the job and contain the job's id",
        )
    if job in server.engine.run_processes and code:
        _LOG.warning(
            "site %s reports that its process of the job has ended; the job continues without it", label(client.name)
        )
        server.engine.notify_dead_job(job, client.name, "it reported a failure")
    server.engine.job_runner.resolve_client_outcome(job, client.name)
    return make_reply(ReturnCode.OK)


def _may_pass(message: Message, name: str) -> bool:
    """Whether the site `name` may send this: under its own name, to the coordinator, with a topic that is in the lists."""
    origin = FQCN.split(str(message.get_header(MessageHeaderKey.ORIGIN)))
    server, *job = FQCN.split(str(message.get_header(MessageHeaderKey.DESTINATION)))
    if origin[0] != name or server != FQCN.ROOT_SERVER:
        return False
    outer = message.get_header(MessageHeaderKey.CHANNEL), message.get_header(MessageHeaderKey.TOPIC)
    if outer in ABOUT_STREAMS:
        return True
    channel, topic = asked(message)
    if channel == CellChannel.RETURN_ONLY:  # a reply to a request of the coordinator
        return True
    return (channel, topic) in (_TO_JOB if job else _TO_SERVER)


def asked(message: Message) -> tuple[str | None, str | None]:
    """Channel and topic of a request; for a part of a stream, those of the request that the stream carries."""
    channel, topic = message.get_header(MessageHeaderKey.CHANNEL), message.get_header(MessageHeaderKey.TOPIC)
    if channel == STREAM_CHANNEL:
        return message.get_header(StreamHeaderKey.CHANNEL), message.get_header(StreamHeaderKey.TOPIC)
    return channel, topic
