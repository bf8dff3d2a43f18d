"""How NVFlare's processes are connected: how long a message may be, and who may speak on this machine's own loopback."""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

MIN_MESSAGE_BYTES: Final = 64 * 2**20
"""Enough for every adapter; a study that shares more has a larger limit."""
FRAME_BYTES: Final = 16 * 2**20
"""Of one frame on the wire; longer messages come as a stream of frames, whose length is known before the first."""
_ENVELOPE_BYTES: Final = 16 * 2**20
_VALUE_BYTES: Final = 4


def message_limit(manifests: Iterable[Path]) -> int:
    """The longest message in bytes that one of these studies has; of a manifest that cannot be read nothing is expected.

    Args:
        manifests: `manifest.json` of each study. They are read as plain JSON, because this process loads no model.
    """
    return max([MIN_MESSAGE_BYTES, *(_shared_bytes(path) + _ENVELOPE_BYTES for path in manifests)])


def connection_settings(limit: int) -> dict[str, Any]:
    """NVFlare's `comm_config.json`.

    A longer message than `limit` is refused by the size that it announces, before it is read. Processes of one machine speak to one
    another under mutual TLS as machines do, and those of a job only through their parent, which looks at what is asked.
    """
    frames = [["grpc.max_receive_message_length", FRAME_BYTES], ["grpc.max_send_message_length", FRAME_BYTES]]
    return {
        "allow_adhoc_conns": False,
        "max_message_size": limit,
        "streaming_max_blob_size": limit,
        "grpc": {"options": frames},
        "internal": {"scheme": "tcp", "resources": {"host": "localhost", "connection_security": "mtls"}},
        "backbone": {"connect_generation": 1},
    }


def _shared_bytes(manifest: Path) -> int:
    try:
        tensors = json.loads(manifest.read_bytes())["tensors"]
        return int(sum(math.prod(tensor["shape"]) for tensor in tensors.values())) * _VALUE_BYTES
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return 0
