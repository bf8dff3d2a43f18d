"""The coordinator's side of keys, certificates and startup kits, with NVFlare's provisioner.

The coordinator makes one kit per site: the site's certificate, the root certificate, the coordinator's address, and the site's key unless
the site has made its key itself (`keys`). A kit is data: `site_kit` says what a site takes from it. The coordinator's own folders `server/`
and `admin/` also contain files that name NVFlare's classes; all of them are made here, on this machine, and none comes from a site.
"""

import contextlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.x509.oid import NameOID
from nvflare.lighter.prov_utils import prepare_builders
from nvflare.lighter.provision import prepare_project
from nvflare.lighter.provisioner import Provisioner

from pfedsam.core import atomic
from pfedsam.core.errors import OptionError, RunError
from pfedsam.deploy import keys
from pfedsam.deploy.certificates import ADMIN, WORK, known_as, read_certificates, renewed_for, root_days, store
from pfedsam.deploy.client_settings import MAX_PORT, PROJECT, ClientSettings, is_address
from pfedsam.deploy.jobs import GUARD
from pfedsam.deploy.limits import CONNECTIONS, MIN_MESSAGE_BYTES, connection_settings
from pfedsam.deploy.site_kit import write_kit

_BUILDERS: Final = "nvflare.lighter.impl"


def provision(folder: Path, project: str, address: str, port: int, sites: Sequence[str]) -> list[str]:
    """Make keys and kits in `folder`: `server/`, `admin/` and `kits/<site>.zip`. A second call adds only the new sites.

    Args:
        folder: the coordinator's folder.
        project: the name of the project, also in NVFlare.
        address: the host name or IPv4 address under which sites reach this machine; the certificate contains it.
        port: the port that sites connect to; the next higher port is for the coordinator's own control connection.
        sites: the names of the sites; those that have a certificate already are not changed.

    Returns:
        The sites for which a kit was made.

    Raises:
        OptionError: the project, the address, the port or a site cannot be as given; nothing was written.
        RunError: the folder contains a coordinator with another project, address or port, or other files, so that nothing was written; or
            NVFlare could not make the kits.
    """
    _check_settings(project, address, port, sites)
    _check_folder(folder, project, address, port)
    known = read_certificates(folder, project)
    # A key is among the stored certificates only until its kit is written; if that was interrupted, the kit is still to be made.
    new = [site for site in sites if site not in known or "pri_key" in known[site]]
    made = _make(folder / WORK, _project(project, address, port, new, root_days(known)))
    _make_private(made)
    for name, target in ((address, "server"), (ADMIN, "admin")):
        if not (folder / target).exists():
            (made / name).rename(folder / target)  # in one step: a part of it would be taken for a coordinator
    (folder / "kits").mkdir(exist_ok=True, mode=0o700)
    for site in new:
        settings = ClientSettings(project, address, port, address, site)
        startup, names = made / site / "startup", (keys.CERTIFICATE, keys.ROOT, keys.KEY)
        write_kit(folder / "kits" / f"{site}.zip", settings, {name: (startup / name).read_bytes() for name in names})
    for folder_of_keys in made.parent.glob("prod_*"):  # also of a call that was interrupted
        shutil.rmtree(folder_of_keys)
    store(folder, project, read_certificates(folder, project))  # without the sites' keys, which are only in their kits
    _make_private(folder)
    return new


