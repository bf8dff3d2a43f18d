"""Named tensors in messages and files, in the safetensors format, which cannot contain code.

A file or a message from elsewhere is not trusted. Its header is read and checked first: its length, the names and types, and the
claimed extents against the number of bytes that exist. Only then is memory of the claimed size allocated.
"""

import hashlib
import json
import math
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import BinaryIO, TypeGuard

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open

from pfedsam.core import atomic
from pfedsam.core.errors import StoreError
from pfedsam.core.files import open_regular, without_duplicates

NamedTensors = Mapping[str, torch.Tensor]
"""Tensors by parameter name."""

MAX_HEADER_BYTES = 16 * 2**20
"""Largest accepted header in bytes; the header of 100,000 tensors has about 10 MB."""

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:\-]{0,511}")
_LENGTH_BYTES = 8
_MAX_AXES = 8
_SEAL = "sha256"
"""In a file's metadata: the digest of its tensors and of the other metadata."""


def digest(tensors: NamedTensors) -> str:
    """SHA-256 (hexadecimal) over names, types, shapes and bytes; the order of the mapping does not matter."""
    state = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        state.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        state.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return state.hexdigest()


def to_bytes(tensors: NamedTensors, metadata: Mapping[str, str] | None = None) -> bytes:
    """Encode tensors and metadata as one safetensors message; equal input gives equal bytes.

    Args:
        tensors: tensors of any shape; the allowed types are float16/32/64, bfloat16, int8/16/32/64, uint8 and bool.
        metadata: further values as text, by key.

    Raises:
        StoreError: `from_bytes` would not accept a name or a type.
    """
    for name, tensor in tensors.items():
        if not _NAME.fullmatch(name):
            raise StoreError(
                f"{name!r} is not a valid tensor name: use letters, digits and '_.:-', at most 512 of them."
            )
        if tensor.dtype not in _DTYPES.values():
            raise StoreError(f"tensor {name} has type {tensor.dtype}; allowed are {', '.join(_DTYPES)}.")
    # The library writes metadata in the order of a randomly seeded hash table. With a single entry the bytes are reproducible.
    described = {"pfedsam": json.dumps(dict(metadata), sort_keys=True)} if metadata else None
    # The tensors are cloned, because the library refuses tensors that share memory.
    copies = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    return safetensors.torch.save(copies, described)


def from_bytes(data: bytes, *, max_bytes: int) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors, of any shape, and the metadata of a message.

    Args:
        data: a safetensors message.
        max_bytes: the largest accepted length of the message.

    Raises:
        StoreError: the message is too long, or its header is not valid.
    """
    if len(data) > max_bytes:
        raise StoreError(f"the message has {len(data)} bytes; at most {max_bytes} are allowed.")
    length = _header_length(data[:_LENGTH_BYTES], len(data))
    header = data[_LENGTH_BYTES : _LENGTH_BYTES + length]
    metadata = _check_header(header, len(data) - _LENGTH_BYTES - length)
    try:
        return safetensors.torch.load(data), metadata
    except SafetensorError as error:
        raise StoreError(f"the tensors cannot be read: {error}.") from error


def save(path: Path, tensors: NamedTensors, metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors, with a digest of the whole content, to a file in one step (`core.atomic`); only its owner can read it.

    Raises:
        StoreError: the file could not be written, or a name or type is not allowed; an earlier file is unchanged.
    """
    described = dict(metadata or {})
    atomic.write_bytes(path, to_bytes(tensors, {**described, _SEAL: _seal(tensors, described)}))


