"""Rows 4 and 5 of docs/reliability.md: the messages between the machines are recorded and read. The tests have all keys."""

import asyncio
import base64
import csv
import json
import ssl
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pydicom
import pytest
from PIL import Image

pytest.importorskip("nvflare")
from nvflare.fuel.f3.drivers.grpc.streamer_pb2 import Frame
from nvflare.fuel.f3.sfm.prefix import PREFIX_LEN, Prefix

from pfedsam.core.errors import StoreError
from pfedsam.federation.ledger import Ledger
from pfedsam.federation.manifest import read_manifest
from pfedsam.federation.messages import reply_from_wire
from pfedsam.federation.site_policy import message_hash
from pfedsam.federation.site_store import SiteStore
from pfedsam.federation.update import decode

pytestmark = pytest.mark.system
PATH, FILE, PATIENT = "Ward-Jane-Path-1961", "Jane-File-1961", "Doe^Jane^Column^1961"
HEADER, EXCEPTION, METRIC = "Doe^Jane^Header^1961", "Jane-Exception-1961", "Jane-Metric-1961"
PIXELS = np.random.default_rng(7).integers(0, 256, (64, 3), dtype=np.uint8)
EXPERT = np.random.default_rng(8).normal(0, 0.1, 16).astype(np.float32)
TOPICS = {
    *(("task", topic) for topic in ("challenge", "register", "heart_beat", "quit", "report_job_failure")),
    *(("aux_communication", topic) for topic in ("__sync_runner__", "__job_heartbeat__", "__task_check__")),
    *(("server_command", topic) for topic in ("get_task", "submit_update")),
    *(("sm__STREAM", topic) for topic in ("sm__ACK", "sm__ERROR")),  # receipts
    *(("admin", "admin"), ("cellnet.channel", "bye")),  # answers, a goodbye
}
"""All that NVFlare's processes of a site say."""

SPOILER = """
import importlib.abc, importlib.util, sys

class Spoiler(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module
        def exec_module(module):
            load(module)
            spoil(module)
        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Spoiler())
"""
PLANT = (
    f"""
MODULE, EXPERT = "pfedsam.experiment.build", {EXPERT.tolist()}
def spoil(module):
    import torch
    start = module.BuiltModel.start
    def planted(self, kind):
        values = start(self, kind)
        if kind == "local":
            values["experts.1.down"].view(-1)[:16] = torch.tensor(EXPERT)
        return values
    module.BuiltModel.start = planted
"""
    + SPOILER
)
"""Puts a pattern into the experts that a site begins with."""
BABBLE = (
    f"""
MODULE = "pfedsam.engine.site_study"
def spoil(module):
    from dataclasses import replace
    train = module.SiteStudy._train
    def spoiled(self, request, shared):
        if request.round == 1:
            raise ZeroDivisionError("no such patient: {EXCEPTION}")
        reply = train(self, request, shared)
        return replace(reply, scalar_metrics={{**reply.scalar_metrics, "dice_{METRIC}": 0.5}})
    module.SiteStudy._train = spoiled
"""
    + SPOILER
)
"""Makes a site's code name a metric after a patient, and fail with one in a text that nobody expects."""


@dataclass(frozen=True)
class Said:
    """One message of NVFlare's cell network."""

    channel: str
    topic: str
    stream: int | None
    size: int
    payload: bytes