def sign_request(folder: Path, name: str, request: x509.CertificateSigningRequest) -> Path:
    """Make the kit of a site that has its own key; the kit contains no key.

    Args:
        folder: the coordinator's folder.
        name: the site's name. If it has a certificate, this is renewed.
        request: the site's request, as `keys.read_request` returns it.

    Returns:
        The kit's path.

    Raises:
        OptionError: the site has the coordinator's address as its name.
        RunError: the name has a certificate for another key, the root certificate has expired, or the folder is not a coordinator's folder.
    """
    project, address, port = known_as(folder)
    _check_not_coordinator(name, address)
    certificates = read_certificates(folder, project)
    days = root_days(certificates)
    if name in certificates:
        certificate = renewed_for(certificates, name, request)
    else:
        # In a copy: the provisioner makes a key too, and would store its certificate although this command may be interrupted.
        with tempfile.TemporaryDirectory(dir=folder, prefix=".sign-") as work:
            shutil.copytree(folder / WORK / project / "state", Path(work) / project / "state")
            made = _make(Path(work), _project(project, address, port, [name], days))
            model = x509.load_pem_x509_certificate((made / name / "startup" / keys.CERTIFICATE).read_bytes())
        key = certificates["root_pri_key"].encode()
        certificate = keys.certify(model, request, key, model.not_valid_after_utc)
    certificates[name] = {**certificates.get(name, {}), "cert": certificate.decode("ascii")}
    kit = folder / "kits" / f"{name}.zip"
    files = {keys.CERTIFICATE: certificate, keys.ROOT: certificates["root_cert"].encode()}
    # Before the certificate is stored: if this is interrupted, the site is still a new one when its request is signed again.
    write_kit(kit, ClientSettings(project, address, port, address, name), files)
    store(folder, project, certificates)
    _make_private(folder)
    return kit


def _check_settings(project: str, address: str, port: int, sites: Sequence[str]) -> None:
    """Check what a coordinator is made from.

    Raises:
        OptionError: a setting is not allowed.
    """
    if not PROJECT.fullmatch(project):
        raise OptionError(
            f"{project!r} cannot be the name of a project: use up to 63 letters, digits, spaces, '_', '-' and '.', beginning with a letter "
            "or digit."
        )
    if not is_address(address):
        raise OptionError(
            f"{address!r} is not the address of a machine: give a host name, such as fed.example.org, or an IPv4 address, such as "
            "192.0.2.7, without 'http://' and without a port. A host name has up to 63 letters, digits and '-', in parts separated by dots."
        )
    if not 1 <= port <= MAX_PORT:
        raise OptionError(
            f"{port} is not a port: give a number from 1 to {MAX_PORT}, because the next port is used too."
        )
    for number, site in enumerate(sites):
        keys.check_name(site)
        if site in sites[:number]:
            raise OptionError(f"The site {site!r} is given twice: every site of a federation needs a name of its own.")
        _check_not_coordinator(site, address)


def _check_not_coordinator(site: str, address: str) -> None:
    """Refuse the name of a site that is the coordinator's own: NVFlare tells members apart by their names.

    Raises:
        OptionError: the site has the coordinator's address as its name.
    """
    if site == address:
        raise OptionError(
            f"{site!r} is the coordinator's address, so no site can have this name. Give the site another name."
        )


def _check_folder(folder: Path, project: str, address: str, port: int) -> None:
    """Check that a folder is new or empty, or contains a coordinator with these settings.

    Raises:
        RunError: it contains something else.
    """
    if (folder / "server").exists():
        known = known_as(folder)
        if known != (project, address, port):
            raise RunError(
                f"{str(folder)!r} contains a coordinator already, with the project {known[0]!r}, the address {known[1]!r} and the port "
                f"{known[2]}; nothing was changed. Its certificate and the kits of its sites contain these settings: give the same, or "
                "make a coordinator in a new folder, where every site needs a new kit."
            )
    elif folder.exists() and not folder.is_dir():
        raise RunError(f"{str(folder)!r} is a file, where a folder has to be. Give a new or an empty folder.")
    elif folder.exists() and any(folder.iterdir()) and not (folder / WORK).exists():
        raise RunError(
            f"The folder {str(folder)!r} is not empty and contains no coordinator. Give a new or an empty folder."
        )


def certified_sites(folder: Path) -> set[str]:
    """The sites that have a certificate of the federation, also those that were revoked.

    Raises:
        RunError: the folder is not a coordinator's folder.
    """
    project, address, _ = known_as(folder)
    certificates = read_certificates(folder, project)
    return {name for name, entry in certificates.items() if isinstance(entry, dict)} - {ADMIN, address}


