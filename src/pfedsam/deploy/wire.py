"""Our messages inside NVFlare's: named bytes in a `Shareable`, with no other content than NVFlare's own headers."""

from collections.abc import Mapping

from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.shareable import ReservedHeaderKey, Shareable

_CODES = {value for name, value in vars(ReturnCode).items() if name.isupper()}


def to_shareable(wire: Mapping[str, bytes]) -> Shareable:
    """A new message with these parts and without the headers of any earlier message."""
    message = Shareable()
    message.update(wire)
    message.set_return_code(ReturnCode.OK)
    return message


def from_shareable(message: Shareable) -> dict[str, object]:
    """The named parts of a message, without NVFlare's headers."""
    return {str(key): value for key, value in message.items() if key != ReservedHeaderKey.HEADERS}


def failure(message: Shareable) -> str | None:
    """NVFlare's return code of a failed reply as text, or None for a good reply. A code that is not NVFlare's is given as "unknown"."""
    code = message.get_return_code()
    if code == ReturnCode.OK:
        return None
    return code.lower().replace("_", " ") if code in _CODES else "unknown"
