"""`pfedsam site check`: tests all that a site needs before it starts, and says for each problem what to do."""

import os
import shutil
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidSignature

from pfedsam.core.errors import PfedsamError, RunError
from pfedsam.data.check import check_sites
from pfedsam.data.manifest import read_site
from pfedsam.deploy import keys
from pfedsam.deploy.client_settings import ClientSettings
from pfedsam.deploy.site_kit import STARTUP, check_startup, valid_until
from pfedsam.deploy.site_service import WORKSPACE
from pfedsam.engine.site_agent import study_options
from pfedsam.engine.site_options import SiteOptions, read_site_options
from pfedsam.experiment.build import build_model, build_study, read_one_site
from pfedsam.federation.manifest import StudyManifest
from pfedsam.federation.site_policy import SitePolicy
from pfedsam.model.backbones.checkpoint import backbone_file

_TIMEOUT_S: Final = 5.0
_EXPIRED: Final = 10
"""OpenSSL's X509_V_ERR_CERT_HAS_EXPIRED."""
_PACKAGES: Final = ("pfedsam", "nvflare", "torch", "transformers", "safetensors")
_NVFLARE: Final = "2.9."


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    what: str
    ok: bool
    text: str


def check_site_ready(folder: Path) -> list[Finding]:
    """Check a site's folder, certificate, clock, network, data, studies and versions; nothing is changed or sent.

    Raises:
        OptionError: the folder is not a site's folder.
        RunError: the folder has no startup kit, or one that was changed.
    """
    options, startup = read_site_options(folder), folder / WORKSPACE / STARTUP
    settings = check_startup(startup)
    checks: list[tuple[str, Callable[[], tuple[bool, str]]]] = [
        ("versions", _versions),
        ("folder", partial(_folder, folder, options)),
        ("certificate", partial(_certificate, folder, startup, options)),
        ("clock", partial(_clock, startup)),
        ("address", partial(_address, settings)),
        ("coordinator", partial(_coordinator, startup, settings)),
        ("data", partial(_data, options)),
    ]
    manifests: list[StudyManifest] = []
    try:
        manifests = SitePolicy(folder).manifests()
        checks.append(("studies", partial(_studies, manifests)))
    except RunError as error:
        problem = str(error)
        checks.append(("studies", lambda: (False, problem)))
    for manifest in manifests:
        checks.append((f"data for {manifest.study}", partial(_study_data, manifest, options)))
        checks.append((f"backbone for {manifest.study}", partial(_backbone, manifest, options)))
    return [_find(what, look) for what, look in checks]


def _find(what: str, look: Callable[[], tuple[bool, str]]) -> Finding:
    try:
        ok, text = look()
    except PfedsamError as error:
        ok, text = False, str(error)
    except (OSError, ValueError) as error:
        ok, text = False, f"{type(error).__name__}: {error}"
    return Finding(what, ok, text)


def _versions() -> tuple[bool, str]:
    found = {name: metadata.version(name) for name in _PACKAGES}
    ok = found["nvflare"].startswith(_NVFLARE)
    text = ", ".join(f"{name} {version}" for name, version in found.items())
    return ok, text if ok else f"{text}; nvflare must be {_NVFLARE}x: `pip install '.[deploy]'` in the checkout"


def _folder(folder: Path, options: SiteOptions) -> tuple[bool, str]:
    free = shutil.disk_usage(folder).free // 2**20
    if free < options.min_free_mb:
        return False, f"{free} MB are free, but min_free_mb is {options.min_free_mb}: free some disk space."
    if not os.access(folder, os.W_OK):
        return False, "this user cannot write to the folder: change its permissions."
    mode = folder.stat().st_mode & 0o777
    return mode & 0o077 == 0, f"{free} MB free, mode {mode:o}" + (
        "" if mode & 0o077 == 0 else ": other users can read it; run chmod 700 on it"
    )


def _certificate(folder: Path, startup: Path, options: SiteOptions) -> tuple[bool, str]:
    own, root = keys.read_certificate(startup / keys.CERTIFICATE), keys.read_certificate(startup / keys.ROOT)
    name = keys.name_in(own)
    if name != options.name:
        return (
            False,
            f"the certificate is for site {name!r}, but this is site {options.name!r}: use the kit of this site, or correct `name` in "
            "site.yaml.",
        )
    renew = (
        f"renew it: run `pfedsam site request {folder} --name {name}`, let the coordinator sign the request, and run `pfedsam site renew "
        f"{folder} --kit KIT`."
    )
    if not keys.belong_together(own, keys.read_key(startup / keys.KEY)):
        return False, f"{keys.KEY} does not belong to {keys.CERTIFICATE}; {renew}"
    try:
        own.verify_directly_issued_by(root)
    except (ValueError, TypeError, InvalidSignature):
        return False, f"the certificate was not signed by the kit's root; {renew}"
    if (startup / keys.KEY).stat().st_mode & 0o077:
        return False, f"other users can read {keys.KEY}: run chmod 600 on it."
    end = valid_until(startup)
    left = end - datetime.now(UTC)
    if left.total_seconds() <= 0:
        return False, f"expired on {end:%Y-%m-%d}; {renew}"
    return True, f"{name}, until {end:%Y-%m-%d}" + (f": soon; {renew}" if left < keys.SOON else "")


