"""What a site's NVFlare client is configured with: five checked values in a fixed form (`startup/fed_client.json`)."""

import ipaddress
import json
import re
from dataclasses import dataclass
from typing import Any, Final

from pfedsam.core.errors import OptionError, RunError
from pfedsam.deploy import keys

MAX_PORT: Final = 2**16 - 2
"""The port after it is needed too."""
PROJECT: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_\-. ]{0,62}")
_LABEL: Final = r"[A-Za-z0-9](?:[A-Za-z0-9\-]{0,61}[A-Za-z0-9])?"
_HOST: Final = re.compile(rf"(?=.{{1,63}}\Z)(?:{_LABEL}\.)*{_LABEL}")
"""Host names by RFC 1123, of at most 63 characters, because NVFlare cuts longer names; IPv4 addresses have this form too."""
_PORT: Final = re.compile(r"[1-9][0-9]{0,4}")


@dataclass(frozen=True)
class ClientSettings:
    """The site's name, and where and under which names it finds the coordinator."""

    project: str
    host: str
    port: int
    identity: str
    """The name in the coordinator's certificate."""
    site: str

    def configuration(self) -> dict[str, Any]:
        """The content of `fed_client.json`: NVFlare's client connects with mutual TLS, and builds no class that is named here."""
        service = {"target": f"{self.host}:{self.port}", "scheme": "grpc"}
        return {
            "format_version": 2,
            "servers": [{"name": self.project, "service": service, "identity": self.identity}],
            "client": {
                "ssl_private_key": keys.KEY,
                "ssl_cert": keys.CERTIFICATE,
                "ssl_root_cert": keys.ROOT,
                "fqsn": self.site,
                "is_leaf": True,
                "connection_security": "mtls",
            },
        }


def read_settings(data: bytes, where: str) -> ClientSettings:
    """The settings in the content of a `fed_client.json`, which is not trusted.

    Args:
        data: the content of the file.
        where: the file's name, for error messages.

    Raises:
        RunError: a value is missing or not allowed, or the file contains anything else than these values.
    """
    try:
        content = json.loads(data)
        (server,) = content["servers"]
        host, _, port = server["service"]["target"].rpartition(":")
        found = ClientSettings(
            server["name"],
            host,
            int(port) if _PORT.fullmatch(port) else 0,
            server["identity"],
            content["client"]["fqsn"],
        )
        _check(found)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise RunError(
            f"{where} does not name a project, the coordinator's address and certificate, and a site. Ask the coordinator for the kit "
            "again."
        ) from error
    except OptionError as error:
        raise RunError(f"{where}: {error} Ask the coordinator for the kit again.") from error
    if content != found.configuration():
        raise RunError(
            f"{where} contains more than the coordinator's address and the site's name, or another kind of connection. NVFlare would run "
            "programs that such a file names, so it is refused: whoever had the kit may have changed it. Tell the coordinator's operator, "
            "and ask for the kit again."
        )
    return found


def _check(settings: ClientSettings) -> None:
    """Check each value.

    Raises:
        OptionError: a value is not allowed.
        ValueError: a value is not allowed.
    """
    keys.check_name(settings.site)
    if not PROJECT.fullmatch(settings.project):
        raise ValueError("project")
    if not (is_address(settings.host) and is_address(settings.identity) and 1 <= settings.port <= MAX_PORT):
        raise ValueError("address")


def is_address(text: str) -> bool:
    """Whether a text is a host name or an IPv4 address; a name whose last part is a number has to be an address."""
    if not text.rpartition(".")[2].isdecimal():
        return _HOST.fullmatch(text) is not None
    try:
        ipaddress.IPv4Address(text)
    except ValueError:
        return False
    return True
