"""Our messages inside NVFlare's: named bytes in a `Shareable`, and nothing beside them but the engine's own headers."""

from collections.abc import Mapping

from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.shareable import ReservedHeaderKey, Shareable

_CODES = {value for name, value in vars(ReturnCode).items() if name.isupper()}


def to_shareable(wire: Mapping[str, bytes]) -> Shareable:
    """A fresh message that holds these parts; nothing of another message's headers comes along."""
    message = Shareable()
    message.update(wire)
    message.set_return_code(ReturnCode.OK)
    return message


def from_shareable(message: Shareable) -> dict[str, object]:
    """Our parts of a message."""
    return {str(key): value for key, value in message.items() if key != ReservedHeaderKey.HEADERS}


def failure(message: Shareable) -> str | None:
    """The engine's word for a reply that is none; None for a good one. Text that is not the engine's is not repeated."""
    code = message.get_return_code()
    if code == ReturnCode.OK:
        return None
    return code.lower().replace("_", " ") if code in _CODES else "unknown"
