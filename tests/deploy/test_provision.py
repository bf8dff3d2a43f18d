"""Kits hold one site's secrets and no policy; what is unpacked at a site cannot lead out of its folder."""

import json
import stat
import zipfile
from pathlib import Path

import pytest

from pfedsam.core.errors import RunError
from pfedsam.deploy.provision import install_kit, provision


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


def test_the_sites_own_policy_allows_no_code_no_shell_and_no_logs(kits: Path, tmp_path: Path) -> None:
    config = install_kit(kits / "kits" / "north.zip", tmp_path / "nvflare")
    assert config["client"]["fqsn"] == "north"
    assert config["client"]["connection_security"] == "mtls"
    local = {path.name: json.loads(path.read_text()) for path in (tmp_path / "nvflare" / "local").iterdir()}
    for rights in local["authorization.json"]["permissions"].values():
        assert rights["byoc"] == rights["shell_commands"] == rights["download_job"] == "none"
    resources = local["resources.json"]
    assert resources["class_allow_list"] == ["pfedsam.deploy.site_side.", "pfedsam.deploy.site_guard."]
    assert resources["allow_log_streaming"] is False
    assert not [one for one in resources["components"] if "log" in one["path"].lower()]
    (scope,) = local["privacy.json"]["scopes"]
    assert scope["name"] == local["privacy.json"]["default_scope"]
    assert [one["path"].rpartition(".")[2] for one in scope["task_result_filters"]] == ["SiteGate"]


@pytest.mark.parametrize(
    "name", ["../evil", "/tmp/evil", "startup/../../evil", "local/privacy.json", "startup\\..\\..\\e/../.."]
)
def test_an_archive_that_leads_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    with zipfile.ZipFile(tmp_path / "kit.zip", "w") as archive:
        archive.writestr("startup/fed_client.json", "{}")
        archive.writestr(name, "evil")
    with pytest.raises(RunError, match="does not belong"):
        install_kit(tmp_path / "kit.zip", tmp_path / "site" / "nvflare")
    assert not list(tmp_path.rglob("evil"))


def test_links_bombs_and_what_is_no_kit_are_refused(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("startup/link")
    link.external_attr = 0o120777 << 16
    for name, entries in {
        "link": {link: "/etc/passwd"},
        "bomb": {"startup/big": "0" * 5_000_000},
        "other": {"startup/x": ""},
    }.items():
        with zipfile.ZipFile(tmp_path / f"{name}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for entry, content in entries.items():
                archive.writestr(entry, content)
        with pytest.raises(RunError):
            install_kit(tmp_path / f"{name}.zip", tmp_path / name)
    (tmp_path / "text.zip").write_text("no archive")
    with pytest.raises(RunError, match="cannot be unpacked"):
        install_kit(tmp_path / "text.zip", tmp_path / "text")
