"""Reads a PyTorch `.pth` file without trusting it, and without `torch.load` (docs/decisions/0014 says why).

Such a file is a zip archive: one pickle that says which tensors there are, and one uncompressed entry for the bytes of
each storage. Everything is checked before anything of a claimed size is allocated: the archive (kinds, number, sizes
and places of entries, nothing compressed), the operations of the pickle (the few that `torch.save` writes; no name is
imported), and each tensor against the bytes that are really there. The tensors are then mapped from just these bytes.
"""

import io
import math
import mmap
import os
import pickle
import pickletools
import re
import struct
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from pfedsam.core.errors import CheckpointError
from pfedsam.core.files import open_regular

MAX_FILE_BYTES = 4 * 2**30
"""The largest Segment Anything file, ViT-H, has 2.4 GiB."""
MAX_READ_BYTES = 2**20
"""Bound on the archive's table of contents and on its pickle; ViT-H's are about 60 kB each."""
MAX_ENTRIES = 10_000
MAX_OPERATIONS = 100_000
"""Bound on the operations of the pickle; ViT-H's has about 15 000."""

_ENTRY = re.compile(
    r"[^/]+/(data\.pkl|version|byteorder|\.format_version|\.storage_alignment|\.data/serialization_id|data/\d{1,9})"
)
_USUAL_FLAGS = 0x0808
"""Of an entry: its name is UTF-8, its sizes follow its bytes. Others mean that it is encrypted or patched."""
_DAMAGED = (zipfile.BadZipFile, EOFError, OverflowError, RuntimeError, ValueError, struct.error)
"""What `zipfile` raises when it reads an archive that is not sound."""


def read_torch_file(path: Path) -> dict[str, Tensor]:
    """The tensors of a `.pth` file by name, mapped from the file and not yet copied into memory.

    Args:
        path: a file that `torch.save` wrote (PyTorch 1.6 or later) from a `state_dict`.

    Raises:
        CheckpointError: the file is missing, too large, of another kind, truncated, or not a sound table of tensors;
            nothing in it was run.
    """
    try:
        with open_regular(path) as file, _BoundedFile(file.fileno(), closefd=False) as bounded:
            _check_kind(path, bounded)
            with zipfile.ZipFile(bounded) as archive:
                program, places = _check_archive(path, archive, bounded)
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except _DAMAGED as error:
        raise CheckpointError(
            f"{path.name} is truncated or damaged ({_first_line(error)}). Fetch it again: `pfedsam weights fetch`."
        ) from error
    except OSError as error:
        raise CheckpointError(f"{path.name} cannot be read: {error.strerror or error}.") from error
    claims = _read_claims(path, program)
    for name, claim in claims.items():
        _check_claim(path, name, claim, places)
    if sum(claim.nbytes for claim in claims.values()) > len(mapped):
        _refuse(path, "its tensors share storages and together claim more than the file holds")
    content = torch.frombuffer(mapped, dtype=torch.uint8).untyped_storage()
    return {name: _tensor(content, claim, places[claim.storage.key]) for name, claim in claims.items()}


class _Storage(NamedTuple):
    """A storage as the pickle names it: `elements` of `dtype` in the entry `data/<key>`."""

    dtype: torch.dtype
    key: str
    elements: int