def load(path: Path, *, unsealed: Collection[str] | None = None) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors, of any shape, and the metadata of a file that `save` wrote.

    Args:
        path: path of the file.
        unsealed: the metadata keys of this kind of file in version 0.1, which wrote no digest; None if 0.1 had no such file.

    Raises:
        StoreError: the file is missing, is not a valid safetensors file, or was changed after it was written.
    """
    named, metadata = load_foreign(path)
    seal = metadata.pop(_SEAL, None)
    if seal is None and (unsealed is None or set(metadata) != set(unsealed)):
        raise StoreError(f"{path.name} is damaged or was not written by pFedSAM: it has no digest of its content.")
    if seal is not None and seal != _seal(named, metadata):
        raise StoreError(f"{path.name} is damaged: it does not have the digest that was written with it.")
    return named, metadata


def _seal(tensors: NamedTensors, metadata: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps([digest(tensors), dict(metadata)], sort_keys=True).encode()).hexdigest()


def load_foreign(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors, of any shape, and the metadata of a safetensors file from any source, without a check of a digest.

    Raises:
        StoreError: the file is missing, or is not a valid safetensors file.
    """
    try:
        with open_regular(path) as file:
            metadata = _check_file(file, path.stat().st_size)
        with safe_open(path, framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}, metadata  # noqa: SIM118 - not a mapping
    except OSError as error:
        raise StoreError(f"{path.name} cannot be read: {error.strerror or error}.") from error
    except (SafetensorError, StoreError) as error:
        raise StoreError(f"{path.name} is not a valid safetensors file: {error}") from error


def _check_file(file: BinaryIO, size: int) -> dict[str, str]:
    length = _header_length(file.read(_LENGTH_BYTES), size)
    return _check_header(file.read(length), size - _LENGTH_BYTES - length)


def _header_length(prefix: bytes, size: int) -> int:
    length = int.from_bytes(prefix, "little")
    if len(prefix) < _LENGTH_BYTES or length > min(size - _LENGTH_BYTES, MAX_HEADER_BYTES):
        raise StoreError(
            f"it has {size} bytes, but claims a header of {length} bytes; it is truncated or not in this format."
        )
    return length


def _check_header(header: bytes, payload: int) -> dict[str, str]:
    """Check every entry of a header against a payload of the given number of bytes, and return the header's metadata.

    Raises:
        StoreError: an entry is not valid.
    """
    try:
        entries = json.loads(header, object_pairs_hook=without_duplicates)
        if not isinstance(entries, dict):
            raise StoreError("its header is not a JSON object of tensors.")
        metadata = _read_metadata(entries.pop("__metadata__", None))
    except (ValueError, RecursionError) as error:
        raise StoreError(f"its header is not JSON: {error}.") from error
    covered = 0
    for start, end in sorted(_checked_extent(name, entry, payload) for name, entry in entries.items()):
        if start != covered:
            raise StoreError(f"its tensors overlap or leave a gap at byte {start} of their values.")
        covered = end
    if covered != payload:
        raise StoreError(f"its tensors cover {covered} of {payload} bytes; it is truncated or has unused bytes.")
    return metadata


def _read_metadata(value: object) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise StoreError("its metadata is not a JSON object of texts.")
    return _read_metadata(json.loads(value["pfedsam"])) if set(value) == {"pfedsam"} else value


def _checked_extent(name: str, entry: object, payload: int) -> tuple[int, int]:
    """Check the entry of one tensor, and return the offsets of its first byte and of the byte after its last.

    Raises:
        StoreError: its name, type, shape and offsets are not valid or do not agree.
    """
    if not _NAME.fullmatch(name):
        raise StoreError(
            f"{name[:80]!r} is not a valid tensor name: use letters, digits and '_.:-', at most 512 of them."
        )
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise StoreError(f"tensor {name} lacks its type, shape or offsets.")
    dtype = entry["dtype"]
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise StoreError(f"tensor {name} has type {str(dtype)[:40]!r}; allowed are {', '.join(_DTYPES)}.")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not _are_counts(shape, range(_MAX_AXES + 1)) or not _are_counts(offsets, (2,)):
        raise StoreError(f"tensor {name} has a shape or offsets that are not whole numbers.")
    start, end = offsets
    size = math.prod(shape) * _DTYPES[dtype].itemsize
    if not start <= end <= payload or end - start != size:
        raise StoreError(
            f"tensor {name} claims {size} bytes at the offsets {offsets}, but the file has {payload} bytes of values."
        )
    return start, end


def _are_counts(value: object, lengths: Collection[int]) -> TypeGuard[list[int]]:
    """Whether a value is a list, of one of the given lengths, of whole numbers from 0 that fit into 64 bits."""
    if not isinstance(value, list) or len(value) not in lengths:
        return False
    return all(type(item) is int and 0 <= item < 2**63 for item in value)