class Wiretap:
    """Stands between a site and the coordinator with the keys of both, and keeps all that the site says."""

    def __init__(self, port: int, server: Path, site: Path) -> None:
        self.heard: list[bytearray] = []
        inside, outside = (
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER),
            ssl.create_default_context(cafile=server / "rootCA.pem"),
        )
        inside.load_cert_chain(server / "server.crt", server / "server.key")
        inside.load_verify_locations(server / "rootCA.pem")
        inside.verify_mode = ssl.CERT_REQUIRED
        outside.load_cert_chain(site / "client.crt", site / "client.key")
        for context in (inside, outside):
            context.set_alpn_protocols(["h2"])
        self._upstream, self._outside = port, outside
        self._loop, ready = asyncio.new_event_loop(), threading.Event()

        def listen() -> None:
            made = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=inside))
            self.port = made.sockets[0].getsockname()[1]
            ready.set()
            self._loop.run_forever()

        threading.Thread(target=listen, daemon=True).start()
        assert ready.wait(10)
        config = site / "fed_client.json"
        content = json.loads(config.read_text())
        content["servers"][0]["service"]["target"] = f"localhost:{self.port}"
        config.write_text(json.dumps(content))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            back, forth = await asyncio.open_connection("localhost", self._upstream, ssl=self._outside)
        except OSError:  # the coordinator is not up yet
            writer.close()
            return
        kept = bytearray()
        self.heard.append(kept)
        await asyncio.gather(_pump(reader, forth, kept), _pump(back, writer, bytearray()))

    def said(self) -> list[Said]:
        """Every message that left the site, in each connection's order."""
        return [_message(data) for heard in self.heard for data in _grpc_messages(bytes(heard))]


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, kept: bytearray) -> None:
    try:
        while data := await reader.read(65536):
            kept += data
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()


def _grpc_messages(raw: bytes) -> Iterator[bytes]:
    """The messages in an HTTP/2 connection (RFC 9113 section 4.1, DATA frames; gRPC over HTTP/2, length-prefixed messages)."""
    streams: dict[int, bytearray] = defaultdict(bytearray)
    at = 24  # after the preface
    while at + 9 <= len(raw):
        length, kind, flags = int.from_bytes(raw[at : at + 3]), raw[at + 3], raw[at + 4]
        assert not (kind == 0 and flags & 0x8), "padded"
        if kind == 0:
            streams[int.from_bytes(raw[at + 5 : at + 9])] += raw[at + 9 : at + 9 + length]
        at += 9 + length
    for data in streams.values():
        at = 0
        while at + 5 <= len(data):
            assert data[at] == 0, "compressed"
            length = int.from_bytes(data[at + 1 : at + 5])
            yield bytes(data[at + 5 : at + 5 + length])
            at += 5 + length


def _message(data: bytes) -> Said:
    frame = Frame.FromString(data).data
    prefix = Prefix.from_bytes(frame)
    body = PREFIX_LEN + prefix.header_len
    headers: dict[str, Any] = msgpack.unpackb(frame[PREFIX_LEN:body]) if prefix.header_len else {}
    names = ("sm__ch", "sm__tp") if headers.get("cn__topic") == "sm__DATA" else ("cn__channel", "cn__topic")
    channel, topic = (headers.get(name, "") for name in names)
    return Said(channel, topic, headers.get("sm__id"), len(data), frame[body:])


def replies(said: list[Said]) -> list[tuple[dict[str, bytes], int]]:
    """The replies on the wire, as named bytes, and how many bytes all messages that carried each had."""
    parts: dict[int, list[Said]] = defaultdict(list)
    for one in said:
        if (one.channel, one.topic) == ("server_command", "submit_update") and one.stream is not None:
            parts[one.stream].append(one)
    return [(_reply(b"".join(o.payload for o in some)), sum(o.size for o in some)) for some in parts.values()]


def _reply(data: bytes) -> dict[str, bytes]:
    start = data.index(b'{"refused"')  # the first of the head's keys
    _, length = json.JSONDecoder().raw_decode(data[start:].decode("latin-1"))
    update, header = b"", data.find(b'{"__metadata__"')
    if header >= 0:  # safetensors: eight bytes with the header's length, the header, the values
        size = int.from_bytes(data[header - 8 : header], "little")
        values = json.loads(data[header : header + size])["values"]["data_offsets"][1]
        update = data[header - 8 : header + size + values]
    return {"head": data[start : start + length], "update": update}


def forms(text: str) -> list[bytes]:
    """A text as it may stand in a file or a message: plain, UTF-16, and within base64 at each of three offsets."""
    plain = text.encode()
    inner = [base64.b64encode(b"x" * shift + plain)[4:-4] for shift in range(3)]
    return [plain, text.encode("utf-16-le"), *inner]


