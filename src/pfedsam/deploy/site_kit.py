"""A site's startup kit: what the site takes from it, and the check of what is installed.

A kit comes by ordinary mail, and NVFlare's client runs what the files of its folder `startup/` name: before it connects, it builds every
class under `components` in `fed_client.json` and in every `*resources.json` there, and its list of allowed classes does not apply to them.
So a kit is read as data: two certificates, a key unless the site has its own, and the values of `ClientSettings`. The site writes its files
from these, and unpacks nothing. `check_startup` is called again at every start, because earlier versions unpacked whole kits.
"""

import io
import json
import zipfile
import zlib
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding

from pfedsam.core import atomic
from pfedsam.core.errors import RunError
from pfedsam.deploy import keys
from pfedsam.deploy.client_settings import ClientSettings, read_settings
from pfedsam.deploy.site_rules import write_site_rules

CLIENT_CONFIG: Final = "fed_client.json"
"""The file with the coordinator's address and the site's name."""
STARTUP: Final = "startup"
_CERTIFICATES: Final = (keys.CERTIFICATE, keys.ROOT)
_OWN: Final = frozenset({CLIENT_CONFIG, *_CERTIFICATES, keys.KEY})
_UNUSED: Final = frozenset({"start.sh", "sub_start.sh", "stop_fl.sh"})
"""Scripts of NVFlare's provisioner in kits of earlier versions; nothing runs them."""
_MAX_KIT_BYTES: Final = 4 * 2**20
_MAX_KIT_FILES: Final = 200


def write_kit(kit: Path, settings: ClientSettings, files: Mapping[str, bytes]) -> None:
    """Write the kit of a site into a file that only its owner can read.

    Args:
        kit: the archive to write.
        settings: what the site's client is configured with.
        files: the certificates, and the key if the coordinator has made it, by the names of their files.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(files):
            archive.writestr(f"{STARTUP}/{name}", files[name])
        archive.writestr(f"{STARTUP}/{CLIENT_CONFIG}", json.dumps(settings.configuration(), indent=2))
    atomic.write_bytes(kit, buffer.getvalue())


def install_kit(kit: Path, workspace: Path, *, own_key: bool = False) -> ClientSettings:
    """Write a site's NVFlare workspace from the data in a kit, with the site's own rules, and return the client's settings.

    Args:
        kit: the archive of the kit.
        workspace: the site's NVFlare folder.
        own_key: whether the workspace contains the site's key already; the kit must then contain none, or this one, which an interrupted
            call has written.

    Raises:
        RunError: the file is not a site's kit, contains anything else, or its certificate does not belong to the site's key.
    """
    files, startup = _read_kit(kit), workspace / STARTUP
    settings, own, _ = _check_kit(kit, files)
    if own_key and keys.KEY in files and files[keys.KEY] != keys.read_key(startup / keys.KEY):
        raise RunError(f"{kit.name} contains a key, but the kit for this site's request must contain none.")
    if not own_key and keys.KEY not in files:
        raise RunError(
            f"{kit.name} contains no key, because it was made for a request: name the folder in which `pfedsam site request` "
            "made the key."
        )
    key = keys.read_key(startup / keys.KEY) if own_key else files[keys.KEY]
    if not keys.belong_together(own, key):
        raise RunError(f"{kit.name} has no certificate for this site's key; ask the coordinator for this site's kit.")
    for folder in (workspace, startup):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.chmod(0o700)
    for name in (*(() if own_key else (keys.KEY,)), *_CERTIFICATES):
        atomic.write_bytes(startup / name, files[name])
    write_client_config(startup, settings)
    write_site_rules(workspace)
    return settings


def renew_kit(kit: Path, workspace: Path) -> datetime:
    """Replace a site's certificate and the root certificate by those of a renewed kit, and return until when both are valid.

    Args:
        kit: the archive of the kit.
        workspace: the site's NVFlare folder.

    Raises:
        RunError: the file is not a kit of this site, or of another federation, or its certificate is for another key or ends earlier than
            the installed one; nothing was changed.
    """
    files, startup = _read_kit(kit), workspace / STARTUP
    settings, own, root = _check_kit(kit, files)
    known = keys.read_certificate(startup / keys.ROOT)
    if root.public_key() != known.public_key():
        raise RunError(
            f"{kit.name} has another root certificate, whose key is not that of this site's federation. It is the kit of another "
            "federation, or was changed on its way: tell the coordinator's operator. Nothing was changed."
        )
    if not keys.belong_together(own, keys.read_key(startup / keys.KEY)):
        raise RunError(
            f"{kit.name} has no certificate for this site's key. Let the coordinator sign the request that `pfedsam site request` writes "
            "in this site's folder. Nothing was changed."
        )
    _refuse_earlier(kit, own, startup / keys.CERTIFICATE)
    for name in _CERTIFICATES:
        atomic.write_bytes(startup / name, files[name])
    write_client_config(startup, settings)
    return valid_until(startup)


def _refuse_earlier(kit: Path, own: x509.Certificate, installed: Path) -> None:
    """Refuse a kit that was made before the one that is installed, because a site has several kits of one name in the course of time.

    Raises:
        RunError: the certificate of the kit ends before the installed one.
    """
    try:
        end = keys.read_certificate(installed).not_valid_after_utc
    except RunError:  # the kit replaces a damaged certificate
        return
    if own.not_valid_after_utc < end:
        raise RunError(
            f"{kit.name} is an earlier kit: its certificate ends on {own.not_valid_after_utc:%Y-%m-%d}, and the installed one on "
            f"{end:%Y-%m-%d}. Give the kit that `pfedsam coordinator sign` made last. Nothing was changed."
        )


def valid_until(startup: Path) -> datetime:
    """Until when a site can connect: the end of its certificate or of the root certificate.

    Raises:
        RunError: a certificate is missing or cannot be read.
    """
    return min(keys.read_certificate(startup / name).not_valid_after_utc for name in _CERTIFICATES)


def write_client_config(startup: Path, settings: ClientSettings) -> None:
    """Write the configuration of NVFlare's client from checked settings."""
    atomic.write_json(startup / CLIENT_CONFIG, settings.configuration())


