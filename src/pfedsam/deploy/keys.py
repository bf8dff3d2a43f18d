"""A site's private key, which never leaves the site. The site makes a signing request (PKCS #10, RFC 2986); the coordinator signs it."""

import hashlib
import re
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
    """Make a site's private key in its folder `startup/`, and write the request for a certificate into the file `target`.

    Returns:
        The fingerprint of the public key, which the operators of site and coordinator compare.

    Raises:
        OptionError: a site cannot have this name.
        RunError: the folder contains a key already.
    """
    check_name(name)
    if (startup / KEY).exists():
        raise RunError("this folder contains a key already; send its request again, or use a new folder.")
    startup.mkdir(parents=True, exist_ok=True, mode=0o700)
    key = rsa.generate_private_key(65537, KEY_BITS)
    plain = serialization.NoEncryption()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, plain)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    atomic.write_bytes(startup / KEY, pem)
    atomic.write_bytes(target, request.public_bytes(serialization.Encoding.PEM), mode=0o644)
    return fingerprint(request)


def read_request(path: Path) -> tuple[str, x509.CertificateSigningRequest]:
    """The site's name in a request, and the request. The content is not trusted; only the name and the public key are used.

    Raises:
        RunError: the file is not a certificate request, its signature is not valid, or its name or key cannot be used.
    """
    try:
        with path.open("rb") as file:
            request = x509.load_pem_x509_csr(file.read(_MAX_REQUEST_BYTES))
        sound, key = request.is_signature_valid, request.public_key()
        names = [str(entry.value) for entry in request.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    except (OSError, ValueError) as error:
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
    try:
        return fingerprint(x509.load_pem_x509_certificate((startup / ROOT).read_bytes()))
    except (OSError, ValueError) as error:
        raise RunError(
            "the federation's root certificate is missing or cannot be read; ask the coordinator for the kit again."
        ) from error


def sign(request: x509.CertificateSigningRequest, like: bytes, root_key: bytes) -> bytes:
    """A certificate for the key in a request, with all other fields copied from another certificate.

    Args:
        request: the request, as `read_request` returns it.
        like: the certificate (PEM) from which subject, issuer, validity and extensions are copied.
        root_key: the private key (PEM) of the issuer.

    Returns:
        The certificate in PEM format.

    Raises:
        RunError: the issuer's key is not an RSA key.
    """
    model, issuer = x509.load_pem_x509_certificate(like), serialization.load_pem_private_key(root_key, None)
    if not isinstance(issuer, rsa.RSAPrivateKey):
        raise RunError(
            "the coordinator's root key is not an RSA key; create the coordinator again with `pfedsam coordinator init`."
        )
    builder = x509.CertificateBuilder().subject_name(model.subject).issuer_name(model.issuer)
    builder = builder.public_key(request.public_key()).serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(model.not_valid_before_utc).not_valid_after(model.not_valid_after_utc)
    for extension in model.extensions:
        value = extension.value
        if isinstance(value, x509.SubjectKeyIdentifier):
            value = x509.SubjectKeyIdentifier.from_public_key(request.public_key())
        builder = builder.add_extension(value, extension.critical)
    return builder.sign(issuer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def read_key(path: Path) -> bytes:
    """The content of a site's private key.

    Raises:
        RunError: the file is missing or cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise RunError(f"the site's key {path.name} is missing, or cannot be read: {error.strerror}.") from error


def belong_together(certificate: bytes, key: bytes) -> bool:
    """Whether a certificate belongs to a private key, both in PEM format.

    Raises:
        RunError: one of them cannot be read.
    """
    try:
        private = serialization.load_pem_private_key(key, None)
        signed = x509.load_pem_x509_certificate(certificate)
    except (ValueError, TypeError) as error:
        raise RunError("the site's key or certificate cannot be read: ask for a new kit.") from error
    return private.public_key() == signed.public_key()
