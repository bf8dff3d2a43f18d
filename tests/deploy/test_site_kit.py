"""A site takes only data from its kit, and nothing that could be run; the installed files are checked again before every start."""

import json
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("nvflare")
from nvflare.apis.workspace import Workspace

from pfedsam.core import atomic
from pfedsam.core.errors import RunError, StoreError
from pfedsam.deploy import site_service
from pfedsam.deploy.client_settings import ClientSettings
from pfedsam.deploy.provision import provision
from pfedsam.deploy.site_kit import check_startup, install_kit

PROGRAM = {"id": "x", "path": "subprocess.Popen", "args": {"args": ["touch", "/tmp/never"]}}
Change = Callable[[dict[str, Any]], object]


def changed(kit: Path, target: Path, files: dict[str, str | bytes]) -> Path:
    """A copy of a kit in which some files are other ones, or are added."""
    with zipfile.ZipFile(kit) as old, zipfile.ZipFile(target, "w") as new:
        content: dict[str, str | bytes] = {name: old.read(name) for name in old.namelist()} | files
        for name, data in content.items():
            new.writestr(name, data)
    return target


def config_of(kit: Path) -> dict[str, Any]:
    with zipfile.ZipFile(kit) as archive:
        return dict(json.loads(archive.read("startup/fed_client.json")))


@pytest.fixture
def kit(kits: Path) -> Path:
    return kits / "kits" / "north.zip"


@pytest.fixture
def site(kit: Path, tmp_path: Path) -> Path:
    """The folder of a site with its kit installed."""
    (tmp_path / "site.yaml").write_text("name: north\ndata: .\n")
    install_kit(kit, tmp_path / "nvflare")
    return tmp_path


