"""A site's private key, which never leaves the site. The site makes a signing request (PKCS #10, RFC 2986); the coordinator signs it."""

import hashlib
import re
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

from pfedsam.core import atomic
from pfedsam.core.errors import OptionError, RunError

KEY: Final = "client.key"
CERTIFICATE: Final = "client.crt"
ROOT: Final = "rootCA.pem"
KEY_BITS: Final = 2048
"""The key size that NVFlare's own provisioner uses."""
_NO_KEY: Final = (
    "the site's key client.key is missing or cannot be read, and a certificate is renewed for the same key only. Let the coordinator "
    "revoke this site, and make a new one in a new folder with another name."
)
SOON: Final = timedelta(days=30)
"""A certificate that ends in less than this time should be renewed."""
_MAX_REQUEST_BYTES: Final = 16 * 1024
_NAME: Final = re.compile(r"(?!server\Z)[A-Za-z0-9][A-Za-z0-9_\-]{0,62}")
"""Dots and the name `server` are excluded: NVFlare separates the names of its processes by dots, and its own process is called `server`."""


def check_name(name: str) -> None:
    """Check that a site of a federation can have this name.

    Raises:
        OptionError: the name has other characters, is too long, or is reserved.
    """
    if not _NAME.fullmatch(name):
        raise OptionError(
            f"{name!r} cannot name a site of a federation: use up to 63 letters, digits, '_' and '-', beginning with a "
            "letter or digit, and not 'server'."
        )


def make_request(startup: Path, name: str, target: Path) -> str:
    """Write the request for a certificate of a site into the file `target`.

    The site's private key is made in its folder `startup/` unless it is there already: then the certificate is to be renewed.

    Returns:
        The fingerprint of the public key, which the operators of site and coordinator compare.

    Raises:
        OptionError: a site cannot have this name, or the site has a certificate with another name.
        RunError: the site has a certificate and no key, or one of them cannot be read.
    """
    check_name(name)
    if not (startup / KEY).exists() and not (startup / CERTIFICATE).exists():
        startup.mkdir(parents=True, exist_ok=True, mode=0o700)
        _make_key(startup / KEY)
    elif (startup / CERTIFICATE).exists() and (known := name_in(read_certificate(startup / CERTIFICATE))) != name:
        raise OptionError(f"This folder is that of site {known!r}: give --name {known} to renew its certificate.")
    try:
        key = serialization.load_pem_private_key(read_key(startup / KEY), None)
    except (ValueError, TypeError) as error:
        raise RunError(_NO_KEY) from error
    if not isinstance(key, rsa.RSAPrivateKey):
        raise RunError(_NO_KEY)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    atomic.write_bytes(target, request.public_bytes(serialization.Encoding.PEM), mode=0o644)
    return fingerprint(request)


def _make_key(path: Path) -> None:
    key = rsa.generate_private_key(65537, KEY_BITS)
    plain = serialization.NoEncryption()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, plain)
    atomic.write_bytes(path, pem)


def read_request(path: Path) -> tuple[str, x509.CertificateSigningRequest]:
    """The site's name in a request, and the request. The content is not trusted; only the name and the public key are used.

    Raises:
        RunError: there is no such file, it cannot be read or is not a certificate request, its signature is not valid, or its name or key
            cannot be used.
    """
    try:
        with path.open("rb") as file:
            request = x509.load_pem_x509_csr(file.read(_MAX_REQUEST_BYTES))
        sound, key = request.is_signature_valid, request.public_key()
        names = [str(entry.value) for entry in request.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    except FileNotFoundError as error:
        raise RunError(
            f"there is no file {str(path)!r}; give the path of the file that `pfedsam site request` made at the site."
        ) from error
    except OSError as error:
        raise RunError(f"{path.name} cannot be read ({error.strerror}); give a file that you can read.") from error
    except ValueError as error:
        raise RunError(f"{path.name} is not a certificate request; make one with `pfedsam site request`.") from error
    if not sound or len(names) != 1 or not _NAME.fullmatch(names[0]):
        raise RunError(f"{path.name} is not signed by its own key, or its name is not allowed for a site.")
    if not isinstance(key, rsa.RSAPublicKey) or key.key_size < KEY_BITS:
        raise RunError(f"{path.name} does not contain an RSA key of at least {KEY_BITS} bits.")
    return names[0], request


def fingerprint(holder: x509.CertificateSigningRequest | x509.Certificate) -> str:
    """SHA-256 of the public key in a request or a certificate, in groups of four hexadecimal digits."""
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    found = hashlib.sha256(holder.public_key().public_bytes(serialization.Encoding.DER, form)).hexdigest()
    return " ".join(found[at : at + 4] for at in range(0, len(found), 4))


def root_fingerprint(startup: Path) -> str:
    """The fingerprint of the federation's root certificate in a folder `startup/`, which every site and the coordinator have.

    Raises:
        RunError: the root certificate is missing or cannot be read.
    """
    return fingerprint(read_certificate(startup / ROOT))


def read_certificate(path: Path) -> x509.Certificate:
    """The certificate in a file of a folder `startup/`.

    Raises:
        RunError: the file is missing or cannot be read.
    """
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        what = "the federation's root certificate" if path.name == ROOT else f"the certificate {path.name}"
        raise RunError(f"{what} is missing or cannot be read; restore the file from a backup.") from error


def certify(
    model: x509.Certificate,
    holder: x509.CertificateSigningRequest | x509.Certificate,
    root_key: bytes,
    until: datetime,
) -> bytes:
    """A certificate for a public key, with all other fields copied from another certificate.

    Args:
        model: the certificate from which names, first moment and extensions are copied.
        holder: the request or the certificate that contains the public key.
        root_key: the private key (PEM) of the issuer.
        until: the last moment of the certificate.

    Returns:
        The certificate in PEM format.

    Raises:
        RunError: the issuer's key is not an RSA key.
    """
    issuer, key = serialization.load_pem_private_key(root_key, None), holder.public_key()
    if not isinstance(issuer, rsa.RSAPrivateKey):
        raise RunError(
            "the coordinator's root key is not an RSA key; create the coordinator again with `pfedsam coordinator init`."
        )
    builder = x509.CertificateBuilder().subject_name(model.subject).issuer_name(model.issuer)
    builder = builder.public_key(key).serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(model.not_valid_before_utc).not_valid_after(until)
    for extension in model.extensions:
        value = extension.value
        if isinstance(value, x509.SubjectKeyIdentifier):
            value = x509.SubjectKeyIdentifier.from_public_key(key)
        builder = builder.add_extension(value, extension.critical)
    return builder.sign(issuer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def name_in(certificate: x509.Certificate) -> str:
    """The name of the certificate's owner; empty if it has none."""
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if len(names) == 1 else ""


def read_key(path: Path) -> bytes:
    """The content of a site's private key.

    Raises:
        RunError: the file is missing or cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise RunError(_NO_KEY) from error


def belong_together(certificate: x509.Certificate, key: bytes) -> bool:
    """Whether a certificate belongs to a private key in PEM format.

    Raises:
        RunError: the key cannot be read.
    """
    try:
        private = serialization.load_pem_private_key(key, None)
    except (ValueError, TypeError) as error:
        raise RunError(_NO_KEY) from error
    return private.public_key() == certificate.public_key()
