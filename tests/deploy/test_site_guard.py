"""Under the coordinator's certificate only those requests are accepted that a job at a site needs, and no other commands of NVFlare."""

import io
import json
import logging
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("nvflare")
from cryptography.hazmat.primitives.asymmetric import rsa
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.fuel.f3.cellnet.defs import MessageHeaderKey, MessagePropKey, ReturnCode
from nvflare.fuel.f3.message import Message
from nvflare.fuel.f3.streaming.stream_const import StreamHeaderKey
from nvflare.fuel.utils.zip_utils import zip_directory_to_bytes
from nvflare.lighter.utils import sign_folders
from nvflare.private.admin_defs import Message as Command
from nvflare.private.defs import RequestHeader, SysCommandTopic, TrainingTopic

from pfedsam.deploy.jobs import write_job
from pfedsam.deploy.limits import MIN_MESSAGE_BYTES
from pfedsam.deploy.site_guard import SiteGuard
from pfedsam.deploy.site_kit import install_kit
from pfedsam.deploy.site_service import SITE_FOLDER

JOB = "0262a12c-665f-4107-8981-624edc5aa0c9"
STREAM = "sm__STREAM"


@pytest.fixture
def guard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SiteGuard]:
    monkeypatch.setenv(SITE_FOLDER, str(tmp_path))
    root = logging.getLogger("pfedsam")
    kept = list(root.handlers)
    guard, context = SiteGuard(), FLContext()
    cell = SimpleNamespace(core_cell=SimpleNamespace(set_message_interceptor=lambda look: None))
    context.set_prop(FLContextKey.SITE_OBJ, SimpleNamespace(client_name="north", cell=cell), private=True)
    guard.handle_event(EventType.SYSTEM_BOOTSTRAP, context)
    yield guard
    for handler in [one for one in root.handlers if one not in kept]:
        root.removeHandler(handler)
        handler.close()


def test_a_refused_request_is_named_in_the_sites_own_log(guard: SiteGuard, tmp_path: Path) -> None:
    assert guard.look(request("aux_communication", "read_log")) is not None
    said = "WARNING pfedsam.deploy.site_guard: refused a request of the coordinator: topic read_log on channel aux_communication"
    assert said in (tmp_path / "site.log").read_text()


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


def command(topic: str, job: str | None = JOB, *, meta: str | None = JOB, body: object = b"") -> Command:
    request = Command(topic=topic, body=body)
    request.set_header(RequestHeader.JOB_ID, job)
    request.set_header(RequestHeader.JOB_META, {"job_id": meta})
    return request


def answered(request: Command) -> bool:
    """Whether the command of a request is carried out at a site."""
    asked: list[Command] = []
    processor = SimpleNamespace(process=lambda request, engine: asked.append(request))
    agent = SimpleNamespace(processors={request.topic: processor})
    context = FLContext()
    context.set_prop("__engine__", SimpleNamespace(admin_agent=agent), private=True)
    SiteGuard().handle_event(EventType.SYSTEM_START, context)
    agent.processors[request.topic].process(request, None)
    return bool(asked)


def archive(folder: Path, **more: str) -> bytes:
    """A study's job as NVFlare sends it to a site, signed, with further files."""
    app = write_job(folder / "job", "0123456789abcdef", ["north"]) / "app"
    for name, text in more.items():
        path = app / name.replace("__", "/").replace("_py", ".py").replace("_json", ".json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    sign_folders(str(app), rsa.generate_private_key(65537, 2048), str(app / "config" / "config_fed_client.json"))
    return bytes(zip_directory_to_bytes(str(app), ""))


@pytest.mark.parametrize(
    "topic", ["train.deploy", "train.start_job", "train.delete_run", "train.abort", "train.notify_job_status"]
)
@pytest.mark.parametrize("job", ["startup", "local", "x", "..", f"{JOB}/../local", f"{JOB}\n", JOB.upper(), 7])
def test_a_job_with_the_name_of_a_folder_in_the_workspace_is_refused(topic: str, job: Any, tmp_path: Path) -> None:
    assert answered(command(topic, body=archive(tmp_path)))
    assert not answered(command(topic, job, meta=job, body=archive(tmp_path)))


def test_a_job_whose_description_is_that_of_another_job_is_refused() -> None:
    assert not answered(command("train.start_job", meta="1262a12c-665f-4107-8981-624edc5aa0c9"))


def test_a_command_about_no_job_is_answered() -> None:
    request = Command(topic="train.check_status", body="")
    assert answered(request)


@pytest.mark.parametrize(
    "name", ["custom__x_py", "config__resources_json", "config__custom__x_py", "x_py", "resources_json"]
)
def test_a_job_that_brings_further_files_is_refused(tmp_path: Path, name: str) -> None:
    assert not answered(command("train.deploy", body=archive(tmp_path, **{name: "{}"})))


@pytest.mark.parametrize("body", [b"", b"PK", "text", None, b"PK\x05\x06" + b"\xff" * 18])
def test_a_job_without_a_readable_archive_is_refused(body: object) -> None:
    assert not answered(command("train.deploy", body=body))


def test_a_job_with_a_huge_file_is_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as bomb:
        bomb.writestr("config/config_fed_client.json", " " * 10_000_000)
    assert not answered(command("train.deploy", body=buffer.getvalue()))


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
