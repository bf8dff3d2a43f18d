"""The message filter of a site: which requests are accepted from the coordinator.

NVFlare 2.9 is more permissive: it checks an authorisation only if the request itself asks for the check. So the coordinator's certificate
could read a site's system information, statistics and log, change its log level, or measure its network. A study needs none of that; the
lists below contain the requests that it needs.
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
"""Commands to the site's parent process: deploy, start, query and end the process of a job."""
_ABOUT_TASKS: Final = frozenset({ReservedTopic.END_RUN, ReservedTopic.ABORT_ASK})
"""Auxiliary messages to the process of a job: end the job, or end one task."""
_CHANNELS: Final = frozenset({CellChannel.CLIENT_MAIN, CellChannel.RETURN_ONLY})
"""Channels on which every request is accepted; commands on the first are limited to `_COMMANDS` after they are unpacked."""
_LOG = get_logger(__name__)


class SiteGuard(FLComponent):  # type: ignore[misc]
    """Checks every request that arrives at the site; a component of NVFlare's client, named in the site's `local/resources.json`."""

    def __init__(self) -> None:
        """Called by NVFlare."""
        super().__init__()
        self._site = ""

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Install the message filter once networking is up, and remove the commands that are not allowed once they are registered."""
        if event_type == EventType.SYSTEM_BOOTSTRAP:
            client = fl_ctx.get_prop(FLContextKey.SITE_OBJ)
            self._site = client.client_name
            client.cell.core_cell.set_message_interceptor(self.look)
        elif event_type == EventType.SYSTEM_START:
            commands = fl_ctx.get_engine().admin_agent.processors
            for topic in set(commands) - _COMMANDS:
                del commands[topic]

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


def may_come_in(message: Message) -> bool:
    """Whether the coordinator may send this message."""
    outer = message.get_header(MessageHeaderKey.CHANNEL), message.get_header(MessageHeaderKey.TOPIC)
    if outer in ABOUT_STREAMS:
        return True
    channel, topic = asked(message)
    if channel == CellChannel.CELLNET:  # its topic "bulk" can carry any other request
        return bool(topic == CellChannelTopic.Bye)
    return channel in _CHANNELS or (channel == CellChannel.AUX_COMMUNICATION and topic in _ABOUT_TASKS)
