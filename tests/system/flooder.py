"""Attempts of a member of the federation to fill the coordinator's memory; run by the tests as a process of its own.

    python flooder.py KIT PORT SELF JOB

KIT is the folder `startup` of the kit of the site SELF, PORT the coordinator's, JOB the id of a job that runs. Prints a JSON object: for
each attempt how it was answered, and how many idle connections the coordinator accepted.
"""

import json
import socket
import ssl
import sys
import time
from pathlib import Path

from intruder import ATTEMPTS, Intruder, attempt
from nvflare.apis.shareable import Shareable
from nvflare.apis.utils.decomposers import flare_decomposers
from nvflare.fuel.f3.cellnet.defs import CellChannel, CellChannelTopic
from nvflare.private.defs import ClientType, new_cell_message

MESSAGE_BYTES = 800 * 10**6
IDLE = 600
PATIENCE_S = 20.0
HOLD_S = 5.0


def flood(kit: Path, port: int, own: str, job: str) -> None:
    """Send long messages, as a stream and in one piece, to the server and to the process of the job."""
    site = Intruder(kit, port, own)
    attempt("its own name", lambda: site.register(own, ClientType.REGULAR))
    content = Shareable({"pad": bytes(MESSAGE_BYTES)})
    for target, channel, topic in (
        ("server", CellChannel.SERVER_MAIN, CellChannelTopic.HEART_BEAT),
        (f"server.{job}", CellChannel.SERVER_COMMAND, "submit_update"),
    ):
        for how, cell in (("as a stream", site.cell), ("in one piece", site.cell.core_cell)):
            attempt(
                f"{topic} of 800 MB {how}",
                lambda c=cell, a=channel, b=topic, to=target: c.send_request(
                    channel=a, topic=b, target=to, request=new_cell_message({}, content), timeout=PATIENCE_S
                ),
            )
    site.cell.stop()


def connect(kit: Path, port: int) -> int:
    """How many connections the coordinator accepts from one member that then says nothing."""
    context = ssl.create_default_context(cafile=str(kit / "rootCA.pem"))
    context.set_alpn_protocols(["h2"])
    context.load_cert_chain(kit / "client.crt", kit / "client.key")
    opened: list[ssl.SSLSocket] = []
    for _ in range(IDLE):
        try:
            plain = socket.create_connection(("localhost", port), timeout=5)
            opened.append(context.wrap_socket(plain, server_hostname="localhost"))
        except OSError:
            break
    time.sleep(HOLD_S)
    for one in opened:
        one.close()
    return len(opened)


def main() -> None:
    kit, port, own, job = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
    flare_decomposers.register()
    idle = connect(kit, port)
    flood(kit, port, own, job)
    sys.stdout.write(json.dumps({"attempts": ATTEMPTS, "idle": idle}) + "\n")


if __name__ == "__main__":
    main()