def test_a_kit_is_four_files_and_the_site_writes_what_it_reads_from_them(kit: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(kit) as archive:
        assert sorted(archive.namelist()) == [
            f"startup/{name}" for name in ("client.crt", "client.key", "fed_client.json", "rootCA.pem")
        ]
    settings = install_kit(kit, tmp_path / "nvflare")
    assert settings == ClientSettings("test", "localhost", 58102, "localhost", "north")
    startup = tmp_path / "nvflare" / "startup"
    assert check_startup(startup) == settings
    assert json.loads((startup / "fed_client.json").read_text()) == settings.configuration() == config_of(kit)
    for path in startup.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_kit_whose_installation_was_interrupted_is_installed_again_and_that_of_another_key_is_refused(
    kit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes) -> None:
        if path.name == "client.crt":
            raise StoreError("client.crt could not be written: No space left on device.")
        write(path, data)

    write = atomic.write_bytes
    monkeypatch.setattr(atomic, "write_bytes", full)
    with pytest.raises(StoreError, match="No space left"):
        install_kit(kit, tmp_path / "nvflare")
    monkeypatch.undo()
    with pytest.raises(
        RunError, match=r"south.zip contains a key, but the kit for this site's request must contain none"
    ):
        install_kit(kit.with_name("south.zip"), tmp_path / "nvflare", own_key=True)
    assert install_kit(kit, tmp_path / "nvflare", own_key=True).site == "north"
    assert check_startup(tmp_path / "nvflare" / "startup").site == "north"


def test_nvflare_reads_the_two_files_that_the_site_wrote(site: Path) -> None:
    found = Workspace(str(site / "nvflare"), site_name="north").get_config_files_for_startup(False, for_job=False)
    assert [Path(path).relative_to(site).as_posix() for path in found] == [
        "nvflare/startup/fed_client.json",
        "nvflare/local/resources.json",
    ]


@pytest.mark.parametrize("name", ["x__resources.json", "x__p_resources.json", "custom/evil.py", "evil.py", "x.json"])
def test_a_kit_with_a_file_that_nvflare_could_run_is_refused(kit: Path, tmp_path: Path, name: str) -> None:
    evil = changed(kit, tmp_path / "evil.zip", {f"startup/{name}": json.dumps({"components": [PROGRAM]})})
    with pytest.raises(RunError, match="does not belong in a startup kit") as refusal:
        install_kit(evil, tmp_path / "nvflare")
    assert name in str(refusal.value)
    assert not (tmp_path / "nvflare").exists()


CONFIGURATIONS: dict[str, Change] = {
    "a program": lambda c: c.update(components=[PROGRAM]),
    "a validator": lambda c: c.update(app_validator=PROGRAM),
    "a relay": lambda c: c.update(relay_config={"address": "evil.example:1"}),
    "unsigned jobs": lambda c: c.update(require_signed_jobs=False),
    "no encryption": lambda c: c["client"].update(connection_security="clear"),
    "another transport": lambda c: c["servers"][0]["service"].update(scheme="http"),
    "another key": lambda c: c["client"].update(ssl_private_key="../../other.key"),
    "two servers": lambda c: c["servers"].append(c["servers"][0]),
    "no server": lambda c: c.update(servers=[]),
    "no site": lambda c: c["client"].pop("fqsn"),
    "no client": lambda c: c.pop("client"),
    "another site": lambda c: c["client"].update(fqsn="south"),
    "a path as the site": lambda c: c["client"].update(fqsn="../x"),
    "a list as the site": lambda c: c["client"].update(fqsn=["north"]),
    "a path as the project": lambda c: c["servers"][0].update(name="../x"),
    "a number as the project": lambda c: c["servers"][0].update(name=7),
    "an option as the address": lambda c: c["servers"][0]["service"].update(target="-x:8102"),
    "no port": lambda c: c["servers"][0]["service"].update(target="localhost"),
    "a port that is none": lambda c: c["servers"][0]["service"].update(target="localhost:99999"),
    "a number as the address": lambda c: c["servers"][0]["service"].update(target=7),
    "no identity": lambda c: c["servers"][0].pop("identity"),
}


@pytest.mark.parametrize("what", CONFIGURATIONS)
def test_a_configuration_with_anything_else_is_refused_in_a_kit_and_before_a_start(
    kit: Path, site: Path, tmp_path: Path, what: str
) -> None:
    config = config_of(kit)
    CONFIGURATIONS[what](config)
    with pytest.raises(RunError):
        install_kit(
            changed(kit, tmp_path / "evil.zip", {"startup/fed_client.json": json.dumps(config)}), tmp_path / "n"
        )
    assert not (tmp_path / "n").exists()
    if what != "another site":  # which the certificate shows, when the kit is installed
        (site / "nvflare" / "startup" / "fed_client.json").write_text(json.dumps(config))
        with pytest.raises(RunError):
            check_startup(site / "nvflare" / "startup")


@pytest.mark.parametrize("text", ["", "[]", "null", "7", "{", '"x"', "[" * 100_000, '{"servers": 1}', "\udcff"])
def test_a_configuration_that_is_none_is_refused(kit: Path, tmp_path: Path, text: str) -> None:
    data = text.encode("utf-8", "surrogateescape")
    with pytest.raises(RunError, match="again"):
        install_kit(changed(kit, tmp_path / "evil.zip", {"startup/fed_client.json": data}), tmp_path / "n")


@pytest.mark.parametrize("where", ["before", "after"])
def test_a_second_root_that_no_fingerprint_shows_is_refused(kit: Path, site: Path, tmp_path: Path, where: str) -> None:
    provision(tmp_path / "evil", "evil", "localhost", 58104, [])
    second = (tmp_path / "evil" / "server" / "startup" / "rootCA.pem").read_bytes()
    root = site / "nvflare" / "startup" / "rootCA.pem"
    both = root.read_bytes() + second if where == "after" else second + root.read_bytes()
    with pytest.raises(RunError, match="more than one certificate"):
        install_kit(changed(kit, tmp_path / "evil.zip", {"startup/rootCA.pem": both}), tmp_path / "n")
    root.write_bytes(both)
    with pytest.raises(RunError, match="more than one certificate"):
        check_startup(root.parent)


def test_a_kit_whose_certificate_is_not_one_of_its_root_is_refused(kit: Path, tmp_path: Path) -> None:
    provision(tmp_path / "evil", "evil", "localhost", 58104, [])
    second = (tmp_path / "evil" / "server" / "startup" / "rootCA.pem").read_bytes()
    with pytest.raises(RunError, match="not signed by the root"):
        install_kit(changed(kit, tmp_path / "evil.zip", {"startup/rootCA.pem": second}), tmp_path / "n")


def test_a_kit_of_an_earlier_version_with_nvflares_scripts_is_installed_without_them(kit: Path, tmp_path: Path) -> None:
    scripts = {f"startup/{name}": "#!/bin/sh\n" for name in ("start.sh", "sub_start.sh", "stop_fl.sh")}
    install_kit(changed(kit, tmp_path / "old.zip", scripts), tmp_path / "nvflare")
    assert not list((tmp_path / "nvflare").rglob("*.sh"))


def started(site: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What stands in `startup/` and `local/` when NVFlare's client would be started; empty if it is not."""
    found: list[str] = []

    def serve(*_: object) -> bool:
        nvflare = site / "nvflare"
        found.extend(p.relative_to(nvflare).as_posix() for p in sorted(nvflare.glob("[sl]*/**/*")) if p.is_file())
        return True

    monkeypatch.setattr(site_service.Engine, "serve", serve)
    site_service.run_site(site)
    return found


def test_an_installed_kit_of_an_earlier_version_starts(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("start.sh", "sub_start.sh", "stop_fl.sh", ".client.crt.x1.tmp"):
        (site / "nvflare" / "startup" / name).touch()
    assert "startup/fed_client.json" in started(site, monkeypatch)


@pytest.mark.parametrize("name", ["x__resources.json", "custom", "evil.py"])
def test_an_installed_file_that_nvflare_could_run_stops_the_start(
    site: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (site / "nvflare" / "startup" / name).write_text(json.dumps({"components": [PROGRAM]}))
    with pytest.raises(RunError, match=f"contains '{name}'"):
        started(site, monkeypatch)


def test_what_else_stands_in_the_sites_rules_is_removed_before_a_start(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = site / "nvflare" / "local"
    (local / "custom").mkdir()
    for name in ("x__resources.json", "job_resources.json", "resources.json.default", "custom/sitecustomize.py"):
        (local / name).write_text(json.dumps({"components": [PROGRAM]}))
    rules = ("authorization", "comm_config", "log_config", "privacy", "resources")
    assert [path for path in started(site, monkeypatch) if path.startswith("local/")] == [
        f"local/{name}.json" for name in rules
    ]


def test_a_start_that_is_refused_leaves_the_files_of_the_running_agent_alone(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with site_service.running_as(site / site_service.AGENT, "running"):
        before = {path: path.stat().st_mtime_ns for path in (site / "nvflare").rglob("*")}
        with pytest.raises(RunError, match="already running"):
            started(site, monkeypatch)
    assert {path: path.stat().st_mtime_ns for path in (site / "nvflare").rglob("*")} == before


def test_the_sites_own_policy_allows_no_code_no_shell_and_no_logs(kits: Path, tmp_path: Path) -> None:
    settings = install_kit(kits / "kits" / "north.zip", tmp_path / "nvflare")
    assert settings.site == "north"
    local = {path.name: json.loads(path.read_text()) for path in (tmp_path / "nvflare" / "local").iterdir()}
    for rights in local["authorization.json"]["permissions"].values():
        assert rights["byoc"] == rights["shell_commands"] == rights["download_job"] == "none"
    resources = local["resources.json"]
    assert resources["class_allow_list"] == ["pfedsam.deploy.site_side.SiteExecutor"]
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