class _Claim(NamedTuple):
    """A tensor as the pickle describes it; holds no values."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """The bytes of the values that the shape asks for."""
        return math.prod(self.shape) * self.storage.dtype.itemsize


def _tensor(content: torch.UntypedStorage, claim: _Claim, place: range) -> Tensor:
    storage = content[place.start : place.stop]
    return torch.empty(0, dtype=claim.storage.dtype).set_(storage, claim.offset, claim.shape, claim.stride)


def _follow(program: bytes) -> object:
    """What a pickle makes, with stand-ins for all that it names.

    Not by `pickle.Unpickler`, which hashes, calls and changes whatever a program brings together: 1 MB of it can
    overflow the interpreter's stack or fill the memory, and a stand-in could be given other attributes.

    Raises:
        UnpicklingError: weights do not need what it does.
        IndexError, KeyError, TypeError, ValueError: it is damaged.
    """
    stack: list[Any] = []
    memo: dict[Any, Any] = {}
    for number, (operation, argument, _) in enumerate(pickletools.genops(program)):
        if number >= MAX_OPERATIONS:
            raise pickle.UnpicklingError(f"it has more than the {MAX_OPERATIONS} operations allowed")
        match operation.name:
            case "PROTO" | "STOP":
                pass
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case name if name in _MAKERS:
                stack.append(_MAKERS[name](stack, argument))
            case name:
                raise pickle.UnpicklingError(f"it uses the operation {name}")
    return stack.pop()


def _named(module_and_name: str) -> object:
    full = module_and_name.replace(" ", ".")
    if full not in _STAND_INS:
        raise pickle.UnpicklingError(f"it wants to use {full[:80]!r}, and weights need no code")
    return _STAND_INS[full]


def _claim(storage: _Storage, offset: int, *rest: Any) -> _Claim:  # noqa: ANN401 - comes from the file
    shape, stride, _gradient, _hooks, *properties = rest
    if properties:  # such as that every value is negated
        raise pickle.UnpicklingError("it has a tensor with properties of its own")
    return _Claim(storage, offset, shape, stride)


def _storage(reference: Any) -> _Storage:  # noqa: ANN401 - comes from the file
    kind, dtype, key, _location, elements = reference  # ("storage", FloatStorage, "0", "cpu", 16)
    if kind != "storage" or not isinstance(dtype, torch.dtype) or type(key) is not str or not _is_count(elements):
        raise pickle.UnpicklingError("it refers to something that is not a storage of numbers")
    return _Storage(dtype, key, elements)


def _call(function: Any, arguments: Any) -> object:  # noqa: ANN401 - only stand-ins can be called
    return function(*arguments)


def _filled(pairs: list[Any], table: dict[str, Any]) -> dict[str, Any]:
    names = pairs[::2]
    if type(table) is not dict or not all(type(name) is str for name in names):
        raise pickle.UnpicklingError("it holds more than tensors by name; save the `state_dict` of the model alone")
    table.update(zip(names, pairs[1::2], strict=True))
    return table


def _take(stack: list[Any], count: int) -> list[Any]:
    return [stack.pop() for _ in range(count)][::-1]


def _take_marked(stack: list[Any]) -> list[Any]:
    return list(iter(stack.pop, _MARK))[::-1]


_MARK = object()
_STAND_INS: Mapping[str, torch.dtype | Callable[..., object]] = {
    "collections.OrderedDict": lambda: {},
    "torch._utils._rebuild_tensor_v2": _claim,
    "torch.FloatStorage": torch.float32,
    "torch.DoubleStorage": torch.float64,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
}
"""What a name in the pickle stands for. Any other name is refused; none is ever imported."""
_MAKERS: Mapping[str, Callable[[list[Any], Any], object]] = {
    **dict.fromkeys(["BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"], lambda _, value: value),
    "NONE": lambda *_: None,
    "NEWTRUE": lambda *_: True,
    "NEWFALSE": lambda *_: False,
    "EMPTY_DICT": lambda *_: {},
    "EMPTY_LIST": lambda *_: [],
    "EMPTY_TUPLE": lambda *_: (),
    "MARK": lambda *_: _MARK,
    "TUPLE": lambda stack, _: tuple(_take_marked(stack)),
    "TUPLE1": lambda stack, _: tuple(_take(stack, 1)),
    "TUPLE2": lambda stack, _: tuple(_take(stack, 2)),
    "TUPLE3": lambda stack, _: tuple(_take(stack, 3)),
    "APPEND": lambda stack, _: _take(stack, 2)[0],
    "APPENDS": lambda stack, _: (_take_marked(stack), stack.pop())[1],
    "SETITEM": lambda stack, _: _filled(_take(stack, 2), stack.pop()),
    "SETITEMS": lambda stack, _: _filled(_take_marked(stack), stack.pop()),
    "GLOBAL": lambda _, name: _named(name),
    "BINPERSID": lambda stack, _: _storage(stack.pop()),
    "REDUCE": lambda stack, _: _call(*_take(stack, 2)),
    "BUILD": lambda stack, _: _take(stack, 2)[0],
}
"""What each operation puts on the stack, made of what it takes from there and of its argument.