def check_startup(startup: Path) -> ClientSettings:
    """Check that an installed folder `startup/` contains the data of a kit and nothing that NVFlare could run.

    Returns:
        What the client is configured with.

    Raises:
        RunError: the site has no kit, or the folder contains anything else.
    """
    try:
        names = {path.name for path in startup.iterdir()}
        data = (startup / CLIENT_CONFIG).read_bytes()
        certificates = {name: (startup / name).read_bytes() for name in _CERTIFICATES}
    except OSError as error:
        raise RunError(
            f"the site has no startup kit, or a part of it cannot be read ({Path(str(error.filename)).name}: {error.strerror}); make the "
            "site with `pfedsam site init`, or install its kit again with `pfedsam site renew`."
        ) from error
    if strange := sorted(name for name in names - _OWN - _UNUSED if not _is_temporary(name)):
        raise RunError(
            f"the site's folder nvflare/startup contains {strange[0]!r}, which is not part of a startup kit: NVFlare could run programs "
            "that such a file names. If you did not put it there, the kit was changed on its way: tell the coordinator's operator. "
            "Nothing is started before the file is removed."
        )
    for name, content in certificates.items():
        _one_certificate(content, name)
    return read_settings(data, CLIENT_CONFIG)


def _is_temporary(name: str) -> bool:
    """Whether a file was left by a process that was killed while it replaced another (`core.atomic`)."""
    return name.startswith(".") and name.endswith(".tmp")


def _read_kit(kit: Path) -> dict[str, bytes]:
    """The files of a kit by their names, without those that nothing uses; nothing is written.

    Raises:
        RunError: the archive cannot be read, is too large, or contains anything that is not part of a kit.
    """
    try:
        with zipfile.ZipFile(kit) as archive:
            entries = archive.infolist()
            if len(entries) > _MAX_KIT_FILES or sum(entry.file_size for entry in entries) > _MAX_KIT_BYTES:
                raise RunError(f"{kit.name} is larger than a startup kit can be.")
            found = {_file_name(kit, entry): entry for entry in entries if entry.filename != f"{STARTUP}/"}
            return {name: archive.read(entry) for name, entry in found.items() if name in _OWN}
    except (OSError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        why = (error.strerror if isinstance(error, OSError) else None) or error
        raise RunError(
            f"{str(kit)!r} cannot be unpacked: {why}. Give the kit that the coordinator made, or ask for it again."
        ) from error


def _file_name(kit: Path, entry: zipfile.ZipInfo) -> str:
    """The name of an entry in the kit's folder.

    Raises:
        RunError: a kit does not contain such a file.
    """
    folder, _, name = entry.filename.partition("/")
    link = (entry.external_attr >> 16) & 0o170000 == 0o120000
    if folder != STARTUP or name not in _OWN | _UNUSED or link:
        raise RunError(
            f"{kit.name} contains {entry.filename!r}, which does not belong in a startup kit; it is refused. Whoever had the kit may have "
            "changed it: tell the coordinator's operator, and ask for the kit again."
        )
    return name


def _check_kit(kit: Path, files: Mapping[str, bytes]) -> tuple[ClientSettings, x509.Certificate, x509.Certificate]:
    """Check the files of a kit by themselves, and return the settings of the client, the site's certificate and the root.

    Raises:
        RunError: a file is missing or not allowed, or the certificate is not one of the kit's root for the kit's site.
    """
    for name in (CLIENT_CONFIG, *_CERTIFICATES):
        if name not in files:
            raise RunError(f"{kit.name} is not a site's startup kit: it has no {STARTUP}/{name}.")
    settings = read_settings(files[CLIENT_CONFIG], f"{CLIENT_CONFIG} in {kit.name}")
    own, root = (_one_certificate(files[name], f"{name} in {kit.name}") for name in _CERTIFICATES)
    if keys.name_in(own) != settings.site:
        raise RunError(f"{kit.name} is for site {settings.site!r}, but its certificate is not; ask for the kit again.")
    try:
        own.verify_directly_issued_by(root)
    except (ValueError, TypeError, InvalidSignature) as error:
        raise RunError(
            f"the certificate in {kit.name} was not signed by the root in it; ask for the kit again."
        ) from error
    return settings, own, root


def _one_certificate(data: bytes, where: str) -> x509.Certificate:
    """The only certificate in a PEM file.

    A second one after it would be trusted too, but operators compare the fingerprint of the first.

    Raises:
        RunError: the file contains no certificate, or anything else.
    """
    try:
        found = x509.load_pem_x509_certificate(data)
        if data == found.public_bytes(Encoding.PEM):
            return found
    except ValueError as error:
        raise RunError(f"{where} is not a certificate; ask the coordinator for the kit again.") from error
    raise RunError(
        f"{where} contains more than one certificate in the usual form, so it is refused. Whoever had the kit may have changed it: tell "
        "the coordinator's operator, and ask for the kit again."
    )