def pixel_forms() -> list[bytes]:
    """The pattern in the pictures: as pixels, as numbers, one colour after the other or side by side."""
    found = []
    for values in (PIXELS, *PIXELS.T):
        numbers = values.astype(np.float32) / np.float32(255)
        found += [np.ascontiguousarray(v).tobytes() for v in (values, numbers, numbers.astype(np.float16))]
    return found


def bits(local: dict[str, Any]) -> list[bytes]:
    """The first 32 bytes of each local tensor, without those that have too few different values to be recognised."""
    found = [tensor.detach().contiguous().numpy().tobytes()[:32] for tensor in local.values()]
    return [one for one in found if len(set(one)) > 8]


def plant_names(fed) -> None:
    """Patients' names where hospitals have them: folder, file, the table's column, a DICOM header."""
    first, second, _ = fed.names
    data = fed.root / PATH
    (fed.root / "data" / first).rename(data)
    with (data / "manifest.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "mask", "patient"])
        for number, path in enumerate(sorted((data / "images").iterdir())):
            name = f"{FILE}-{path.name}"
            picture = np.asarray(Image.open(path).convert("RGB")).copy()
            picture[0, :64] = PIXELS
            path.unlink()
            Image.fromarray(picture).save(data / "images" / name, compress_level=0)
            (data / "masks" / path.name).rename(data / "masks" / name)
            writer.writerow([f"images/{name}", f"masks/{name}", f"{PATIENT}-{number // 2}"])
    scan = pydicom.Dataset()
    scan.PatientName = HEADER
    scan.SOPClassUID, scan.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7", pydicom.uid.generate_uid()
    scan.file_meta = pydicom.dataset.FileMetaDataset()
    scan.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    target = fed.root / "data" / second / "images" / f"{EXCEPTION}.dcm"
    scan.save_as(target, enforce_file_format=True)
    assert HEADER.encode() in target.read_bytes()


def spoiled(fed, name: str, code: str) -> Path:
    """A folder that changes what a site's processes import."""
    folder = fed.root / f"spoil-{name}"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(code)
    return folder


def test_the_wire_holds_the_shared_tensors_and_no_patient_no_picture_no_expert(federation, result) -> None:
    fed = federation(3, rounds=4)
    # 0.6 MB, as much as a LoRA of rank 4 in SAM ViT-B; in the warm-up rounds the experts stand still, so that what is planted is committed
    overrides = ["model.lora.rank=64", "communication.codec=fp32", "training.shared_warmup_rounds=2"]
    fed.submit(
        quorum=1, overrides=[*overrides, "communication.min_cases=5", "communication.data_summary=true"]
    )  # a site has 6 cases, of which it trains on 3 or 4 and tests 1 or 2; the first has 3 patients
    plant_names(fed)
    fed.init_sites({fed.names[0]: fed.root / PATH})
    server = fed.coordinator / "server" / "startup"
    taps = {n: Wiretap(fed.port, server, fed.site(n) / "nvflare" / "startup") for n in fed.names}
    fed.start("coordinator", "--until-idle")
    first, second, third = fed.names
    fed.start(first, path=spoiled(fed, first, PLANT))
    fed.start(second)
    fed.start(third, path=spoiled(fed, third, BABBLE))
    experts = watched_experts(fed, first)
    assert fed.status()["state"] == "finished"
    time.sleep(1)

    # Row 4: six names; each is known at its site, and nowhere else.
    said = {name: tap.said() for name, tap in taps.items()}
    wire = b"\0".join(bytes(heard) for tap in taps.values() for heard in tap.heard)
    wire += b"\0".join(
        b"".join(o.payload for o in some) for some in said.values()
    )  # without HTTP/2's frames in between
    kept = [path.read_bytes() for path in (*fed.coordinator.rglob("*"), fed.root / "coordinator.out") if path.is_file()]
    assert len(kept) > 30
    logs = {n: b"".join(p.read_bytes() for p in fed.site(n).rglob("*") if p.is_file()) for n in fed.names}
    logs[first] += (fed.root / PATH / "manifest.csv").read_bytes()
    own = {PATH: first, FILE: first, PATIENT: first, EXCEPTION: second}
    for text in (PATH, FILE, PATIENT, HEADER, EXCEPTION, METRIC):
        for form in forms(text):
            assert form not in wire, text
            assert [part for part in kept if form in part] == [], text
        assert text not in own or text.encode() in logs[own[text]], "the check itself"
    assert EXCEPTION.encode() in logs[third]
    absent = {(row["round"], site): why for row in fed.records("absent") for site, why in row["sites"].items()}
    assert absent[0, second] == "there is a problem with its data"
    assert absent[0, third] == "its own gate did not release the reply"
    assert (1, third) in absent

    # Row 5: names and bytes are the manifest's, the ledger tells what was on the wire, and nothing else was.
    manifest = read_manifest(fed.study / "manifest.json")
    sum_of_tensors = sum(manifest.component_bytes().values())
    sent = replies(said[first])
    ledger = [line for line in Ledger(fed.site(first) / "ledger.jsonl").read() if line["sent"]]
    assert [message_hash(parts) for parts, _ in sent] == [line["sha256"] for line in ledger]
    assert [reply_from_wire(parts).task for parts, _ in sent][:3] == ["join", "summarize", "train"]
    assert sorted(path.stem for path in (fed.study / "summaries").glob("*.json")) == sorted([first, third])
    shared: dict[str, Any] = {}
    worst = 0.0
    for parts, size in sent:
        reply = reply_from_wire(parts)
        told = {name: value for name, value in reply.scalar_metrics.items() if value is not None}
        groups = {"annotates", "cases", "kept_round", "uses_shared", "test"}
        assert {name.split(".")[0] for name in told} <= ({"data"} if reply.task == "summarize" else groups)
        assert {name.split(".")[-1] for name in told if name.startswith("test.")} <= {"unit", "volume_unit"}
        if reply.task == "join":
            assert told["cases"] == 5
        if reply.task == "summarize":
            counts = {name: value for name, value in told.items() if name.endswith(".cases") or ".sizes." in name}
            assert counts["data.cases"] == counts["data.sizes.1"] == 6
            assert set(counts.values()) == {6}
            assert reply.scalar_metrics["data.patients"] is None
        if reply.task == "train":
            assert decode(reply.update, manifest.spec).cases == 5
            shared = dict(decode(reply.update, manifest.spec).tensors)
            assert sorted(shared) == sorted(manifest.tensors)
            worst = max(worst, size / sum_of_tensors - 1)
        else:
            assert size < 10_000
    assert 0 < worst <= 0.01
    assert {(one.channel, one.topic) for some in said.values() for one in some if one.channel} <= TOPICS
    other = sum(one.size for one in said[first]) - sum(size for _, size in sent)

    # Row 5: bits of pictures and experts. Those of the shared tensors are found, so the others would be.
    assert all(one in wire for one in bits({f"expert {n}": t for n, t in shared.items()}))
    assert len(set(experts)) > 40
    assert [one for one in experts if one in wire] == []
    for values in (EXPERT, EXPERT.astype(np.float16)):
        assert values.tobytes() not in wire
    assert EXPERT[:8].tobytes() in experts, "the pattern was in the experts that the site committed"
    assert [form for form in pixel_forms() if form in wire] == []
    for path in (fed.root / PATH / "images").iterdir():
        assert (np.asarray(Image.open(path))[0, :64] == PIXELS).all(), "the check itself"
        assert path.read_bytes()[200:264] not in wire
    figures = {"wire_update_excess": round(worst, 4), "wire_other_bytes_a_round": round(other / manifest.rounds)}
    result(4, 5, **figures, wire_update_bytes=sum_of_tensors)


def watched_experts(fed, name: str) -> list[bytes]:
    """The bits of the site's local parameters after each commit that was seen, until the study ends."""
    found: list[bytes] = []

    def look() -> bool:
        for study in (fed.site(name) / "studies").glob("*"):
            try:
                state = SiteStore(study / "state").load()
            except StoreError:  # it is just being replaced
                continue
            found.extend(bits(dict(state.local)) if state else [])
        return fed.status()["state"] in ("finished", "stopped")

    fed.wait_for(look, 400, f"the end: {fed.status()}")
    return found
