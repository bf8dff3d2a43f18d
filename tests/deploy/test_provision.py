"""A kit contains the secrets of one site and no policy, and its files cannot be written outside the site's folder."""

import errno
import json
import os
import stat
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from cryptography import x509

from pfedsam.core.errors import OptionError, RunError
from pfedsam.deploy import keys
from pfedsam.deploy import provision as provisioning
from pfedsam.deploy.certificates import has_certificate
from pfedsam.deploy.client_settings import is_address
from pfedsam.deploy.keys import KEY, make_request, read_request, root_fingerprint
from pfedsam.deploy.provision import _make_private, certified_sites, provision, sign_request
from pfedsam.deploy.site_kit import install_kit


def test_keys_stand_in_their_kits_alone_and_are_private(kits: Path) -> None:
    sites = [path.name for path in kits.rglob("*.key") if path.name == "client.key"]
    assert sites == ["client.key"]  # the coordinator's own control connection
    for path in [*kits.rglob("*.key"), *(kits / "kits").iterdir()]:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    for name in ("north", "south"):
        with zipfile.ZipFile(kits / "kits" / f"{name}.zip") as archive:
            assert {entry.split("/")[0] for entry in archive.namelist()} == {"startup"}


def test_a_file_that_a_running_coordinator_removes_meanwhile_does_not_disturb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A running coordinator replaces `connected.json` every second by way of a temporary file."""
    listed = list(os.walk(tmp_path))
    gone = [(str(tmp_path / "job"), [], ["log.txt"]), (str(tmp_path), [], [".connected.json.x1.tmp"]), *listed]
    monkeypatch.setattr(os, "walk", lambda folder: iter(gone))
    tmp_path.chmod(0o755)
    _make_private(tmp_path)
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o700


def test_a_second_time_adds_the_new_site_and_keeps_the_others(tmp_path: Path) -> None:
    provision(tmp_path, "test", "localhost", 58112, ["north"])
    before = (tmp_path / "kits" / "north.zip").read_bytes()
    root = (tmp_path / "server" / "startup" / "rootCA.pem").read_bytes()
    provision(tmp_path, "test", "localhost", 58112, ["north", "west"])
    assert (tmp_path / "kits" / "north.zip").read_bytes() == before
    with zipfile.ZipFile(tmp_path / "kits" / "west.zip") as archive:
        assert archive.read("startup/rootCA.pem") == root


def interrupt(*given: object) -> None:
    raise KeyboardInterrupt


def interrupted_signing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, module: ModuleType, function: str
) -> tuple[str, x509.CertificateSigningRequest]:
    """A request of the site north, whose signing in a new coordinator's folder was interrupted in a function of a module."""
    provision(folder, "test", "localhost", 58112, [])
    make_request(folder / "site" / "startup", "north", folder / "north.csr")
    request = read_request(folder / "north.csr")
    monkeypatch.setattr(module, function, interrupt)
    with pytest.raises(KeyboardInterrupt):
        sign_request(folder, *request)
    monkeypatch.undo()
    return request


def test_a_kit_that_was_interrupted_is_made_the_next_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provisioning, "write_kit", interrupt)
    with pytest.raises(KeyboardInterrupt):
        provision(tmp_path, "test", "localhost", 58112, ["north"])
    monkeypatch.undo()
    assert provision(tmp_path, "test", "localhost", 58112, ["north"]) == ["north"]
    settings = install_kit(tmp_path / "kits" / "north.zip", tmp_path / "site")  # checks key, certificate and root
    assert settings.site == "north"
    assert root_fingerprint(tmp_path / "site" / "startup") == root_fingerprint(tmp_path / "server" / "startup")
    secret = (tmp_path / "site" / "startup" / KEY).read_text().splitlines()[5]
    kept = [path for path in (tmp_path / "provision").rglob("*") if path.is_file()]
    assert [path for path in kept if secret in path.read_text(errors="ignore")] == []
    assert provision(tmp_path, "test", "localhost", 58112, ["north"]) == []


def test_an_interrupted_start_leaves_no_part_of_a_coordinator_and_no_key_for_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved: list[str] = []

    def full(path: Path, target: Path) -> Path:
        moved.append(target.name)
        if target.name == "admin":
            raise OSError(errno.ENOSPC, "No space left on device")
        return Path(os.rename(path, target) or target)

    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(OSError, match="No space left"):
        provision(tmp_path / "coord", "test", "localhost", 58112, [])
    monkeypatch.undo()
    assert moved == ["server", "admin"]
    key = tmp_path / "coord" / "server" / "startup" / "server.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert provision(tmp_path / "coord", "test", "localhost", 58112, ["north"]) == ["north"]
    for place in ("server", "admin"):
        root = tmp_path / "coord" / place / "startup" / "rootCA.pem"
        own = key.with_suffix(".crt") if place == "server" else root.with_name(keys.CERTIFICATE)
        x509.load_pem_x509_certificate(own.read_bytes()).verify_directly_issued_by(keys.read_certificate(root))


