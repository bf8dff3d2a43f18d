"""The key of a site is made at the site, and no file that leaves it contains the key."""

import hashlib
import stat
import zipfile
from datetime import timedelta
from pathlib import Path

import pytest

pytest.importorskip("nvflare")
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from pfedsam.core.errors import OptionError, RunError
from pfedsam.deploy.keys import (
    KEY,
    belong_together,
    fingerprint,
    make_request,
    read_certificate,
    read_request,
    root_fingerprint,
)
from pfedsam.deploy.provision import provision, sign_request
from pfedsam.deploy.site_kit import install_kit


@pytest.fixture(scope="module")
def coordinator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("coordinator")
    assert provision(folder, "test", "localhost", 58122, []) == []
    return folder


def asked(folder: Path, name: str) -> tuple[str, x509.CertificateSigningRequest]:
    make_request(folder / "nvflare" / "startup", name, folder / f"{name}.csr")
    return read_request(folder / f"{name}.csr")


def test_a_signed_request_makes_a_kit_without_a_key_that_fits_the_sites_own(coordinator: Path, tmp_path: Path) -> None:
    request = asked(tmp_path, "north")
    key = tmp_path / "nvflare" / "startup" / KEY
    before = key.read_bytes()
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert b"PRIVATE" not in (tmp_path / "north.csr").read_bytes()
    kit = sign_request(coordinator, *request)
    with zipfile.ZipFile(kit) as archive:
        assert not [name for name in archive.namelist() if name.endswith(".key")]
        assert not [name for name in archive.namelist() if b"PRIVATE KEY" in archive.read(name)]
    settings = install_kit(kit, tmp_path / "nvflare", own_key=True)
    assert settings.site == "north"
    assert key.read_bytes() == before
    assert belong_together(read_certificate(key.parent / "client.crt"), before)
    own = x509.load_pem_x509_certificate((key.parent / "client.crt").read_bytes())
    own.verify_directly_issued_by(x509.load_pem_x509_certificate((key.parent / "rootCA.pem").read_bytes()))
    assert own.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value == "north"
    digest = x509.SubjectKeyIdentifier.from_public_key(own.public_key())
    assert own.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value == digest


def test_a_signed_certificate_differs_from_one_of_nvflares_in_its_key_alone(coordinator: Path, tmp_path: Path) -> None:
    provision(coordinator, "test", "localhost", 58122, ["east"])
    sign_request(coordinator, *asked(tmp_path, "west"))
    found = []
    for name in ("east", "west"):
        with zipfile.ZipFile(coordinator / "kits" / f"{name}.zip") as archive:
            found.append(x509.load_pem_x509_certificate(archive.read("startup/client.crt")))
    east, west = found
    assert east.issuer == west.issuer
    assert abs(east.not_valid_after_utc - west.not_valid_after_utc) < timedelta(minutes=5)
    assert [(e.oid, e.critical) for e in east.extensions] == [(e.oid, e.critical) for e in west.extensions]
    assert west.extensions.get_extension_for_class(x509.SubjectAlternativeName).value.get_values_for_type(
        x509.DNSName
    ) == ["west"]


def test_the_coordinator_keeps_no_sites_key(coordinator: Path, tmp_path: Path) -> None:
    provision(coordinator, "test", "localhost", 58122, ["made-here"])
    sign_request(coordinator, *asked(tmp_path, "made-there"))
    with zipfile.ZipFile(coordinator / "kits" / "made-here.zip") as archive:
        secret = archive.read("startup/client.key").decode()
    kept = [path for path in coordinator.rglob("*") if path.is_file() and path.suffix != ".zip"]
    for text in (secret, (tmp_path / "nvflare" / "startup" / KEY).read_text()):
        line = text.splitlines()[5]
        assert [path for path in kept if line in path.read_text(errors="ignore")] == []


def test_a_name_is_given_once(coordinator: Path, tmp_path: Path) -> None:
    sign_request(coordinator, *asked(tmp_path / "first", "once"))
    with pytest.raises(RunError, match="site 'once' has a certificate already"):
        sign_request(coordinator, *asked(tmp_path / "second", "once"))
    assert provision(coordinator, "test", "localhost", 58122, ["once"]) == []


def test_another_sites_kit_does_not_go_into_the_folder(coordinator: Path, tmp_path: Path) -> None:
    asked(tmp_path / "mine", "mine")
    other = sign_request(coordinator, *asked(tmp_path / "other", "other"))
    with pytest.raises(RunError, match="no certificate for this site's key"):
        install_kit(other, tmp_path / "mine" / "nvflare", own_key=True)
    assert not (tmp_path / "mine" / "nvflare" / "startup" / "fed_client.json").exists()
    with pytest.raises(RunError, match="made for a request"):
        install_kit(other, tmp_path / "empty" / "nvflare")
    assert not (tmp_path / "empty").exists()


