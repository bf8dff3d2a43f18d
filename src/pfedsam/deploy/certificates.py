"""The certificates of a federation at its coordinator: which there are, until when they are valid, and how they are renewed.

A renewed certificate has the key, the names and the first day of the one before; only its last day and its serial number differ. So nothing
new is trusted by a renewal, a fingerprint stays the same, and sites with the root certificate before the renewal can connect until it ends.
"""

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, NamedTuple

from cryptography import x509

from pfedsam.core import atomic
from pfedsam.core.errors import RunError
from pfedsam.deploy import keys

ADMIN: Final = "coordinator@pfedsam.local"
WORK: Final = "provision"
"""The folder of NVFlare's provisioner in the coordinator's folder."""
ROOT_DAYS: Final = 3650
"""The root certificate ends this number of days after it was made or renewed."""
DAYS: Final = 360
"""The other certificates end this number of days after they were made or renewed; NVFlare's provisioner has the same number."""
_ROOT, _ROOT_KEY, _CERTIFICATE = "root_cert", "root_pri_key", "cert"


OWN: Final = ("root certificate", "this coordinator")
"""The names in `expiries` of what `renew_coordinator` renews; no site can have such a name."""


class Expiry(NamedTuple):
    """The last moment of a certificate."""

    name: str
    """A site, or one of `OWN`."""
    until: datetime

    @property
    def soon(self) -> bool:
        """Whether it has passed, or will within `keys.SOON`."""
        return self.until - datetime.now(UTC) < keys.SOON


def known_as(folder: Path) -> tuple[str, str, int]:
    """Project, host name and port of the coordinator in a folder.

    Raises:
        RunError: the folder is not a coordinator's folder.
    """
    try:
        server = json.loads((folder / "server" / "startup" / "fed_server.json").read_text("utf-8"))["servers"][0]
        host, _, port = str(server["service"]["target"]).rpartition(":")
        return str(server["name"]), host, int(port)
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise RunError("this is not a coordinator's folder; make one with `pfedsam coordinator init`.") from error


def read_certificates(folder: Path, project: str) -> dict[str, Any]:
    """The certificates as NVFlare's provisioner stores them, with the root's key; empty for a folder that contains no coordinator yet.

    Raises:
        RunError: the file is missing from a coordinator's folder, or is damaged.
    """
    path = _state(folder, project)
    if not path.exists() and not (folder / "server").exists():
        return {}
    try:
        found = json.loads(path.read_text("utf-8"))
        _loaded(found[_ROOT])
        return dict(found)
    except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise RunError(
            f"the federation's certificates with the root's key ({path.relative_to(folder)} in the coordinator's folder) are missing or "
            "damaged. Restore the file from a backup: without it, nothing can be signed or renewed."
        ) from error


def store(folder: Path, project: str, certificates: Mapping[str, Any]) -> None:
    """Replace the stored certificates, without the private keys of sites."""
    own = {ADMIN, known_as(folder)[1]}
    for name, entry in certificates.items():
        if isinstance(entry, dict) and name not in own:
            entry.pop("pri_key", None)
    atomic.write_json(_state(folder, project), certificates)


def root_days(certificates: Mapping[str, Any]) -> int:
    """The number of days from the first to the last moment of the root certificate, or that of one still to be made.

    Raises:
        RunError: the root certificate has expired.
    """
    if _ROOT not in certificates:
        return ROOT_DAYS
    root = _loaded(certificates[_ROOT])
    if root.not_valid_after_utc <= datetime.now(UTC):
        raise RunError(
            f"the federation's root certificate expired on {root.not_valid_after_utc:%Y-%m-%d}, so it signs nothing: renew it with "
            "`pfedsam coordinator renew`, and try again."
        )
    return (root.not_valid_after_utc - root.not_valid_before_utc).days


def expiries(folder: Path) -> list[Expiry]:
    """Until when the certificates of a federation are valid: the root, the coordinator's own, and those of the sites by name.

    Returns:
        One entry per party; empty if the folder contains no certificates.

    Raises:
        RunError: the folder is not a coordinator's folder.
    """
    if not (folder / WORK).exists():
        return []
    project, address, _ = known_as(folder)
    certificates = read_certificates(folder, project)
    ends = {
        name: _loaded(entry[_CERTIFICATE]).not_valid_after_utc
        for name, entry in certificates.items()
        if isinstance(entry, dict)
    }
    own = min(ends.pop(ADMIN), ends.pop(address))
    root = _loaded(certificates[_ROOT]).not_valid_after_utc
    return [Expiry(OWN[0], root), Expiry(OWN[1], own), *(Expiry(name, ends[name]) for name in sorted(ends))]


def has_certificate(folder: Path, name: str) -> bool:
    """Whether a site has a certificate of the federation, valid or not.

    Raises:
        RunError: the folder is not a coordinator's folder.
    """
    return name in read_certificates(folder, known_as(folder)[0])


def renew_coordinator(folder: Path) -> None:
    """Renew the root certificate and the coordinator's own certificates.

    Raises:
        RunError: the folder is not a coordinator's folder.
    """
    project, address, _ = known_as(folder)
    certificates = read_certificates(folder, project)
    key = certificates[_ROOT_KEY].encode()
    root = _loaded(certificates[_ROOT])
    # NVFlare requires that the root is valid for a whole number of days.
    days = (datetime.now(UTC) - root.not_valid_before_utc).days + ROOT_DAYS
    certificates[_ROOT] = _renewed(root, key, root.not_valid_before_utc + timedelta(days=days))
    for name in (ADMIN, address):
        until = datetime.now(UTC) + timedelta(days=DAYS)
        certificates[name][_CERTIFICATE] = _renewed(_loaded(certificates[name][_CERTIFICATE]), key, until)
    store(folder, project, certificates)
    for place, file, name in (("server", "server.crt", address), ("admin", keys.CERTIFICATE, ADMIN)):
        atomic.write_text(folder / place / "startup" / keys.ROOT, certificates[_ROOT])
        atomic.write_text(folder / place / "startup" / file, certificates[name][_CERTIFICATE])


def renewed_for(certificates: Mapping[str, Any], name: str, request: x509.CertificateSigningRequest) -> bytes:
    """A certificate for a site that has one, valid for longer.

    Raises:
        RunError: the request is for another key than that of the site's certificate.
    """
    entry, root = certificates[name], _loaded(certificates[_ROOT])
    stored = _loaded(entry[_CERTIFICATE]) if isinstance(entry, dict) else None
    if stored is None or stored.public_key() != request.public_key():
        raise RunError(
            f"site {name!r} has a certificate already, for another key. A certificate is renewed for the same key only, with the file that "
            "`pfedsam site request` writes in the site's folder. If the site has lost its key, revoke it with "
            "`pfedsam coordinator revoke`, and let it make a request with another name."
        )
    until = min(datetime.now(UTC) + timedelta(days=DAYS), root.not_valid_after_utc)
    return _renewed(stored, certificates[_ROOT_KEY].encode(), until).encode()


def _renewed(model: x509.Certificate, root_key: bytes, until: datetime) -> str:
    return keys.certify(model, model, root_key, until).decode("ascii")


def _loaded(pem: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate(pem.encode())


def _state(folder: Path, project: str) -> Path:
    """The file in which NVFlare's provisioner stores the certificates that it has made."""
    return folder / WORK / project / "state" / "cert.json"