What a list holds and what a table has besides its items (`BUILD`: the versions of modules) is dropped.
"""


class _BoundedFile(io.FileIO):
    """A file that gives at most `MAX_READ_BYTES` at once, so that no claim inside an archive sizes an allocation."""

    def read(self, size: int | None = -1, /) -> bytes:
        """As `FileIO.read`, within the bound.

        Raises:
            BadZipFile: more is asked for.
        """
        if size is None or size < 0:
            here = self.tell()
            size = self.seek(0, io.SEEK_END) - here
            self.seek(here)
        if size > MAX_READ_BYTES:
            raise zipfile.BadZipFile(f"a table of {size} bytes, at most {MAX_READ_BYTES} are expected")
        return super().read(size) or b""


def _check_kind(path: Path, file: io.FileIO) -> None:
    size = file.seek(0, os.SEEK_END)
    if size > MAX_FILE_BYTES:
        _refuse(path, f"it has {size} bytes, more than the {MAX_FILE_BYTES} allowed")
    file.seek(0)
    start = file.read(8)
    if start.startswith(b"PK\x03\x04"):
        return
    if start[:1] == b"\x80" or start.startswith(b"ustar"):
        raise CheckpointError(
            f"{path.name} is in PyTorch's old format (before 1.6), which is not read. If you trust it, write it anew: "
            "torch.save(torch.load(old, weights_only=True), new)."
        )
    _refuse(path, "it is not a PyTorch file" if start else "it is empty")


def _check_archive(path: Path, archive: zipfile.ZipFile, file: io.FileIO) -> tuple[bytes, dict[str, range]]:
    """The pickle of a sound archive, and where in the file the bytes of each storage are, by its key."""
    entries = archive.infolist()
    names = [entry.filename for entry in entries]
    if len(entries) > MAX_ENTRIES:
        _refuse(path, f"it has {len(entries)} entries, more than the {MAX_ENTRIES} allowed")
    if len(set(names)) != len(names) or len({name.split("/")[0] for name in names}) != 1:
        _refuse(path, "two of its entries have one name, or they lie in several folders")
    strange = [name for name in names if not _ENTRY.fullmatch(name)]
    if strange:
        _refuse(path, f"it has an entry that weights do not have: {strange[0][:80]!r}")
    _check_bytes(path, entries, file.seek(0, os.SEEK_END))
    contents = {name.partition("/")[2]: entry for name, entry in zip(names, entries, strict=True)}
    if "data.pkl" not in contents or contents["data.pkl"].file_size > MAX_READ_BYTES:
        _refuse(path, f"it has no table of tensors (data.pkl) of at most {MAX_READ_BYTES} bytes")
    if "byteorder" in contents and archive.read(contents["byteorder"]) != sys.byteorder.encode():
        _refuse(path, "its numbers are in the byte order of another kind of machine")
    places = {name[5:]: _place(file, entry) for name, entry in contents.items() if name.startswith("data/")}
    return archive.read(contents["data.pkl"]), places


def _check_bytes(path: Path, entries: list[zipfile.ZipInfo], size: int) -> None:
    packed = [entry for entry in entries if not _is_plain(entry)]
    if packed:
        claimed = sum(entry.file_size for entry in packed)
        _refuse(path, f"{len(packed)} of its entries are compressed or encrypted ({claimed} bytes when unpacked)")
    if sum(entry.file_size for entry in entries) > size:
        _refuse(path, f"its entries claim more than the {size} bytes of the file")
    if entries[0].header_offset != 0:
        _refuse(path, "its first entry is not at its start, so that other programs may find another archive in it")


def _is_plain(entry: zipfile.ZipInfo) -> bool:
    stored = entry.compress_type == zipfile.ZIP_STORED and entry.compress_size == entry.file_size
    return stored and not entry.flag_bits & ~_USUAL_FLAGS


def _place(file: io.FileIO, entry: zipfile.ZipInfo) -> range:
    """Where an entry's bytes are: behind its own header of 30 bytes, its name and an extra field.

    Raises:
        BadZipFile: they are not in the file.
    """
    file.seek(entry.header_offset)
    mark, name, extra = struct.unpack("<4s22xHH", file.read(30))
    start = file.tell() + name + extra
    if mark != b"PK\x03\x04" or start + entry.file_size > file.seek(0, os.SEEK_END):
        raise zipfile.BadZipFile(f"the bytes of {entry.filename[-80:]!r} are not where its table of contents says")
    return range(start, start + entry.file_size)


def _read_claims(path: Path, program: bytes) -> dict[str, _Claim]:
    try:
        table = _follow(program)
    except pickle.UnpicklingError as error:
        _refuse(path, f"its table of tensors is refused: {_first_line(error)}")
    except (IndexError, KeyError, TypeError, ValueError):
        _refuse(path, "its table of tensors is not one that torch.save writes")
    if not isinstance(table, dict):
        _refuse(path, "it does not hold a table of tensors by name")
    other = [name for name, value in table.items() if not isinstance(value, _Claim)]
    if other:
        _refuse(path, f"its entry {other[0][:80]!r} is not a tensor; save the `state_dict` of the model alone")
    return table


def _check_claim(path: Path, name: str, claim: _Claim, places: Mapping[str, range]) -> None:
    """Compare one tensor's claims with each other and with the bytes of its storage."""
    storage, shape, stride = claim.storage, claim.shape, claim.stride
    sound = isinstance(storage, _Storage) and _is_count(claim.offset) and _are_counts(shape) and _are_counts(stride)
    if not sound or len(shape) != len(stride):
        _refuse(path, f"tensor {name[:80]!r} is not described by a storage, an offset, a shape and strides")
    there = len(places.get(storage.key, ()))
    if storage.key not in places or storage.elements * storage.dtype.itemsize != there:
        _refuse(path, f"tensor {name[:80]!r} claims {storage.elements} elements, and the file has {there} bytes")
    last = claim.offset + sum((length - 1) * step for length, step in zip(shape, stride, strict=True))
    fits = last < storage.elements if all(shape) else math.prod(max(length, 1) for length in shape) < 2**63
    if math.prod(shape) > storage.elements or not fits:
        _refuse(path, f"tensor {name[:80]!r} of shape {shape} does not fit its {storage.elements} stored elements")


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _are_counts(value: object) -> bool:
    return type(value) is tuple and len(value) <= 8 and all(map(_is_count, value))


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]


def _refuse(path: Path, reason: str) -> NoReturn:
    raise CheckpointError(
        f"{path.name} is not usable: {reason}. Expected is a Segment Anything `state_dict` written by torch.save; "
        "nothing in the file was run. Fetch it again (`pfedsam weights fetch`), or ask who made it for safetensors."
    )
