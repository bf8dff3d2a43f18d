"""Certificates are renewed for the same keys, so that a federation can be continued after they have expired."""

import contextlib
import json
import shutil
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

pytest.importorskip("nvflare")
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from pfedsam.cli import coordinator as commands
from pfedsam.core.errors import RunError
from pfedsam.deploy import certificates, keys, preflight
from pfedsam.deploy.certificates import OWN, expiries, known_as, read_certificates, renew_coordinator
from pfedsam.deploy.provision import provision, sign_request
from pfedsam.deploy.site_kit import check_startup, install_kit, renew_kit, valid_until
from pfedsam.deploy.site_service import warning_of_expiry

YEAR = timedelta(days=360)


def earlier(pem: str, root_key: bytes, shift: timedelta) -> str:
    """A certificate as it would be if it had been made earlier."""
    old, issuer = x509.load_pem_x509_certificate(pem.encode()), serialization.load_pem_private_key(root_key, None)
    builder = x509.CertificateBuilder().subject_name(old.subject).issuer_name(old.issuer).public_key(old.public_key())
    builder = builder.serial_number(old.serial_number)
    builder = builder.not_valid_before(old.not_valid_before_utc - shift).not_valid_after(
        old.not_valid_after_utc - shift
    )
    for extension in old.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    return builder.sign(issuer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


class Federation:
    """A coordinator and its site, and the time that has passed since they were made."""

    def __init__(self, folder: Path) -> None:
        self.coordinator, self.site = folder / "coord", folder / "north"
        self.startup = self.site / "nvflare" / "startup"
        provision(self.coordinator, "test", "localhost", 58142, [])
        install_kit(self.signed(), self.startup.parent, own_key=True)
        (self.site / "site.yaml").write_text("name: north\ndata: .\n")

    def signed(self) -> Path:
        keys.make_request(self.startup, "north", self.site / "north.csr")
        return sign_request(self.coordinator, *keys.read_request(self.site / "north.csr"))

    def wait(self, passed: timedelta) -> None:
        state = self.coordinator / "provision" / "test" / "state" / "cert.json"
        stored = json.loads(state.read_text())
        root_key = stored["root_pri_key"].encode()
        stored["root_cert"] = earlier(stored["root_cert"], root_key, passed)
        for entry in stored.values():
            if isinstance(entry, dict):
                entry["cert"] = earlier(entry["cert"], root_key, passed)
        state.write_text(json.dumps(stored))
        for path in self.startup.parent.parent.parent.rglob("startup/*"):
            if path.suffix in (".crt", ".pem"):
                path.write_text(earlier(path.read_text(), root_key, passed))

    def connects(self) -> bool:
        """Whether site and coordinator accept each other in a TLS handshake."""
        server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
        own = self.coordinator / "server" / "startup"
        server.load_cert_chain(own / "server.crt", own / "server.key")
        server.load_verify_locations(own / "rootCA.pem")
        server.verify_mode = ssl.CERT_REQUIRED
        client = ssl.create_default_context(cafile=str(self.startup / "rootCA.pem"))
        client.load_cert_chain(self.startup / "client.crt", self.startup / "client.key")
        up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
        ends = [client.wrap_bio(down, up, server_hostname="localhost"), server.wrap_bio(up, down, server_side=True)]
        try:
            for _ in range(4):
                for end in ends:
                    with contextlib.suppress(ssl.SSLWantReadError):
                        end.do_handshake()
            return all(end.version() for end in ends)
        except ssl.SSLCertVerificationError:
            return False


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    return Federation(tmp_path)


def test_the_root_is_valid_for_ten_years_and_the_others_for_one(federation: Federation) -> None:
    left = {one.name: one.until - datetime.now(UTC) for one in expiries(federation.coordinator)}
    assert list(left) == [*OWN, "north"]
    assert round(left[OWN[0]] / timedelta(days=1)) == 3650
    assert [round(left[name] / timedelta(days=1)) for name in (OWN[1], "north")] == [360, 360]
    assert not [one for one in expiries(federation.coordinator) if one.soon]
    assert federation.connects()


def test_a_federation_is_continued_after_a_year(federation: Federation) -> None:
    federation.wait(YEAR + timedelta(days=1))
    assert not federation.connects()
    assert [one.name for one in expiries(federation.coordinator) if one.soon] == [OWN[1], "north"]
    before = keys.root_fingerprint(federation.startup)
    renew_coordinator(federation.coordinator)
    renew_kit(federation.signed(), federation.startup.parent)
    assert federation.connects()
    assert keys.root_fingerprint(federation.startup) == before
    assert not [one for one in expiries(federation.coordinator) if one.soon]
    check_startup(federation.startup)


def test_a_federation_of_an_earlier_version_is_continued_although_its_root_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certificates, "ROOT_DAYS", 360)
    federation = Federation(tmp_path)
    monkeypatch.undo()
    federation.wait(YEAR + timedelta(days=1))
    with pytest.raises(RunError, match="pfedsam coordinator renew"):
        federation.signed()
    with pytest.raises(RunError, match="pfedsam coordinator renew"):
        provision(federation.coordinator, "test", "localhost", 58142, ["south"])
    renew_coordinator(federation.coordinator)
    renew_kit(federation.signed(), federation.startup.parent)
    assert federation.connects()
    assert provision(federation.coordinator, "test", "localhost", 58142, ["south"]) == ["south"]
    install_kit(federation.coordinator / "kits" / "south.zip", tmp_path / "south")
    assert valid_until(tmp_path / "south" / "startup") - datetime.now(UTC) > timedelta(days=359)