def test_a_request_whose_kit_could_not_be_written_is_still_that_of_a_new_site(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its operator would be told to renew a site that has not been installed."""
    request = interrupted_signing(tmp_path, monkeypatch, provisioning, "write_kit")
    assert not has_certificate(tmp_path, "north")
    sign_request(tmp_path, *request)
    assert has_certificate(tmp_path, "north")


def test_a_request_whose_signing_was_interrupted_can_be_signed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name was taken by the certificate of a key that NVFlare's provisioner had made, and nobody has."""
    request = interrupted_signing(tmp_path, monkeypatch, keys, "certify")
    assert install_kit(sign_request(tmp_path, *request), tmp_path / "site", own_key=True).site == "north"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        *(
            ({"address": address}, "is not the address of a machine")
            for address in (
                "http://x/y",
                "",
                "a b",
                "-x",
                "x-",
                "ä.example",
                "a..b",
                "a.",
                "x:80",
                "::1",
                "a\n",
                "x" * 64,
            )
        ),
        *(({"address": address}, "is not the address") for address in ("256.1.1.1", "1.2.3", "1.2.3.4.5", "a.7")),
        ({"address": f"{'x' * 60}.org"}, "up to 63 letters"),
        *(({"port": port}, f"{port} is not a port: give a number from 1 to 65534") for port in (-1, 0, 65535, 70000)),
        ({"sites": ["a", "b", "a"]}, "The site 'a' is given twice"),
        ({"sites": ["fed"], "address": "fed"}, "'fed' is the coordinator's address"),
        *(({"project": name}, "cannot be the name of a project") for name in ("", "../x", "a/b", "-x", "ä", "x" * 64)),
    ],
)
def test_a_setting_that_is_not_allowed_is_refused_before_anything_is_written(
    tmp_path: Path, changed: dict[str, Any], said: str
) -> None:
    settings = {"project": "test", "address": "fed.example.org", "port": 8102, "sites": ["north"], **changed}
    with pytest.raises(OptionError, match=said):
        provision(tmp_path / "coord", **settings)
    assert not (tmp_path / "coord").exists()


@pytest.mark.parametrize("address", ["192.0.2.7", "a", "7", "xn--nhxle-jua.example", f"{'x' * 59}.org"])
def test_host_names_and_addresses_of_machines_are_accepted(address: str) -> None:
    # By RFC 1123 a label has up to 63 letters, digits and inner hyphens. A name that is only a number cannot be told from an address.
    assert is_address(address) is (address != "7")


@pytest.mark.parametrize("changed", [{"address": "other"}, {"port": 58104}, {"project": "other"}])
def test_a_coordinator_keeps_its_settings(kits: Path, changed: dict[str, Any]) -> None:
    before = {path: path.read_bytes() for path in kits.rglob("*") if path.is_file()}
    settings = {"project": "test", "address": "localhost", "port": 58102, "sites": ["west"], **changed}
    said = "contains a coordinator already, with the project 'test', the address 'localhost' and the port 58102; nothing was changed"
    with pytest.raises(RunError, match=said):
        provision(kits, **settings)
    assert {path: path.read_bytes() for path in kits.rglob("*") if path.is_file()} == before


def test_a_folder_with_other_files_is_not_made_a_coordinator(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    (tmp_path / "thesis.txt").chmod(0o644)
    with pytest.raises(RunError, match="is not empty and contains no coordinator"):
        provision(tmp_path, "test", "localhost", 58112, [])
    with pytest.raises(RunError, match="is a file, where a folder has to be"):
        provision(tmp_path / "thesis.txt", "test", "localhost", 58112, [])
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    assert stat.S_IMODE((tmp_path / "thesis.txt").stat().st_mode) == 0o644


def test_the_sites_with_a_certificate_are_those_that_were_named(kits: Path, tmp_path: Path) -> None:
    assert certified_sites(kits) == {"north", "south"}
    for servers in (None, [{"name": "project"}], [{"name": "project", "service": {"target": "host"}}]):
        if servers:
            (tmp_path / "server" / "startup").mkdir(parents=True, exist_ok=True)
            (tmp_path / "server" / "startup" / "fed_server.json").write_text(json.dumps({"servers": servers}))
        with pytest.raises(RunError, match="not a coordinator's folder"):
            certified_sites(tmp_path)
