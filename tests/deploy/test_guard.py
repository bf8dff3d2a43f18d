"""Under a site's certificate only those requests are accepted that a study was seen to need, and no others of NVFlare."""

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
from nvflare.private.defs import CellMessageHeaderKeys

from pfedsam.deploy.guard import CoordinatorGuard, job_failure
from pfedsam.deploy.provision import ADMIN, write_server_policy

JOB = "0262a12c-665f-4107-8981-624edc5aa0c9"
STREAM = "sm__STREAM"


def request(
    channel: str,
    topic: str,
    *,
    to: str = "server",
    name: str | None = "north",
    origin: str = "north",
    inner: tuple[str, str] | None = None,
) -> Message:
    """A request as NVFlare hands it to an interceptor; `inner` is what a part of a stream says that it belongs to."""
    headers = {MessageHeaderKey.CHANNEL: channel, MessageHeaderKey.TOPIC: topic}
    headers |= {MessageHeaderKey.DESTINATION: to, MessageHeaderKey.ORIGIN: origin}
    if inner:
        headers |= {StreamHeaderKey.CHANNEL: inner[0], StreamHeaderKey.TOPIC: inner[1]}
    message = Message(headers)
    if name:
        message.set_prop(MessagePropKey.COMMON_NAME, name)
    return message


def refused(message: Message) -> bool:
    answer = CoordinatorGuard([ADMIN]).look(message)
    assert answer is None or answer.get_header(MessageHeaderKey.RETURN_CODE) == ReturnCode.UNAUTHENTICATED
    return answer is not None


# Every request of two sites in a study of four rounds, as it was seen at the coordinator's door, and of one that came back.
WORK = [
    request("task", topic) for topic in ("challenge", "register", "heart_beat", "quit", "report_job_failure")
] + [
    request("cellnet.channel", "bye", origin=f"north.{JOB}"),
    request(STREAM, "sm__ACK", to=f"server.{JOB}", origin=f"north.{JOB}"),
    request(STREAM, "sm__ERROR", to=f"server.{JOB}", inner=("aux_communication", "__end_run__")),
    request(STREAM, "sm__DATA", to=f"server.{JOB}", origin=f"north.{JOB}", inner=("return_only", "aux_communication:x")),
    *(
        request(STREAM, "sm__DATA", to=f"server.{JOB}", origin=f"north.{JOB}", inner=inner)
        for inner in (
            ("aux_communication", "__sync_runner__"),
            ("aux_communication", "__job_heartbeat__"),
            ("aux_communication", "__task_check__"),
            ("server_command", "get_task"),
            ("server_command", "submit_update"),
        )
    ),
]  # fmt: skip


@pytest.mark.parametrize("message", WORK, ids=lambda m: "-".join(map(str, m.headers.values())))
def test_a_sites_work_passes(message: Message) -> None:
    assert not refused(message)


@pytest.mark.parametrize(
    "message",
    [
        request("hci_channel", "command"),
        request(STREAM, "sm__DATA", inner=("hci_channel", "command")),
        request(STREAM, "sm__DATA", inner=("aux_communication", "ObjectStreamer.Request")),
        request(STREAM, "sm__DATA", inner=("", "")),
        request(STREAM, "sm__DATA"),
        request(STREAM, "sm__DATA", inner=(STREAM, "sm__ACK")),
        request(STREAM, "sm__DATA", inner=(STREAM, "sm__DATA")),
        request(STREAM, "sm__CERT", inner=("hci_channel", "command")),
        *(request("_net_manager", topic, to=to) for topic in ("stop", "stop_cell", "cells") for to in ("server", "south")),
        request("_net_manager", "stop", to=f"server.{JOB}"),
        request("server_parent_listener", "update_run_status"),
        request("server_command", "get_task"),
        request("server_command", "show_stats", to=f"server.{JOB}"),
        request("admin", "train.abort", to="south"),
        request("cellnet.channel", "bulk"),  # may carry any other request
        request("cellnet.channel", "bye", to="south"),
        request(STREAM, "sm__DATA", to=f"south.{JOB}", inner=("server_command", "submit_update")),
        request("task", "register", origin="south"),
        request("task", "register", origin="_admin_5f5b64a3-5438-4a62-8a86-ee22c3f89a71"),
        request("task", "register", origin="northern"),
        request("task", "register", to="serverside"),
    ],
    ids=lambda m: "-".join(map(str, m.headers.values())),
)  # fmt: skip
def test_all_else_is_refused(message: Message) -> None:
    assert refused(message)


def test_the_coordinators_own_may_ask_for_anything() -> None:
    assert not refused(request("hci_channel", "command", name=ADMIN, origin="_admin_x"))
    assert not refused(request("server_parent_listener", "update_run_status", name=None, origin=f"server.{JOB}"))


def test_the_guard_takes_post_as_the_server_starts() -> None:
    posted = []

    class Core:
        def set_message_interceptor(self, look: object) -> None:
            posted.append(look)

    cell = {"core_cell": Core(), "register_request_cb": lambda self, cb, **given: posted.append(cb.__name__)}
    server = type("Server", (), {"cell": type("Cell", (), cell)()})()
    guard, context = CoordinatorGuard([ADMIN]), FLContext()
    context.set_prop(FLContextKey.SITE_OBJ, server, private=True)
    guard.handle_event(EventType.SYSTEM_START, context)
    assert posted == []
    guard.handle_event(EventType.SYSTEM_BOOTSTRAP, context)
    assert posted == [guard.look, "job_failure"]


class Engine:
    """NVFlare's server engine and job runner, as far as a report of a failure needs them."""

    def __init__(self) -> None:
        self.run_processes, self.job_runner = {JOB: {}}, self
        self.dead: list[tuple[str, str]] = []
        self.resolved: list[tuple[str, str]] = []

    def notify_dead_job(self, job: str, site: str, reason: str) -> None:
        self.dead.append((job, site))

    def resolve_client_outcome(self, job: str, site: str) -> None:
        self.resolved.append((job, site))

    def fail_run(self, *args: object) -> None:
        pytest.fail("the job was ended for every site")

    stop_run = fail_run


@pytest.mark.parametrize(
    ("payload", "dead"),
    [
        ({"job_id": JOB, "code": 103, "reason": "Jane Doe"}, [(JOB, "north")]),
        ({"job_id": JOB, "code": 0}, []),
        ({"job_id": "another", "code": 103}, []),
        ({"job_id": ["x"], "code": 103}, []),
        ("Jane Doe", []),
    ],
)
def test_a_site_that_reports_a_failure_is_out_by_itself_and_ends_no_job(payload: object, dead: list) -> None:
    engine = Engine()
    clients = SimpleNamespace(clients={"token": SimpleNamespace(name="north")})
    server = SimpleNamespace(client_manager=clients, engine=engine)
    message = Message({CellMessageHeaderKeys.TOKEN: "token"}, payload)
    job_failure(message, server=server)
    assert engine.dead == dead
    stranger = Message({CellMessageHeaderKeys.TOKEN: "none"}, payload)
    assert job_failure(stranger, server=server).get_header(MessageHeaderKey.RETURN_CODE) == ReturnCode.UNAUTHENTICATED
    assert engine.dead == dead


def test_every_start_of_the_coordinator_posts_one_guard(kits: Path) -> None:
    for _ in range(2):
        write_server_policy(kits / "server")
    components = json.loads((kits / "server" / "local" / "resources.json").read_text())["components"]
    assert [one["args"] for one in components if one["id"] == "guard"] == [{"own": [ADMIN, "localhost"]}]
