"""Small files that contain a digest of their own content, so that damage is noticed when they are read.

JSON files have the digest under the key `sha256`, text files in a comment on the first line. Files of version 0.1 have no digest and are
accepted without one; the reader checks their keys, so that a file with a damaged digest is not mistaken for an old one. For files of
tensors see `core.tensors`.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pfedsam.core import atomic
from pfedsam.core.errors import StoreError
from pfedsam.core.files import read_regular

KEY: Final = "sha256"
_COMMENT: Final = "# sha256 of what follows: "


def write_json(path: Path, content: Mapping[str, Any], *, mode: int = 0o600) -> None:
    """Write an object as JSON with its digest, replacing the file in one step; keys keep their order, which does not affect the digest.

    Raises:
        StoreError: the file could not be written, as for `atomic.write_json`.
    """
    plain = json.loads(_encoded(path, content, sort_keys=False))
    atomic.write_json(path, {**plain, KEY: _digest(_encoded(path, plain, sort_keys=True))}, mode=mode)


def read_json(path: Path, remedy: str) -> dict[str, Any]:
    """The object in a file, without its digest.

    Args:
        path: the path of the file.
        remedy: sentences for the error message: what is lost with the file, and what to do.

    Raises:
        StoreError: the file is missing or damaged.
    """
    try:
        content = json.loads(_read(path, remedy))
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{path.name} is damaged: it is not JSON. {remedy}") from error
    if not isinstance(content, dict):
        raise StoreError(f"{path.name} is damaged: it is not a JSON object. {remedy}")
    found = content.pop(KEY, None)
    if found is not None and found != _digest(_encoded(path, content, sort_keys=True)):
        raise StoreError(f"{path.name} is damaged: it does not have the digest that was written with it. {remedy}")
    return content


def seal_text(text: str) -> str:
    """A text of a format whose comments begin with `#`, with its digest before it."""
    return f"{_COMMENT}{_digest(text.encode())}\n{text}"


def check_text(path: Path, remedy: str) -> None:
    """Refuse a text that does not have the digest on its first line; a text without a digest, of version 0.1, is accepted.

    Raises:
        StoreError: the file is missing or damaged.
    """
    data = _read(path, remedy)
    first, _, rest = data.partition(b"\n")
    sealed = first.startswith(b"#") or b"sha256" in first
    if not data.strip(b"\0 \n") or (sealed and first.decode("utf-8", "replace") != f"{_COMMENT}{_digest(rest)}"):
        raise StoreError(f"{path.name} is damaged: it does not have the digest that was written with it. {remedy}")


def _read(path: Path, remedy: str) -> bytes:
    """The content of a file.

    Raises:
        StoreError: the file is missing, or cannot be read.
    """
    try:
        return read_regular(path)
    except FileNotFoundError as error:
        raise StoreError(f"{path.name} is missing. {remedy}") from error
    except OSError as error:
        raise StoreError(f"{path.name} cannot be read: {error.strerror}. {remedy}") from error


def _encoded(path: Path, content: Mapping[str, Any], *, sort_keys: bool) -> bytes:
    try:
        return json.dumps(content, sort_keys=sort_keys, separators=(",", ":"), allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise StoreError(f"{path.name} was not written, because JSON cannot express its content: {error}.") from error


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