def test_each_party_can_be_renewed_first(federation: Federation) -> None:
    federation.wait(timedelta(days=350))
    renew_coordinator(federation.coordinator)
    assert federation.connects()
    renew_kit(federation.signed(), federation.startup.parent)
    assert federation.connects()


def test_a_site_renewed_before_its_coordinator_connects_too(federation: Federation) -> None:
    federation.wait(timedelta(days=350))
    renew_kit(federation.signed(), federation.startup.parent)
    assert federation.connects()


def test_a_renewal_changes_the_end_of_a_certificate_alone(federation: Federation) -> None:
    federation.wait(YEAR)
    old = keys.read_certificate(federation.startup / "client.crt")
    end = renew_kit(federation.signed(), federation.startup.parent)
    new = keys.read_certificate(federation.startup / "client.crt")
    assert new.not_valid_after_utc == end > old.not_valid_after_utc
    for field in ("subject", "issuer", "not_valid_before_utc"):
        assert getattr(new, field) == getattr(old, field)
    assert new.public_key() == old.public_key()
    assert list(new.extensions) == list(old.extensions)


def test_an_earlier_kit_does_not_replace_a_renewed_certificate(federation: Federation, tmp_path: Path) -> None:
    federation.wait(timedelta(days=100))
    first = shutil.copy(federation.signed(), tmp_path / "first.zip")
    renew_kit(first, federation.startup.parent)
    renewed = {path: path.read_bytes() for path in federation.startup.iterdir()}
    federation.wait(timedelta(days=-100))  # as if the kit had been made 100 days before the installed certificate
    before = {path: path.read_bytes() for path in federation.startup.iterdir()}
    assert before != renewed
    with pytest.raises(RunError, match=r"first\.zip is an earlier kit: its certificate ends on .* Nothing was changed"):
        renew_kit(first, federation.startup.parent)
    assert {path: path.read_bytes() for path in federation.startup.iterdir()} == before


def test_a_coordinator_keeps_its_keys_and_no_key_of_a_site(federation: Federation) -> None:
    before = {path: path.read_bytes() for path in federation.coordinator.rglob("*.key")}
    renew_coordinator(federation.coordinator)
    federation.signed()
    assert {path: path.read_bytes() for path in federation.coordinator.rglob("*.key")} == before
    stored = read_certificates(federation.coordinator, known_as(federation.coordinator)[0])
    own = {name for name, entry in stored.items() if isinstance(entry, dict) and "pri_key" in entry}
    assert own == {"localhost", "coordinator@pfedsam.local"}


@pytest.mark.parametrize("content", [None, "", "{}", "[]", '{"root_cert": 7}', '{"root_cert": "x"}'])
def test_a_coordinator_that_has_lost_its_root_makes_no_other(federation: Federation, content: str | None) -> None:
    path = federation.coordinator / "provision" / "test" / "state" / "cert.json"
    path.unlink() if content is None else path.write_text(content)
    for command in (
        federation.signed,
        lambda: renew_coordinator(federation.coordinator),
        lambda: provision(federation.coordinator, "test", "localhost", 58142, ["south"]),
        lambda: expiries(federation.coordinator),
    ):
        with pytest.raises(RunError, match="Restore the file from a backup"):
            command()
    assert (path.read_text() if path.exists() else None) == content


def test_a_kit_of_another_federation_or_for_another_key_renews_nothing(federation: Federation, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in federation.startup.iterdir()}
    other = Federation(tmp_path / "other")
    with pytest.raises(RunError, match="another root certificate"):
        renew_kit(other.coordinator / "kits" / "north.zip", federation.startup.parent)
    provision(federation.coordinator, "test", "localhost", 58142, ["south"])
    with pytest.raises(RunError, match="no certificate for this site's key"):
        renew_kit(federation.coordinator / "kits" / "south.zip", federation.startup.parent)
    assert {path: path.read_bytes() for path in federation.startup.iterdir()} == before


@pytest.mark.parametrize(("days", "said"), [(100, ""), (340, "ends on"), (361, "ends on")])
def test_site_start_warns_of_the_end_and_check_gives_advice_that_can_be_followed(
    federation: Federation, days: int, said: str
) -> None:
    federation.wait(timedelta(days=days))
    warning = warning_of_expiry(federation.site) or ""
    assert said in warning
    found = {one.what: one for one in preflight.check_site_ready(federation.site)}["certificate"]
    assert found.ok is (days < 360)
    for text in (warning, found.text) if said else ():
        assert f"pfedsam site request {federation.site} --name north" in text
        assert f"pfedsam site renew {federation.site} --kit" in text
    assert bool(said) is ("renew" in found.text)


def test_the_status_shows_the_dates_and_warns(federation: Federation, capsys: pytest.CaptureFixture[str]) -> None:
    commands.status_command(federation.coordinator)
    shown = capsys.readouterr()
    assert f"{datetime.now(UTC) + YEAR:%Y-%m}" in shown.out
    assert "Warning" not in shown.err
    federation.wait(timedelta(days=340))
    commands.status_command(federation.coordinator)
    said = " ".join(capsys.readouterr().err.split())
    assert "this coordinator" in said
    assert "pfedsam coordinator renew" in said
    assert "north (" in said
    commands.renew_command(federation.coordinator)
    said = " ".join(capsys.readouterr().err.split())
    assert "this coordinator" not in said
    assert "north (" in said
