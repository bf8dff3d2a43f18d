"""Reads a PyTorch `.pth` file without trusting it; the only place of the project that calls `torch.load`.

Such a file is a zip archive: one pickle that says which tensors there are, and one uncompressed entry for the bytes of
each storage. Everything is checked before anything of a claimed size is allocated: the archive (kinds, number and sizes
of entries, nothing compressed), the operations of the pickle (the few that `torch.save` writes; no name is imported),
and each tensor against the bytes that are really there. Only then does `torch.load(weights_only=True)` see the file.
"""

import io
import math
import pickle
import pickletools
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from pfedsam.core.errors import CheckpointError

OLDEST_TORCH = "2.10"
"""Before 2.10 a crafted file could corrupt memory in spite of `weights_only=True`."""

MAX_FILE_BYTES = 4 * 2**30
"""The largest Segment Anything file, ViT-H, has 2.4 GiB."""
MAX_READ_BYTES = 2**20
"""Bound on the archive's table of contents and on its pickle; ViT-H's are about 60 kB each."""
MAX_ENTRIES = 10_000

_ENTRY = re.compile(
    r"[^/]+/(data\.pkl|version|byteorder|\.format_version|\.storage_alignment|\.data/serialization_id|data/\d{1,9})"
)
_OPERATIONS = re.compile(
    "PROTO|STOP|MARK|EMPTY_(DICT|TUPLE|LIST)|TUPLE[123]?|BINUNICODE|BININT[12]?|LONG1|BINFLOAT|NONE|NEWTRUE|NEWFALSE"
    "|(LONG_)?BIN(PUT|GET)|GLOBAL|REDUCE|BUILD|BINPERSID|SETITEMS?|APPENDS?"
)
_MALFORMED = (
    pickle.UnpicklingError,
    AttributeError,
    EOFError,
    ImportError,
    IndexError,
    KeyError,
    OverflowError,
    RecursionError,
    TypeError,
    ValueError,
)


def read_torch_file(path: Path) -> dict[str, Tensor]:
    """The tensors of a `.pth` file by name, mapped from the file and not yet copied into memory.

    Args:
        path: a file that `torch.save` wrote (PyTorch 1.6 or later) from a `state_dict`.

    Raises:
        CheckpointError: PyTorch is too old, or the file is not a sound table of tensors; nothing in it was run.
    """
    check_torch_version(torch.__version__)
    claims = inspect_torch_file(path)
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (*_MALFORMED, RuntimeError, OSError) as error:
        _refuse(path, f"PyTorch cannot read it ({_first_line(error)})")
    if {name: tensor.shape for name, tensor in tensors.items()} != claims:
        _refuse(path, "it reads differently from what it claims")
    return dict(tensors)


def check_torch_version(version: str) -> None:
    """Refuse a PyTorch whose reader of `.pth` files is not safe.

    Raises:
        CheckpointError: `version` is below 2.10.
    """
    if torch.torch_version.TorchVersion(version) < torch.torch_version.TorchVersion(OLDEST_TORCH):
        raise CheckpointError(
            f"PyTorch {version} is not safe for .pth files (a crafted file can corrupt memory); 2.10 or later is. "
            "Update PyTorch, or use the weights as a transformers folder (config.json and model.safetensors)."
        )


def inspect_torch_file(path: Path) -> dict[str, tuple[int, ...]]:
    """The shapes by name that a `.pth` file claims, each backed by bytes in the file; allocates nothing of their size.

    Raises:
        CheckpointError: the file is missing, too large, of another kind, truncated, or its claims are not sound.
    """
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            _refuse(path, f"it has {size} bytes, more than the {MAX_FILE_BYTES} allowed")
        with path.open("rb") as file:
            _check_kind(path, file.read(8))
        with _BoundedFile(path) as bounded, zipfile.ZipFile(bounded) as archive:
            program, stored = _check_archive(path, archive, size)
    except (zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, EOFError, ValueError) as error:
        raise CheckpointError(
            f"{path.name} is truncated or damaged ({_first_line(error)}). Fetch it again: `pfedsam weights fetch`."
        ) from error
    except OSError as error:
        raise CheckpointError(f"{path.name} cannot be read: {error.strerror or error}.") from error
    claims = _read_claims(path, program)
    for name, claim in claims.items():
        _check_claim(path, name, claim, stored)
    if sum(claim.nbytes for claim in claims.values()) > size:
        _refuse(path, "its tensors share storages and together claim more than the file holds")
    return {name: claim.shape for name, claim in claims.items()}


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


class _Table(dict[str, Any]):
    """Stands for the ordered dictionary of a `state_dict`; forgets the attributes that come with it."""

    def __setstate__(self, state: object) -> None:
        """Drop them: they hold versions of modules, not tensors."""


def _claim(storage: _Storage, offset: int, shape: tuple[int, ...], stride: tuple[int, ...], *_: object) -> _Claim:
    return _Claim(storage, offset, shape, stride)


_STAND_INS: Mapping[str, type | torch.dtype | Callable[..., _Claim]] = {
    "collections.OrderedDict": _Table,
    "torch._utils._rebuild_tensor_v2": _claim,
    "torch.FloatStorage": torch.float32,
    "torch.DoubleStorage": torch.float64,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
}
"""What a name in the pickle stands for while it is inspected. Any other name is refused; none is ever imported."""


