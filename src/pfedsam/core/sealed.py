"""Small files that carry a digest of their own content, so that damage is seen when they are read.

JSON holds it under the key `sha256`, text in a comment on its first line. What version 0.1 wrote has none and is read as it stands: who
reads it checks its keys, so that a damaged digest is not taken for an old file. Files of tensors have theirs in `core.tensors`.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pfedsam.core import atomic
from pfedsam.core.errors import StoreError

KEY: Final = "sha256"
_COMMENT: Final = "# sha256 of what follows: "


def write_json(path: Path, content: Mapping[str, Any], *, mode: int = 0o600) -> None:
    """Replace a file by an object as JSON with its digest, in one step; keys keep their order, which the digest does not look at.

    Raises:
        StoreError: as `atomic.write_json`.
    """
    plain = json.loads(_encoded(path, content, sort_keys=False))
    atomic.write_json(path, {**plain, KEY: _digest(_canonical(path, plain))}, mode=mode)


def read_json(path: Path, remedy: str) -> dict[str, Any]:
    """The object in a file, without its digest.

    Args:
        path: of the file.
        remedy: what is lost with the file and what to do, as sentences.

    Raises:
        StoreError: the file is missing or damaged.
    """
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise StoreError(f"{path.name} is missing. {remedy}") from error
    except OSError as error:
        raise StoreError(f"{path.name} cannot be read: {error.strerror}. {remedy}") from error
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{path.name} is damaged: it is not JSON. {remedy}") from error
    if not isinstance(content, dict):
        raise StoreError(f"{path.name} is damaged: it holds no object. {remedy}")
    found = content.pop(KEY, None)
    if found is not None and found != _digest(_canonical(path, content)):
        raise StoreError(f"{path.name} is damaged: it does not have the digest that was written with it. {remedy}")
    return content


def seal_text(text: str) -> str:
    """A text of a format whose comments begin with `#`, with its digest before it."""
    return f"{_COMMENT}{_digest(text.encode())}\n{text}"


def check_text(path: Path, remedy: str) -> None:
    """Refuse a text whose digest is not the one before it; one without any, of version 0.1, passes.

    Raises:
        StoreError: the file is missing or damaged.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise StoreError(f"{path.name} is missing. {remedy}") from error
    except OSError as error:
        raise StoreError(f"{path.name} cannot be read: {error.strerror}. {remedy}") from error
    first, _, rest = data.partition(b"\n")
    sealed = first.startswith(b"#") or b"sha256" in first
    if not data.strip(b"\0 \n") or (sealed and first.decode("utf-8", "replace") != f"{_COMMENT}{_digest(rest)}"):
        raise StoreError(f"{path.name} is damaged: it does not have the digest that was written with it. {remedy}")


def _canonical(path: Path, content: Mapping[str, Any]) -> bytes:
    return _encoded(path, content, sort_keys=True)


def _encoded(path: Path, content: Mapping[str, Any], *, sort_keys: bool) -> bytes:
    try:
        return json.dumps(content, sort_keys=sort_keys, separators=(",", ":"), allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise StoreError(f"{path.name} holds what JSON cannot: {error}.") from error


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