def _clock(startup: Path) -> tuple[bool, str]:
    now, root = datetime.now(UTC), keys.read_certificate(startup / keys.ROOT)
    if now < root.not_valid_before_utc:
        return (
            False,
            f"this machine's clock shows {now:%Y-%m-%d %H:%M} UTC, before the root certificate was made: set the clock.",
        )
    return True, f"{now:%Y-%m-%d %H:%M} UTC"


def _address(settings: ClientSettings) -> tuple[bool, str]:
    host, port = settings.host, settings.port
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        return (
            False,
            f"the name {host} cannot be resolved ({error.strerror}): ask the network's administrators, or add it to the hosts file.",
        )
    return True, f"{host} resolves to {found[0][4][0]}, port {port}"


def _coordinator(startup: Path, settings: ClientSettings) -> tuple[bool, str]:
    """Make a TLS handshake with the site's certificate, as NVFlare does."""
    host, port = settings.host, settings.port
    context = ssl.create_default_context(cafile=str(startup / keys.ROOT))
    context.load_cert_chain(startup / keys.CERTIFICATE, startup / keys.KEY)
    context.set_alpn_protocols(["h2"])
    try:
        with (
            socket.create_connection((host, port), timeout=_TIMEOUT_S) as plain,
            context.wrap_socket(plain, server_hostname=settings.identity) as wrapped,
        ):
            return True, f"it answers with {wrapped.version()} and a certificate of this federation"
    except ssl.SSLCertVerificationError as error:
        if error.verify_code == _EXPIRED:
            return (
                False,
                "its certificate has expired by the clock of this machine: set the clock if it is wrong; if it is right, the coordinator's "
                "operator has to run `pfedsam coordinator renew`.",
            )
        return (
            False,
            f"its certificate is not valid ({error.verify_message}): wrong machine, wrong clock, or an attack.",
        )
    except ConnectionRefusedError:
        return False, f"nothing listens on {host}:{port}: the coordinator is not started, or the port is wrong."
    except TimeoutError:
        return (
            False,
            f"{host}:{port} does not answer within {_TIMEOUT_S:.0f} s: probably a firewall blocks the connection.",
        )
    except OSError as error:
        return False, f"{host}:{port}: {error}"


def _data(options: SiteOptions) -> tuple[bool, str]:
    if not options.data.is_dir():
        return False, f"there is no folder {str(options.data)!r}: correct `data` in site.yaml."
    # Which images are sequences of one case, and which masks are needed, follows from a study; `_study_data` checks that.
    site = read_site(options.name, options.data, masks_required=False)
    return True, f"{len(site.cases)} image(s)"


def _studies(manifests: list[StudyManifest]) -> tuple[bool, str]:
    if not manifests:
        return False, "no study is approved: run `pfedsam site approve`."
    return True, ", ".join(f"{m.study} ({m.name})" for m in manifests)


def _study_data(manifest: StudyManifest, options: SiteOptions) -> tuple[bool, str]:
    run = study_options(manifest, options)
    site = read_one_site(run, options.name, masks_required=False)
    report = check_sites([site], build_study(run))
    warnings = "".join(f"\nWarning: {warning}" for warning in report.warnings[:10])
    return not report.problems, "\n".join(report.problems[:10]) or f"{len(site.cases)} cases, no problem{warnings}"


def _backbone(manifest: StudyManifest, options: SiteOptions) -> tuple[bool, str]:
    said = str(manifest.configuration["model"]["backbone"])
    if options.backbone is None and backbone_file(said):
        # The training process has another working directory, so a relative path would not be found there.
        return (
            False,
            f"the study's backbone {said!r} is a file or folder: set the path of your copy as `backbone` in site.yaml.",
        )
    found = build_model(study_options(manifest, options), may_download=False).backbone
    if found == manifest.backbone:
        return True, f"its hash {found[:16]} is that of the study"
    return (
        False,
        f"its hash is {found[:16]}, but the study requires {manifest.backbone[:16]}: get the study's backbone.",
    )
