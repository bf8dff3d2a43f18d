"""The coordinator's door: what a message may ask for that came in under a site's certificate, whatever NVFlare would answer.

NVFlare 2.9 lets every certificate of a federation log in at its control interface (a site's has no role there, but commands that
ask for none answer it), and carries a member's messages of its cell network, `stop` among them, to every process of every party.
The two lists below are what a site's work takes; the coordinator lets in nothing else.
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
"""Channel and topic of what a site may ask of NVFlare's server."""
_TO_JOB: Final = {
    (CellChannel.SERVER_COMMAND, ServerCommandNames.GET_TASK),
    (CellChannel.SERVER_COMMAND, ServerCommandNames.SUBMIT_UPDATE),
    (CellChannel.AUX_COMMUNICATION, ReservedTopic.SYNC_RUNNER),
    (CellChannel.AUX_COMMUNICATION, ReservedTopic.JOB_HEART_BEAT),
    (CellChannel.AUX_COMMUNICATION, ReservedTopic.TASK_CHECK),
    (CellChannel.CELLNET, CellChannelTopic.Bye),
}
"""Channel and topic of what it may ask of the process of a job."""
ABOUT_STREAMS: Final = {(STREAM_CHANNEL, STREAM_ACK_TOPIC), (STREAM_CHANNEL, STREAM_ERROR_TOPIC)}
"""How far a stream from the coordinator came."""
_JOB, _CODE = JobFailureMsgKey.JOB_ID, JobFailureMsgKey.CODE
_LOG = get_logger(__name__)


class CoordinatorGuard(FLComponent):  # type: ignore[misc]
    """Looks at every request that comes to the coordinator's machine; NVFlare's server holds one."""

    def __init__(self, own: tuple[str, ...] | list[str]) -> None:
        """For NVFlare.

        Args:
            own: the common names of the coordinator's own certificates, which may ask for anything.
        """
        super().__init__()
        self._own = frozenset(own)

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Take post as soon as the server has its network."""
        if event_type == EventType.SYSTEM_BOOTSTRAP:
            server = fl_ctx.get_prop(FLContextKey.SITE_OBJ)
            server.cell.core_cell.set_message_interceptor(self.look)
            server.cell.register_request_cb(
                channel=CellChannel.SERVER_MAIN,
                topic=CellChannelTopic.REPORT_JOB_FAILURE,
                cb=job_failure,  # by a plain function: NVFlare asks for its name
                server=server,
            )

    def look(self, message: Message) -> Message | None:
        """None for a request that may pass, else the refusal that goes back at once."""
        name = message.get_prop(MessagePropKey.COMMON_NAME)
        # Without a name it came over the machine's own loopback, from the process of a job.
        if not name or name in self._own or _may_pass(message, name):
            return None
        channel, topic = asked(message)
        _LOG.warning("refused: %s asked for %s of %s", label(name), label(topic), label(channel))
        return make_reply(ReturnCode.UNAUTHENTICATED, error="a site may not ask for this")


def job_failure(request: Message, server: Any) -> Message:  # noqa: ANN401 - NVFlare's server
    """Take a site's word that its process of a job has ended for what it is: that site is out of the job.

    NVFlare 2.9 ends the job for every site when one of them says so; here the job's process is told, as for a site that has gone.
    """
    client = server.client_manager.clients.get(request.get_header(CellMessageHeaderKeys.TOKEN))
    payload = request.payload
    job, code = (payload.get(key) for key in (_JOB, _CODE)) if isinstance(payload, dict) else (None, None)
    if client is None or not isinstance(job, str):
        return make_reply(ReturnCode.UNAUTHENTICATED, error="a site says this of its own job")
    if job in server.engine.run_processes and code:
        _LOG.warning("%s says that its process of the job has ended; the job goes on without it", label(client.name))
        server.engine.notify_dead_job(job, client.name, "it reported a failure")
    server.engine.job_runner.resolve_client_outcome(job, client.name)
    return make_reply(ReturnCode.OK)


def _may_pass(message: Message, name: str) -> bool:
    """Whether the site called `name` may ask for this: in its own name, of the coordinator, by a topic of its work."""
    origin = FQCN.split(str(message.get_header(MessageHeaderKey.ORIGIN)))
    server, *job = FQCN.split(str(message.get_header(MessageHeaderKey.DESTINATION)))
    if origin[0] != name or server != FQCN.ROOT_SERVER:
        return False
    outer = message.get_header(MessageHeaderKey.CHANNEL), message.get_header(MessageHeaderKey.TOPIC)
    if outer in ABOUT_STREAMS:
        return True
    channel, topic = asked(message)
    if channel == CellChannel.RETURN_ONLY:  # a reply to what the coordinator asked
        return True
    return (channel, topic) in (_TO_JOB if job else _TO_SERVER)


def asked(message: Message) -> tuple[str | None, str | None]:
    """Channel and topic of a request, those of what it carries where it is a part of a stream."""
    channel, topic = message.get_header(MessageHeaderKey.CHANNEL), message.get_header(MessageHeaderKey.TOPIC)
    if channel == STREAM_CHANNEL:
        return message.get_header(StreamHeaderKey.CHANNEL), message.get_header(StreamHeaderKey.TOPIC)
    return channel, topic