def test_a_kit_with_a_key_does_not_replace_the_sites_own(coordinator: Path, tmp_path: Path) -> None:
    asked(tmp_path, "mine")
    before = (tmp_path / "nvflare" / "startup" / KEY).read_bytes()
    provision(coordinator, "test", "localhost", 58122, ["keyed"])
    with pytest.raises(RunError, match="contains a key"):
        install_kit(coordinator / "kits" / "keyed.zip", tmp_path / "nvflare", own_key=True)
    assert (tmp_path / "nvflare" / "startup" / KEY).read_bytes() == before


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "a b", "x" * 64, "é", "a.b", "server", "a\n"])
def test_names_that_cannot_be_asked_for(tmp_path: Path, name: str) -> None:
    with pytest.raises(OptionError, match="cannot name a site"):
        make_request(tmp_path / "startup", name, tmp_path / "x.csr")
    with pytest.raises(OptionError, match="cannot name a site"):
        provision(tmp_path, "test", "localhost", 58122, ["north", name])
    assert list(tmp_path.iterdir()) == []


def test_a_second_request_is_for_the_same_key_and_name(coordinator: Path, tmp_path: Path) -> None:
    name, first = asked(tmp_path, "twice")
    key = (tmp_path / "nvflare" / "startup" / KEY).read_bytes()
    install_kit(sign_request(coordinator, name, first), tmp_path / "nvflare", own_key=True)
    assert asked(tmp_path, "twice")[1].public_key() == first.public_key()
    with pytest.raises(OptionError, match="give --name twice"):
        asked(tmp_path, "other")
    assert (tmp_path / "nvflare" / "startup" / KEY).read_bytes() == key
    (tmp_path / "nvflare" / "startup" / KEY).write_text("damaged")
    with pytest.raises(RunError, match="in a new folder with another name"):
        asked(tmp_path, "twice")
    (tmp_path / "nvflare" / "startup" / KEY).unlink()
    with pytest.raises(RunError, match="in a new folder with another name"):
        asked(tmp_path, "twice")
    assert not (tmp_path / "nvflare" / "startup" / KEY).exists()


def csr(path: Path, names: list[str], key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> Path:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name) for name in names])
    made = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    path.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    return path


def test_a_request_that_is_not_there_is_told_from_one_that_is_something_else(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"there is no file '.*/north\.csr'; give the path of the file"):
        read_request(tmp_path / "north.csr")
    (tmp_path / "folder.csr").mkdir()
    with pytest.raises(RunError, match=r"folder\.csr cannot be read \(Is a directory\)"):
        read_request(tmp_path / "folder.csr")


def test_requests_that_are_refused(tmp_path: Path) -> None:
    path, good = tmp_path / "x.csr", rsa.generate_private_key(65537, 2048)
    for names in ([], ["a", "b"], ["../x"], ["server"], ["coordinator@pfedsam.local"]):
        with pytest.raises(RunError, match="its name is not allowed"):
            read_request(csr(path, names, good))
    for key in (rsa.generate_private_key(65537, 1024), ec.generate_private_key(ec.SECP256R1())):
        with pytest.raises(RunError, match="does not contain an RSA key"):
            read_request(csr(path, ["north"], key))
    data = csr(path, ["north"], good).read_bytes().splitlines()
    data[-3] = data[-3][::-1]  # of the signature
    path.write_bytes(b"\n".join(data))
    with pytest.raises(RunError, match=r"not signed by its own key|not a certificate request"):
        read_request(path)
    for content in (b"", b"text", b"x" * 100_000):
        path.write_bytes(content)
        with pytest.raises(RunError, match="is not a certificate request"):
            read_request(path)


def test_a_folder_without_a_coordinator_signs_nothing(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="not a coordinator's folder"):
        sign_request(tmp_path, *asked(tmp_path / "site", "north"))


def test_root_and_key_are_compared_by_fingerprints_of_the_public_keys(coordinator: Path, tmp_path: Path) -> None:
    _, request = asked(tmp_path, "finger")
    key = serialization.load_pem_private_key((tmp_path / "nvflare" / "startup" / KEY).read_bytes(), None)
    der = key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    assert fingerprint(request).replace(" ", "") == hashlib.sha256(der).hexdigest()
    install_kit(sign_request(coordinator, "finger", request), tmp_path / "nvflare", own_key=True)
    root = root_fingerprint(coordinator / "server" / "startup")
    assert root_fingerprint(tmp_path / "nvflare" / "startup") == root != fingerprint(request)
    with pytest.raises(RunError, match="root certificate is missing"):
        root_fingerprint(tmp_path)