def _make(work: Path, description: dict[str, Any]) -> Path:
    """Let NVFlare's provisioner make the kits of a project in a folder of its own, and return the folder that contains them.

    Raises:
        RunError: the provisioner failed.
    """
    work.mkdir(parents=True, exist_ok=True, mode=0o700)
    with contextlib.redirect_stdout(io.StringIO()):
        context = Provisioner(str(work), prepare_builders(description)).provision(prepare_project(description))
    if context.get("build_error"):
        raise RunError("NVFlare could not make the startup kits; see the messages above.")
    return Path(context.get_result_location())


def _project(project: str, address: str, port: int, sites: Sequence[str], valid_days: int) -> dict[str, Any]:
    participants: list[dict[str, Any]] = [
        {"name": address, "type": "server", "org": "coordinator", "fed_learn_port": port, "admin_port": port + 1},
        {"name": ADMIN, "type": "admin", "org": "coordinator", "role": "project_admin"},
    ]
    participants += [{"name": site, "type": "client", "org": "site"} for site in sites]
    return {
        "api_version": 3,
        "name": project,
        "description": "pFedSAM",
        "participants": participants,
        "gen_scripts": False,
        "builders": [
            {"path": f"{_BUILDERS}.workspace.WorkspaceBuilder", "args": {"template_file": ["master_template.yml"]}},
            {
                "path": f"{_BUILDERS}.static_file.StaticFileBuilder",
                "args": {"config_folder": "config", "scheme": "grpc"},
            },
            {"path": f"{_BUILDERS}.cert.CertBuilder", "args": {"root_valid_days": valid_days}},
            {"path": f"{_BUILDERS}.signature.SignatureBuilder"},
        ],
    }


def write_server_policy(server: Path, limit: int = MIN_MESSAGE_BYTES) -> None:
    """Write the coordinator's rules for NVFlare: only our classes, all storage inside its folder, no message larger than `limit` bytes."""
    storage = "nvflare.app_common.storages.filesystem_storage.FilesystemStorage"
    local = server / "local"
    resources = json.loads((local / "resources.json.default").read_text("utf-8"))
    resources["class_allow_list"] = ["pfedsam.deploy."]
    resources["servers"][0] |= {"heart_beat_timeout": 30, "admin_timeout": 10.0}
    snapshots = resources["snapshot_persistor"]["args"]["storage"]
    snapshots |= {"path": storage, "args": {"root_dir": str(server / "snapshots"), "uri_root": "/"}}
    for component in resources["components"]:
        if component["id"] == "job_manager":
            component["args"]["uri_root"] = str(server / "jobs")
        if component["id"] == "process_launcher":
            component["path"] = "pfedsam.deploy.launchers.CoordinatorJobLauncher"
    kept = [component for component in resources["components"] if component["id"] not in ("log_receiver", "guard")]
    resources["components"] = [*kept, {"id": "guard", "path": GUARD, "args": {"own": [ADMIN, *_own_names(server)]}}]
    atomic.write_json(local / "resources.json", resources)
    atomic.write_json(local / CONNECTIONS, connection_settings(limit))


def _own_names(server: Path) -> list[str]:
    """The name in the server's own certificate, which the processes of its jobs use too."""
    certificate = x509.load_pem_x509_certificate((server / "startup" / "server.crt").read_bytes())
    return [str(part.value) for part in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]


def _make_private(folder: Path) -> None:
    """Let only the owner read what is in a coordinator's folder; a running coordinator may remove files of it meanwhile."""
    for place, _, names in os.walk(folder):
        for path in [Path(place), *(Path(place, name) for name in names)]:
            with contextlib.suppress(FileNotFoundError):
                if not path.is_symlink():
                    path.chmod(0o700 if path.is_dir() else 0o600)
