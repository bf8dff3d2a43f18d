"""`pfedsam site check` reports each problem under the name of its check."""

import json
import shutil
import socket
import ssl
import threading
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from volume_files import write_nifti

from pfedsam.data.synthetic import SyntheticOptions, write_sites
from pfedsam.deploy import preflight
from pfedsam.deploy.certificates import read_certificates
from pfedsam.deploy.keys import certify, read_certificate
from pfedsam.deploy.preflight import check_site_ready
from pfedsam.deploy.site_kit import install_kit
from pfedsam.federation.manifest import StudyManifest
from pfedsam.federation.site_policy import SitePolicy


@pytest.fixture
def site(kits: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "north"
    folder.mkdir(mode=0o700)
    write_sites(tmp_path / "data", SyntheticOptions(sites=1, cases=2, side=64), seed=1)
    (data,) = [path for path in (tmp_path / "data").iterdir() if path.is_dir()]
    install_kit(kits / "kits" / "north.zip", folder / "nvflare")
    (folder / "site.yaml").write_text(f"name: north\ndata: {data}\n")
    return folder


def wrong(site: Path) -> dict[str, str]:
    return {finding.what: finding.text for finding in check_site_ready(site) if not finding.ok}


def test_a_site_that_lacks_only_its_coordinator_and_an_approval(site: Path) -> None:
    found = wrong(site)
    assert set(found) == {"coordinator", "studies"}
    assert "nothing listens" in found["coordinator"]


def test_another_sites_kit(site: Path, kits: Path) -> None:
    shutil.rmtree(site / "nvflare")
    install_kit(kits / "kits" / "south.zip", site / "nvflare")
    assert "use the kit of this site" in wrong(site)["certificate"]


def test_a_key_that_others_can_read(site: Path) -> None:
    (site / "nvflare" / "startup" / "client.key").chmod(0o644)
    assert "chmod 600" in wrong(site)["certificate"]


def test_a_certificate_of_another_root(site: Path, kits: Path) -> None:
    shutil.copy(site / "nvflare" / "startup" / "client.crt", site / "nvflare" / "startup" / "rootCA.pem")
    assert "not signed by the kit's root" in wrong(site)["certificate"]


def test_a_clock_that_is_behind(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Past(preflight.datetime):
        @classmethod
        def now(cls, tz=None):
            return super().now(tz).replace(year=2001)

    monkeypatch.setattr(preflight, "datetime", Past)
    assert "set the clock" in wrong(site)["clock"]


def test_an_address_that_does_not_exist(site: Path) -> None:
    path = site / "nvflare" / "startup" / "fed_client.json"
    config = json.loads(path.read_text())
    config["servers"][0]["service"]["target"] = "no-such-host.invalid:8102"
    path.write_text(json.dumps(config))
    found = wrong(site)
    assert "cannot be resolved" in found["address"]
    assert "coordinator" in found


def test_a_machine_that_speaks_no_tls(site: Path) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        path = site / "nvflare" / "startup" / "fed_client.json"
        config = json.loads(path.read_text())
        config["servers"][0]["service"]["target"] = f"localhost:{server.getsockname()[1]}"
        path.write_text(json.dumps(config))

        def hello() -> None:
            with server.accept()[0] as one:
                one.sendall(b"SSH-2.0-OpenSSH_9.9\r\n")
                one.recv(1000)

        thread = threading.Thread(target=hello, daemon=True)
        thread.start()
        assert "localhost" in wrong(site)["coordinator"]
        thread.join(timeout=5)


def test_a_coordinator_whose_certificate_has_expired_or_whose_site_has_a_wrong_clock(
    site: Path, kits: Path, tmp_path: Path
) -> None:
    startup, root_key = kits / "server" / "startup", read_certificates(kits, "test")["root_pri_key"].encode()
    own = read_certificate(startup / "server.crt")
    (tmp_path / "old.crt").write_bytes(certify(own, own, root_key, own.not_valid_before_utc + timedelta(seconds=1)))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "old.crt", startup / "server.key")
    with socket.create_server(("127.0.0.1", 0)) as server:
        path = site / "nvflare" / "startup" / "fed_client.json"
        config = json.loads(path.read_text())
        config["servers"][0]["service"]["target"] = f"localhost:{server.getsockname()[1]}"
        path.write_text(json.dumps(config))

        def answer() -> None:
            with server.accept()[0] as one, suppress(OSError):  # the site ends the connection
                context.wrap_socket(one, server_side=True)

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        found = wrong(site)["coordinator"]
        thread.join(timeout=5)
    assert "set the clock if it is wrong" in found
    assert "`pfedsam coordinator renew`" in found


def test_missing_data_and_a_full_disk(site: Path) -> None:
    text = (site / "site.yaml").read_text()
    (site / "site.yaml").write_text(f"name: north\ndata: {site / 'nowhere'}\nmin_free_mb: 999999999999\n")
    found = wrong(site)
    assert "there is no folder" in found["data"]
    assert "correct `data` in site.yaml" in found["data"]
    assert "free some disk space" in found["folder"]
    (site / "site.yaml").write_text(text)
    site.chmod(0o755)
    assert "chmod 700" in wrong(site)["folder"]


def study_manifest(**data: object) -> StudyManifest:
    """The manifest of a study in which no tensor is shared, with these options of its data."""
    return StudyManifest(
        study="0123456789abcdef",
        name="nuclei",
        method="pfedsam",
        rounds=1,
        configuration={
            "data": {"classes": {"n": [1]}, **data},
            "model": {"backbone": "sam.pth"},
            "communication": {"codec": "fp32"},
        },
        backbone="b" * 64,
        tensors={},
        components={},
        max_change=1.0,
        pipeline=("encode as fp32",),
        scalar_metrics={},
    )


def test_cases_of_two_sequences_are_no_images_without_masks(site: Path) -> None:
    data = site.parent / "volumes"
    for name in ("images/a_t1", "images/a_t2", "masks/a"):
        write_nifti(data / f"{name}.nii.gz", np.ones((4, 4, 3), np.uint8))
    (site / "site.yaml").write_text(f"name: north\ndata: {data}\n")
    SitePolicy(site).approve(study_manifest(volume={"channels": ["_t1", "_t2"]}))
    found = {finding.what: finding for finding in check_site_ready(site)}
    assert found["data"].ok
    assert found["data for 0123456789abcdef"].text.startswith("1 cases, no problem")


def test_the_spacing_in_site_yaml_is_that_of_the_check_too(site: Path) -> None:
    text = (site / "site.yaml").read_text()
    data = Path(text.split("data: ")[1].strip())
    first, second = sorted(path.name for path in (data / "images").iterdir())
    lines = [f"images/{first},masks/{first},p1,0.5x0.5", f"images/{second},masks/{second},p2,"]
    (data / "manifest.csv").write_text("\n".join(["image,mask,patient,spacing", *lines]))
    SitePolicy(site).approve(study_manifest(classes={"disc": [1], "ring": [2]}))
    warning = "no spacing, where 1 other case(s) have one"
    assert warning in {finding.what: finding.text for finding in check_site_ready(site)}["data for 0123456789abcdef"]
    (site / "site.yaml").write_text(f"{text}spacing: [0.5, 0.5]\n")
    assert (
        warning not in {finding.what: finding.text for finding in check_site_ready(site)}["data for 0123456789abcdef"]
    )


def test_a_backbone_that_only_lies_in_the_working_directory(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    SitePolicy(site).approve(study_manifest())
    monkeypatch.chdir(tmp_path)
    Path("sam.pth").touch()
    assert "set the path of your copy as `backbone` in site.yaml" in wrong(site)["backbone for 0123456789abcdef"]
