"""What may come in under the coordinator's certificate: what it takes to run a job at a site, and none of NVFlare's other commands."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("nvflare")
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.fuel.f3.cellnet.defs import MessageHeaderKey, MessagePropKey, ReturnCode
from nvflare.fuel.f3.message import Message
from nvflare.fuel.f3.streaming.stream_const import StreamHeaderKey
from nvflare.private.defs import SysCommandTopic, TrainingTopic

from pfedsam.deploy.limits import MIN_MESSAGE_BYTES
from pfedsam.deploy.site_guard import SiteGuard
from pfedsam.deploy.site_kit import install_kit

JOB = "0262a12c-665f-4107-8981-624edc5aa0c9"
STREAM = "sm__STREAM"


@pytest.fixture
def guard() -> SiteGuard:
    guard, context = SiteGuard(), FLContext()
    cell = SimpleNamespace(core_cell=SimpleNamespace(set_message_interceptor=lambda look: None))
    context.set_prop(FLContextKey.SITE_OBJ, SimpleNamespace(client_name="north", cell=cell), private=True)
    guard.handle_event(EventType.SYSTEM_BOOTSTRAP, context)
    return guard


def request(
    channel: str, topic: str, *, via: str = "server", name: str | None = None, inner: tuple[str, str] | None = None
) -> Message:
    headers = {MessageHeaderKey.CHANNEL: channel, MessageHeaderKey.TOPIC: topic}
    if inner:
        headers |= {StreamHeaderKey.CHANNEL: inner[0], StreamHeaderKey.TOPIC: inner[1]}
    message = Message(headers)
    message.set_prop(MessagePropKey.ENDPOINT, SimpleNamespace(name=via))
    if name:
        message.set_prop(MessagePropKey.COMMON_NAME, name)
    return message


@pytest.mark.parametrize(
    "message",
    [
        request("admin", "train.deploy"),
        request("return_only", "x"),
        request("aux_communication", "__end_run__"),
        request("cellnet.channel", "bye"),
        request(STREAM, "sm__ACK"),
        request(STREAM, "sm__DATA", inner=("return_only", "server_command:get_task")),
        request("server_command", "get_task", via=f"north.{JOB}", name="north"),
        request("client_command", "check_status", via=f"north.{JOB}"),
    ],
)
def test_a_jobs_work_passes(guard: SiteGuard, message: Message) -> None:
    assert guard.look(message) is None


@pytest.mark.parametrize(
    "message",
    [
        *(request("_net_manager", topic) for topic in ("speed", "stop", "config_vars", "process_info", "msg_stats")),
        request("client_command", "show_stats"),
        request("client_command", "configure_job_log"),
        request("aux_communication", "fed_event"),
        request("cellnet.channel", "bulk"),
        request(STREAM, "sm__DATA"),
        request(STREAM, "sm__DATA", inner=("client_command", "show_stats")),
        request("server_command", "get_task", via=f"north.{JOB}", name="south"),
        request("server_command", "get_task", via=f"northern.{JOB}", name="north"),
    ],
)
def test_all_else_is_refused(guard: SiteGuard, message: Message) -> None:
    answer = guard.look(message)
    assert answer is not None
    assert answer.get_header(MessageHeaderKey.RETURN_CODE) == ReturnCode.UNAUTHENTICATED


def test_commands_that_no_study_takes_are_not_there(guard: SiteGuard) -> None:
    topics = [*vars(SysCommandTopic).values(), *vars(TrainingTopic).values()]
    agent = SimpleNamespace(processors={topic: object() for topic in topics if isinstance(topic, str)})
    context = FLContext()
    context.set_prop("__engine__", SimpleNamespace(admin_agent=agent), private=True)
    guard.handle_event(EventType.SYSTEM_START, context)
    for gone in ("sys.info", "sys.report_env", "sys.shell", "sys.configure_site_log", "train.configure_job_log"):
        assert gone not in agent.processors
    assert {"train.deploy", "train.start_job", "train.abort", "train.check_status"} <= set(agent.processors)


def test_a_kit_is_installed_with_the_guard_the_limits_and_a_loopback_that_asks_for_a_certificate(
    kits: Path, tmp_path: Path
) -> None:
    install_kit(kits / "kits" / "north.zip", tmp_path / "nvflare")
    local = tmp_path / "nvflare" / "local"
    components = json.loads((local / "resources.json").read_text())["components"]
    assert [one["path"] for one in components if one["id"] == "guard"] == ["pfedsam.deploy.site_guard.SiteGuard"]
    connections = json.loads((local / "comm_config.json").read_text())
    assert connections["internal"]["resources"]["connection_security"] == "mtls"
    assert connections["streaming_max_blob_size"] == MIN_MESSAGE_BYTES
