"""Attempts of someone who has a site's startup kit; run by the tests as a process of its own, which prints them as a JSON list.

    python intruder.py KIT PORT SELF VICTIM

KIT is the folder `startup` of the kit of the site SELF, PORT the coordinator's, VICTIM another site. Each attempt is
`{"what", "refused", "answer", "seconds"}`; an attempt without an answer within `PATIENCE_S` counts as refused.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal
from nvflare.apis.utils.decomposers import flare_decomposers
from nvflare.fuel.f3.cellnet.cell import Cell
from nvflare.fuel.f3.cellnet.defs import CellChannel, MessageHeaderKey, ReturnCode
from nvflare.fuel.f3.drivers.driver_params import DriverParams
from nvflare.fuel.f3.message import Message
from nvflare.fuel.hci.conn import Connection
from nvflare.fuel.sec.authn import set_add_auth_headers_filters
from nvflare.fuel.utils.admin_name_utils import new_admin_client_name
from nvflare.private.defs import ClientType, new_cell_message
from nvflare.private.fed.authenticator import Authenticator
from nvflare.private.fed.utils.identity_utils import IdentityAsserter

ADMIN = "coordinator@pfedsam.local"
PATIENCE_S = 1.0
ATTEMPTS: list[dict[str, Any]] = []


class Intruder:
    """One connection under the kit's certificate."""

    def __init__(self, kit: Path, port: int, endpoint: str) -> None:
        self.key, self.certificate, self.root = (str(kit / n) for n in ("client.key", "client.crt", "rootCA.pem"))
        credentials = {
            DriverParams.CA_CERT.value: self.root,
            DriverParams.CLIENT_CERT.value: self.certificate,
            DriverParams.CLIENT_KEY.value: self.key,
            DriverParams.CONNECTION_SECURITY.value: "mtls",
        }
        self.cell = Cell(
            fqcn=endpoint,
            root_url=f"grpc://localhost:{port}",
            secure=True,
            credentials=credentials,
            create_internal_listener=False,
            parent_url=None,
            auth_identity_map={"server": "localhost"},
        )
        self.cell.start()

    def register(self, name: str, kind: str) -> str:
        """Ask to be taken for `name`, as NVFlare's own clients do; what came of it."""
        authenticator = Authenticator(
            cell=self.cell,
            project_name="pfedsam",
            client_name=name,
            client_type=kind,
            expected_sp_identity="localhost",
            secure_mode=True,
            root_cert_file=self.root,
            private_key_file=self.key,
            cert_file=self.certificate,
            msg_timeout=PATIENCE_S,
            retry_interval=0.1,
            timeout=PATIENCE_S / 2,
        )
        context = FLContext()
        context.set_public_props({"__identity_name__": name})
        token, signature, ssid, _ = authenticator.authenticate(context, Signal())
        set_add_auth_headers_filters(self.cell, name, token, signature, ssid)
        return ReturnCode.OK

    def command(self, words: str, headers: dict[str, Any] | None = None) -> Message:
        """A command of the control interface, as the coordinator's own client sends it."""
        connection = Connection()
        connection.append_command(words)
        return self.send(CellChannel.HCI, "command", "server", connection.close(), headers)

    def login(self, user: str) -> Message:
        identity = IdentityAsserter(private_key_file=self.key, cert_file=self.certificate)
        signature = identity.sign_common_name(nonce="")
        headers = {"user_name": user, "cert": identity.cert_data, "signature": signature, "study": "default"}
        return self.command(f"_cert_login {user}", headers)

    def send(
        self, channel: str, topic: str, target: str, payload: Any = None, headers: dict[str, Any] | None = None
    ) -> Message:
        """The answer to a message, in a stream where NVFlare's own clients use one."""
        message = new_cell_message(headers or {}, payload)
        cell = self.cell if channel == CellChannel.HCI else self.cell.core_cell
        return cell.send_request(
            channel=channel, topic=topic, target=target, request=message, timeout=PATIENCE_S, optional=True
        )


def attempt(what: str, act: Callable[[], Any]) -> None:
    """Try it, and note whether it was let in."""
    started = time.monotonic()
    try:
        answer = act()
    except Exception as error:  # noqa: BLE001 - NVFlare raises many kinds; each of them means that we are not in
        answer = f"{type(error).__name__}: {error}"
    seconds = time.monotonic() - started
    if isinstance(answer, Message):
        code = answer.get_header(MessageHeaderKey.RETURN_CODE) or ReturnCode.OK
        answer, refused = f"{code}: {answer.payload}", code != ReturnCode.OK
    else:
        refused = answer != ReturnCode.OK
    ATTEMPTS.append({"what": what, "refused": refused, "answer": str(answer)[:300], "seconds": round(seconds, 3)})


def main() -> None:
    kit, port, own, victim = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
    flare_decomposers.register()
    posing = Intruder(kit, port, victim)
    attempt("another site's endpoint", lambda: posing.register(victim, ClientType.REGULAR))
    posing.cell.stop()
    site = Intruder(kit, port, own)
    attempt("another site's name", lambda: site.register(victim, ClientType.REGULAR))
    attempt("a task without a login", lambda: site.send("task", "heart_beat", "server", Shareable()))
    attempt("its own name", lambda: site.register(own, ClientType.REGULAR))
    attempt("control: login as the administrator", lambda: site.login(ADMIN))
    attempt("control: login as itself", lambda: site.login(own))
    for target in ("server", victim):
        for topic in ("cells", "peers", "process_info", "stop_cell", "stop"):
            attempt(f"cell network: {topic} of {target}", lambda t=topic, to=target: site.send("_net_manager", t, to))
    attempt(
        "the server's own channel", lambda: site.send("server_parent_listener", "get_clients", "server", Shareable())
    )
    attempt("another site's admin channel", lambda: site.send("admin", "sys.info", victim, Shareable()))
    site.cell.stop()
    control = Intruder(kit, port + 1, new_admin_client_name())
    attempt("control port: registers as the administrator", lambda: control.register(ADMIN, ClientType.ADMIN))
    attempt("control port: its own name", lambda: control.register(own, ClientType.ADMIN))
    attempt("control port: login as the administrator", lambda: control.login(ADMIN))
    attempt("control port: login as itself", lambda: control.login(own))
    for words in ("cells", "list_jobs", "submit_job x", "shutdown all"):
        attempt(f"control port: {words}", lambda w=words: control.command(w))
    control.cell.stop()
    sys.stdout.write(json.dumps(ATTEMPTS) + "\n")


if __name__ == "__main__":
    main()
