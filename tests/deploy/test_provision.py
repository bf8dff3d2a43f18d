"""A kit contains the secrets of one site and no policy, and its files cannot be written outside the site's folder."""

import json
import stat
import zipfile
from pathlib import Path
from typing import Any

import pytest

from pfedsam.core.errors import OptionError, RunError
from pfedsam.deploy.client_settings import is_address
from pfedsam.deploy.provision import certified_sites, provision


def test_keys_stand_in_their_kits_alone_and_are_private(kits: Path) -> None:
    sites = [path.name for path in kits.rglob("*.key") if path.name == "client.key"]
    assert sites == ["client.key"]  # the coordinator's own control connection
    for path in [*kits.rglob("*.key"), *(kits / "kits").iterdir()]:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    for name in ("north", "south"):
        with zipfile.ZipFile(kits / "kits" / f"{name}.zip") as archive:
            assert {entry.split("/")[0] for entry in archive.namelist()} == {"startup"}


def test_a_second_time_adds_the_new_site_and_keeps_the_others(tmp_path: Path) -> None:
    provision(tmp_path, "test", "localhost", 58112, ["north"])
    before = (tmp_path / "kits" / "north.zip").read_bytes()
    root = (tmp_path / "server" / "startup" / "rootCA.pem").read_bytes()
    provision(tmp_path, "test", "localhost", 58112, ["north", "west"])
    assert (tmp_path / "kits" / "north.zip").read_bytes() == before
    with zipfile.ZipFile(tmp_path / "kits" / "west.zip") as archive:
        assert archive.read("startup/rootCA.pem") == root


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
