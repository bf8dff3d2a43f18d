"""The site's door: what the coordinator may ask of NVFlare's processes here, whatever NVFlare would answer.

NVFlare 2.9 asks for an authorisation only where the request itself says that it needs one. So the coordinator's certificate could ask a
site for its system information, its statistics, its log, a change of its log level, or to measure its network. None of that is needed
to run a study; the lists below are what is.
"""

from typing import Final

from nvflare.apis.event_type import EventType
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_constant import FLContextKey, ReservedTopic
from nvflare.apis.fl_context import FLContext
from nvflare.fuel.f3.cellnet.defs import CellChannel, CellChannelTopic, MessageHeaderKey, MessagePropKey, ReturnCode
from nvflare.fuel.f3.cellnet.fqcn import FQCN
from nvflare.fuel.f3.cellnet.utils import make_reply
from nvflare.fuel.f3.message import Message
from nvflare.private.defs import TrainingTopic

from pfedsam.core.log import get_logger
from pfedsam.deploy.guard import ABOUT_STREAMS, asked
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
"""Commands for the site's parent process: to deploy, start, look for and end the process of a job."""
_ABOUT_TASKS: Final = frozenset({ReservedTopic.END_RUN, ReservedTopic.ABORT_ASK})
"""Side messages for the process of a job: its end, or that of one task."""
_CHANNELS: Final = frozenset({CellChannel.CLIENT_MAIN, CellChannel.RETURN_ONLY})
"""Channels whose every request may come in; commands on the first are held to `_COMMANDS` once they are unpacked."""
_LOG = get_logger(__name__)


class SiteGuard(FLComponent):  # type: ignore[misc]
    """Looks at every request that comes to the site's machine; NVFlare's client holds one, by the site's own `local/resources.json`."""

    def __init__(self) -> None:
        """For NVFlare."""
        super().__init__()
        self._site = ""

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Take post as soon as the client has its network, and take its commands away once it has them."""
        if event_type == EventType.SYSTEM_BOOTSTRAP:
            client = fl_ctx.get_prop(FLContextKey.SITE_OBJ)
            self._site = client.client_name
            client.cell.core_cell.set_message_interceptor(self.look)
        elif event_type == EventType.SYSTEM_START:
            commands = fl_ctx.get_engine().admin_agent.processors
            for topic in set(commands) - _COMMANDS:
                del commands[topic]

    def look(self, message: Message) -> Message | None:
        """None for a request that may pass, else the refusal that goes back at once."""
        if self._is_ours(message) or may_come_in(message):
            return None
        channel, topic = asked(message)
        _LOG.warning("refused: the coordinator asked for %s of %s", label(topic), label(channel))
        return make_reply(ReturnCode.UNAUTHENTICATED, error="a coordinator may not ask for this")

    def _is_ours(self, message: Message) -> bool:
        """Whether it comes from a process of this site, by its connection: with the site's own certificate, and under its name."""
        endpoint = message.get_prop(MessagePropKey.ENDPOINT)
        name = message.get_prop(MessagePropKey.COMMON_NAME)
        return endpoint is not None and FQCN.split(str(endpoint.name))[0] == self._site and name in (None, self._site)


def may_come_in(message: Message) -> bool:
    """Whether the coordinator may ask for this."""
    outer = message.get_header(MessageHeaderKey.CHANNEL), message.get_header(MessageHeaderKey.TOPIC)
    if outer in ABOUT_STREAMS:
        return True
    channel, topic = asked(message)
    if channel == CellChannel.CELLNET:  # its "bulk" may carry any other request
        return bool(topic == CellChannelTopic.Bye)
    return channel in _CHANNELS or (channel == CellChannel.AUX_COMMUNICATION and topic in _ABOUT_TASKS)
