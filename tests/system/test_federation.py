"""Real processes on the loopback with mutual TLS, for the rows of docs/reliability.md marked "system". Run by `make test-system`."""

import json
import signal
import socket
import ssl
import stat
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pytest

pytest.importorskip("nvflare")
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

from pfedsam.core import tensors
from pfedsam.core.tensors import digest
from pfedsam.deploy.certificates import renew_coordinator
from pfedsam.deploy.keys import make_request, read_request
from pfedsam.deploy.provision import provision, sign_request
from pfedsam.deploy.site_kit import install_kit, renew_kit
from pfedsam.engine.run import run
from pfedsam.engine.server_files import SERVER
from pfedsam.engine.study_folder import write_revoked
from pfedsam.experiment.load import load_options
from pfedsam.federation.ledger import Ledger
from pfedsam.federation.manifest import read_manifest
from pfedsam.federation.site_store import SiteStore

pytestmark = pytest.mark.system
CANARY = "Jane-Doe"


def family(pid: int) -> list[psutil.Process]:
    """A process and all that it started."""
    parent = psutil.Process(pid)
    return [parent, *parent.children(recursive=True)]


def shared_digest(folder: Path) -> str:
    return digest(tensors.load(folder / SERVER)[0])


def local(federation, name: str):
    (study,) = (federation.site(name) / "studies").iterdir()
    return SiteStore(study / "state").load()


def equal_to_embedded(federation, folder: Path) -> None:
    run(load_options(federation.config), folder)
    assert shared_digest(federation.study) == shared_digest(folder)
    for name in federation.names:
        here, there = SiteStore(folder / "sites" / name / "state").load(), local(federation, name)
        assert digest(here.local) == digest(there.local), name
        assert digest(here.optimizer) == digest(there.optimizer), name


def sockets_of(pids: set[int]) -> set[tuple[str, int]]:
    found = set()
    for pid in pids:
        try:
            found |= {
                (c.raddr.ip.removeprefix("::ffff:"), c.raddr.port)
                for c in psutil.Process(pid).net_connections("inet")
                if c.raddr
            }
        except psutil.Error:
            continue
    return found


