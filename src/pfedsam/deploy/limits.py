"""Connection settings of NVFlare's processes: the largest message, and who may connect over this machine's loopback."""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

MIN_MESSAGE_BYTES: Final = 64 * 2**20
"""Enough for all adapters; a study that shares more parameters has a larger limit."""
FRAME_BYTES: Final = 16 * 2**20
"""The largest frame on the wire; longer messages are sent as a stream of frames that announces its length first."""
CONNECTIONS: Final = "comm_config.json"
"""The file in NVFlare's folder `local/` with these settings."""
_ENVELOPE_BYTES: Final = 16 * 2**20
_VALUE_BYTES: Final = 4


def message_limit(manifests: Iterable[Path]) -> int:
    """The size limit of a message in bytes for these studies; a manifest that cannot be read does not raise the limit.

    Args:
        manifests: `manifest.json` of each study, read as plain JSON because this process loads no model.
    """
    return max([MIN_MESSAGE_BYTES, *(_shared_bytes(path) + _ENVELOPE_BYTES for path in manifests)])


def connection_settings(limit: int) -> dict[str, Any]:
    """NVFlare's `comm_config.json`.

    A message that announces more than `limit` bytes is refused before it is read. Processes on the same machine also use mutual TLS, and
    the processes of a job communicate only through their parent process, which checks every request.
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


def written_limit(local: Path) -> int:
    """The size limit of a message in bytes that was written into a folder `local/`; 0 if there is none."""
    try:
        return int(json.loads((local / CONNECTIONS).read_bytes())["max_message_size"])
    except (OSError, ValueError, TypeError, LookupError):
        return 0


def _shared_bytes(manifest: Path) -> int:
    try:
        tensors = json.loads(manifest.read_bytes())["tensors"]
        return int(sum(math.prod(tensor["shape"]) for tensor in tensors.values())) * _VALUE_BYTES
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return 0