class _Inspector(pickle.Unpickler):
    """Follows the pickle with stand-ins instead of the objects that it names."""

    def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401 - the base class's type
        """The stand-in of a name.

        Raises:
            UnpicklingError: weights do not need it.
        """
        full = f"{module}.{name}"
        if full not in _STAND_INS:
            raise pickle.UnpicklingError(f"it wants to use {full[:80]!r}, and weights need no code")
        return _STAND_INS[full]

    def persistent_load(self, reference: Any) -> _Storage:  # noqa: ANN401 - the base class's type
        """The storage that a reference such as `("storage", FloatStorage, "0", "cpu", 16)` stands for.

        Raises:
            UnpicklingError: it refers to something else.
        """
        kind, dtype, key, _location, elements = reference
        if kind != "storage" or not isinstance(dtype, torch.dtype) or type(key) is not str or not _is_count(elements):
            raise pickle.UnpicklingError("it refers to something that is not a storage of numbers")
        return _Storage(dtype, key, elements)


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


def _check_kind(path: Path, start: bytes) -> None:
    if start.startswith(b"PK\x03\x04"):
        return
    if start[:1] == b"\x80" or start.startswith(b"ustar"):
        raise CheckpointError(
            f"{path.name} is in PyTorch's old format (before 1.6), which is not read. If you trust it, write it anew: "
            "torch.save(torch.load(old, weights_only=True), new)."
        )
    _refuse(path, "it is not a PyTorch file" if start else "it is empty")


def _check_archive(path: Path, archive: zipfile.ZipFile, size: int) -> tuple[bytes, dict[str, int]]:
    """The pickle of a sound archive, and the bytes of each storage by its key."""
    entries = archive.infolist()
    names = [entry.filename for entry in entries]
    if len(entries) > MAX_ENTRIES:
        _refuse(path, f"it has {len(entries)} entries, more than the {MAX_ENTRIES} allowed")
    if len(set(names)) != len(names) or len({name.split("/")[0] for name in names}) != 1:
        _refuse(path, "two of its entries have one name, or they lie in several folders")
    strange = [name for name in names if not _ENTRY.fullmatch(name)]
    if strange:
        _refuse(path, f"it has an entry that weights do not have: {strange[0][:80]!r}")
    packed = [e for e in entries if e.compress_type != zipfile.ZIP_STORED or e.compress_size != e.file_size]
    if packed:
        claimed = sum(entry.file_size for entry in packed)
        _refuse(path, f"{len(packed)} of its entries are compressed (to {claimed} bytes when unpacked)")
    if sum(entry.file_size for entry in entries) > size:
        _refuse(path, f"its entries claim more than the {size} bytes of the file")
    sizes = {name.partition("/")[2]: entry.file_size for name, entry in zip(names, entries, strict=True)}
    if sizes.get("data.pkl", MAX_READ_BYTES + 1) > MAX_READ_BYTES:
        _refuse(path, f"it has no table of tensors (data.pkl) of at most {MAX_READ_BYTES} bytes")
    program = archive.read(f"{names[0].split('/')[0]}/data.pkl")
    return program, {name[5:]: length for name, length in sizes.items() if name.startswith("data/")}


def _read_claims(path: Path, program: bytes) -> dict[str, _Claim]:
    try:
        for operation, argument, _ in pickletools.genops(program):
            if not _OPERATIONS.fullmatch(operation.name):
                raise pickle.UnpicklingError(f"it uses the operation {operation.name}")
            # An index far beyond the program's length would make the reader allocate a table of that size.
            if operation.name == "LONG_BINPUT" and int(argument or 0) > len(program):
                raise pickle.UnpicklingError("it numbers its objects beyond its own length")
        table = _Inspector(io.BytesIO(program)).load()
    except _MALFORMED as error:
        _refuse(path, f"its table of tensors is refused: {_first_line(error)}")
    if not isinstance(table, dict) or not all(type(name) is str for name in table):
        _refuse(path, "it does not hold a table of tensors by name")
    other = [name for name, value in table.items() if not isinstance(value, _Claim)]
    if other:
        _refuse(path, f"its entry {other[0][:80]!r} is not a tensor; save the `state_dict` of the model alone")
    return dict(table)


def _check_claim(path: Path, name: str, claim: _Claim, stored: Mapping[str, int]) -> None:
    """Compare one tensor's claims with each other and with the bytes of its storage."""
    storage, shape, stride = claim.storage, claim.shape, claim.stride
    sound = isinstance(storage, _Storage) and _is_count(claim.offset) and _are_counts(shape) and _are_counts(stride)
    if not sound or len(shape) != len(stride):
        _refuse(path, f"tensor {name[:80]!r} is not described by a storage, an offset, a shape and strides")
    there = stored.get(storage.key)
    if there is None or storage.elements * storage.dtype.itemsize != there:
        _refuse(path, f"tensor {name[:80]!r} claims {storage.elements} elements, and the file has {there or 0} bytes")
    last = claim.offset + sum((length - 1) * step for length, step in zip(shape, stride, strict=True))
    if math.prod(shape) > storage.elements or (math.prod(shape) > 0 and last >= storage.elements):
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