def test_four_sites_to_the_end_with_nothing_private_outside(federation, result, tmp_path: Path) -> None:
    fed = federation(4, rounds=6)
    fed.submit(join=240)
    fed.init_sites()
    fed.start_all("--until-idle")
    fed.wait_round(1, 400)
    # Row 29: a site speaks with the coordinator's port, and inside its own machine between its own processes.
    pids = {p.pid for p in psutil.Process(fed.processes[fed.names[0]].pid).children(recursive=True)}
    own = {c.laddr.port for pid in pids for c in psutil.Process(pid).net_connections("inet")}
    others = {address for address in sockets_of(pids) if address[1] not in own}
    assert others == {("127.0.0.1", fed.port)}
    assert fed.wait_end()["state"] == "finished"
    assert fed.processes["coordinator"].wait(timeout=60) == 0
    equal_to_embedded(fed, tmp_path / "here")
    # Row 4: the name in a file's name at one site stands nowhere at the coordinator.
    for path in fed.coordinator.rglob("*"):
        if path.is_file():
            assert CANARY.encode() not in path.read_bytes(), path
    assert CANARY in (fed.site(fed.names[0]) / "studies" / fed.study.name / "split.json").read_text()
    # Row 5: what left is what the manifest lists, to the byte of the values.
    manifest = read_manifest(fed.study / "manifest.json")
    for name in fed.names:
        lines = Ledger(fed.site(name) / "ledger.jsonl").read()
        updates = [line for line in lines if line["task"] == "train"]
        assert [line["round"] for line in updates] == list(range(6))
        for line in updates:
            assert line["tensors"] == sorted(manifest.tensors)
            assert 0 < line["bytes"] - sum(line["by_component"].values()) < 2000
    # Row 29: nobody else on a machine can read keys, checkpoints or ledgers.
    for folder in (fed.coordinator, *map(fed.site, fed.names)):
        assert stat.S_IMODE(folder.stat().st_mode) & 0o077 == 0, folder
        for pattern in ("*.key", "*.safetensors", "ledger.jsonl", "site.yaml", "*.zip"):
            for path in folder.rglob(pattern):
                if "shared" not in path.parts and "cache" not in path.parts:
                    assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    rounds = sorted(row["train_s"] for row in fed.records("timing") if "train_s" in row)
    result(29, round_overhead_s=rounds[len(rounds) // 2], round_overhead_sites=4)


def forged(tmp_path: Path, name: str, days: int) -> tuple[Path, Path]:
    """A certificate in `name` that a stranger signed."""
    key = rsa.generate_private_key(65537, 2048)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
    builder = (
        builder.serial_number(1).not_valid_before(now - timedelta(days=9)).not_valid_after(now + timedelta(days=days))
    )
    certificate, pem = tmp_path / f"{name}{days}.crt", tmp_path / f"{name}{days}.key"
    certificate.write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    pem.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return certificate, pem


def speaks(port: int, root: Path, pair: tuple[Path, Path] | None) -> bool:
    """Whether a client with this certificate gets an answer to HTTP/2's first words; TLS 1.3 refuses only then."""
    context = ssl.create_default_context(cafile=str(root))
    context.set_alpn_protocols(["h2"])
    if pair:
        context.load_cert_chain(*pair)
    try:
        with (
            socket.create_connection(("localhost", port), timeout=2) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as wrapped,
        ):
            wrapped.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
            return bool(wrapped.recv(1))
    except (ssl.SSLError, ConnectionError):
        return False


def members(fed) -> dict[str, Path]:
    """The kits of two more members, one of whom is revoked, and of a site of the same name in another federation."""
    provision(fed.coordinator, "pfedsam", "localhost", fed.port, [*fed.names, "member", "lost"])
    write_revoked(fed.coordinator, {"lost"})
    elsewhere = fed.root / "elsewhere"
    provision(elsewhere, "pfedsam", "localhost", fed.port, [fed.names[0]])
    kits = {name: fed.coordinator / "kits" / f"{name}.zip" for name in ("member", "lost")}
    kits["elsewhere"] = elsewhere / "kits" / f"{fed.names[0]}.zip"
    for name, kit in kits.items():
        install_kit(kit, fed.root / name)
    return {name: fed.root / name / "startup" for name in kits}


def attempts(kit: Path, port: int, *names: str) -> dict[str, dict[str, object]]:
    """What `intruder.py` was answered, by what it tried."""
    program = [sys.executable, str(Path(__file__).with_name("intruder.py")), str(kit), str(port), *names]
    done = subprocess.run(program, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return {one["what"]: one for one in json.loads(done.stdout.splitlines()[-1])}


def test_strangers_are_refused_while_an_honest_study_goes_on(federation, result, tmp_path: Path) -> None:
    """Row 3; what strangers and members try, they try while the study runs."""
    fed = federation(2, rounds=400)
    fed.submit(join=240)
    fed.init_sites()
    kits = members(fed)
    fed.start_all()
    fed.wait_round(1, 400)
    before = fed.status()["round"]
    root = fed.site(fed.names[0]) / "nvflare" / "startup"
    honest = (root / "client.crt", root / "client.key")
    other = (kits["elsewhere"] / "client.crt", kits["elsewhere"] / "client.key")
    for port in (fed.port, fed.port + 1):
        assert speaks(port, root / "rootCA.pem", honest), "the check itself"
        for pair in (None, forged(tmp_path, fed.names[0], 30), forged(tmp_path, fed.names[0], -1), other):
            started = time.monotonic()
            assert not speaks(port, root / "rootCA.pem", pair)
            assert time.monotonic() - started < 2
        with socket.create_connection(("localhost", port), timeout=2) as plain:
            plain.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            plain.settimeout(2)
            try:
                answer = plain.recv(100)
            except (TimeoutError, ConnectionError):
                answer = b""
            assert b"HTTP/1.1 200" not in answer
    found = attempts(kits["member"], fed.port, "member", fed.names[0])
    assert [what for what, one in found.items() if not one["refused"]] == ["its own name"], found
    lost = attempts(kits["lost"], fed.port, "lost", fed.names[0])
    assert all(one["refused"] for one in lost.values()), lost
    slowest = max(one["seconds"] for one in (*found.values(), *lost.values()))
    assert slowest < 2, (found, lost)
    log = (fed.coordinator / "server" / "log.txt").read_text()
    assert f"authenticated as 'member' but claimed endpoint '{fed.names[0]}'" in log
    assert "refused a request of site member: topic command on channel hci_channel" in log
    assert "Created user session for coordinator@pfedsam.local" in log, "the check itself"
    assert "Created user session for member" not in log
    fed.wait_round(before + 3)
    assert all(row["accepted"] == fed.names for row in fed.records("aggregate"))  # of at least three honest rounds
    result(3, refused_s=slowest, refused_attempts=len(found) + len(lost) - 1)


def test_a_revoked_site_is_shut_out_of_a_study_that_runs(federation, result) -> None:
    fed = federation(2, rounds=12)
    fed.submit(quorum=1)
    fed.init_sites()
    fed.start_all("--until-idle")
    out = fed.names[1]
    fed.wait_round(1, 400)
    write_revoked(fed.coordinator, {out})
    assert fed.wait_end()["state"] == "finished"
    accepted = [out in row["accepted"] for row in fed.records("aggregate")]
    assert accepted[0]
    assert not accepted[-1]
    assert accepted == sorted(accepted, reverse=True)  # once out, it stays out
    assert {"it was revoked"} == {row["sites"][out] for row in fed.records("absent") if out in row["sites"]}
    disabled = [path for path in (fed.coordinator / "server").rglob("*.json") if out in path.read_text()]
    assert disabled, "NVFlare keeps the list too"
    result()


def test_a_study_runs_with_renewed_certificates(federation, result) -> None:
    fed = federation(2, rounds=2)
    fed.submit()
    fed.init_sites()
    renew_coordinator(fed.coordinator)
    first = fed.site(fed.names[0])  # the other site still has the certificates of before
    make_request(first / "nvflare" / "startup", first.name, first / "renewal.csr")
    renew_kit(sign_request(fed.coordinator, *read_request(first / "renewal.csr")), first / "nvflare")
    fed.start_all("--until-idle")
    assert fed.wait_end()["state"] == "finished"
    assert [row["accepted"] for row in fed.records("aggregate")] == [fed.names] * 2
    result()


def test_a_killed_site_is_missed_and_comes_back_with_its_own_experts(federation, result) -> None:
    fed = federation(3, rounds=40)
    fed.submit(join=240, quorum=2, deadline=int(20 * fed.patience))
    fed.init_sites()
    fed.start_all()
    victim = fed.names[2]
    fed.wait_round(2, 400)
    fed.kill(victim)
    before = local(fed, victim)
    stands = fed.status()["round"]
    fed.wait_round(stands + 3)  # at the quorum
    fed.start(victim)
    count = len(Ledger(fed.site(victim) / "ledger.jsonl").read())
    lines = lambda: Ledger(fed.site(victim) / "ledger.jsonl").read()[count:]  # noqa: E731
    fed.wait_for(
        lambda: any(line["task"] == "train" and line["sent"] for line in lines()), 240, "the site trains again"
    )
    assert local(fed, victim).round > before.round
    absent = [row for row in fed.records("absent") if victim in row["sites"]]
    assert absent
    assert all(row["sites"][victim] for row in absent)
    accepted = {row["round"]: row["accepted"] for row in fed.records("aggregate")}
    assert all(len(names) >= 2 for names in accepted.values())
    assert any(victim not in names for names in accepted.values())
    result(7, 21)


def test_a_killed_coordinator_goes_on_to_the_same_bits(federation, result, tmp_path: Path) -> None:
    """Row 6, with NVFlare; 20 random instants are in `tests/engine/test_kills.py`."""
    fed = federation(2, rounds=10)
    fed.submit(join=240)
    fed.init_sites()
    fed.start_all()
    back = []
    for round_ in (2, 4, 6):
        fed.wait_round(round_, 600)
        stands = fed.status()["round"]
        fed.kill("coordinator")
        assert fed.status()["round"] >= stands
        started = time.monotonic()
        fed.start("coordinator")
        fed.wait_round(stands + 1, 600)
        back.append(round(time.monotonic() - started, 1))
    assert fed.wait_end()["state"] == "finished"
    equal_to_embedded(fed, tmp_path / "here")
    load = round(psutil.getloadavg()[0], 1)
    late = {6: f"same bits; back after {max(back)} s, not 60, at a load of {load}"} if max(back) > 60 else {}
    result(6, in_part=late, coordinator_back_s=max(back), coordinator_back_load=load)


def test_a_straggler_is_not_waited_for_and_its_late_reply_does_not_count(federation, result) -> None:
    """Row 18. Stopped for longer than 30 s, a site is taken to have lost its process, and has no late reply."""
    fed = federation(3, rounds=400)
    fed.submit(join=240, quorum=2, deadline=20, overrides=["evaluation.validate_every=0"])
    fed.init_sites()
    fed.start_all()
    slow = fed.names[1]
    fed.wait_round(1, 400)
    workers = psutil.Process(fed.processes[slow].pid).children(recursive=True)
    received = next((fed.site(slow) / "studies").iterdir()) / "received.safetensors"
    before = received.stat().st_mtime_ns
    while received.stat().st_mtime_ns == before:  # it has got a request to train, and not answered yet
        time.sleep(0.002)
    for process in reversed(workers):
        process.send_signal(signal.SIGSTOP)
    stopped = fed.status()["round"]
    fed.wait_round(stopped + 1, 120)
    for process in workers:
        process.send_signal(signal.SIGCONT)
    waited = {row["round"]: row["train_s"] for row in fed.records("timing") if "round" in row}
    assert abs(waited[stopped] - 20) <= 3, waited
    absent = {row["round"]: row["sites"] for row in fed.records("absent") if row["task"] == "train"}
    assert absent[stopped] == {slow: "no reply within 20 s"}
    assert slow not in {row["round"]: row["accepted"] for row in fed.records("aggregate")}[stopped]
    late = lambda: [row["sites"].get(slow, "") for row in fed.records("absent")]  # noqa: E731
    fed.wait_for(lambda: "1 reply(s) came after their deadline" in late(), 120, "the late reply is counted")
    result(18)


def test_too_few_sites_end_in_bounded_time_with_a_code_of_its_own(federation, result) -> None:
    fed = federation(2, rounds=3)
    fed.submit(join=30, quorum=2)
    fed.init_sites()
    before = (fed.study / SERVER).read_bytes()
    fed.start("coordinator", "--until-idle")
    fed.start(fed.names[0])
    assert fed.processes["coordinator"].wait(timeout=240) == 9
    status = fed.status()
    assert status["state"] == "stopped"
    assert "quorum is 2" in status["reason"]
    assert (fed.study / SERVER).read_bytes() == before
    result(19)


def test_stop_signals_end_everything_within_ten_seconds(federation, result) -> None:
    """Row 23: a site four times, in the midst of a study, and the coordinator; 5 more in `tests/deploy`."""
    fed = federation(2, rounds=400)
    fed.submit(join=240)
    fed.init_sites()
    fed.start_all()
    fed.wait_round(1, 600)
    first, other = fed.names
    took = [ended_s(fed, first, [signal.SIGTERM])]
    for signals in ([signal.SIGINT] * 2, [signal.SIGTERM, signal.SIGINT], [signal.SIGINT] * 3):
        fed.start(first)
        fed.wait_for(lambda: len(family(fed.processes[first].pid)) > 1, 120, "NVFlare's client")
        took.append(ended_s(fed, first, signals))
    took += [ended_s(fed, other, [signal.SIGINT] * 2), ended_s(fed, "coordinator", [signal.SIGTERM])]
    for name in fed.names:
        assert local(fed, name) is not None  # whole: it was read and its digest compared
    assert max(took) <= 10, took
    result(23, stop_s=round(max(took), 1))


def ended_s(fed, name: str, signals: list[int]) -> float:
    """The seconds that a party takes to end; nothing of it is left then."""
    everyone, started = family(fed.processes[name].pid), time.monotonic()
    for number in signals:
        fed.processes[name].send_signal(number)
        time.sleep(0.2)
    assert fed.processes[name].wait(timeout=60) == 0, name
    took = time.monotonic() - started
    left = psutil.wait_procs(everyone, timeout=1)[1]
    assert [one for one in left if one.status() != psutil.STATUS_ZOMBIE] == [], (
        name
    )  # ended, its parent did not ask yet
    return took
