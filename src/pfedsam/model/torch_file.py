"""Reads a PyTorch `.pth` file with `torch.load(weights_only=True)`, after a check that it needs no more memory than its own size.

Such a file is a zip archive with one pickle that describes the tensors, and one uncompressed entry for the values of each storage.
`torch.load(weights_only=True)` runs no code of the file, but it allocates as much memory as the file claims to need. Therefore the
archive and the pickle are checked before, and the tensors afterwards; docs/decisions/0016 gives the limits of these checks.
"""

import pickle
import pickletools
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from pfedsam.core.errors import CheckpointError
from pfedsam.core.files import open_regular

MAX_PICKLE_BYTES = 2**20
"""Largest accepted pickle; the pickle of ViT-H has about 60 kB, with an optimiser's state about 240 kB."""
MAX_WEIGHT = 2**25
"""Largest accepted weight (`_Object`) of what a pickle builds; ViT-H has about 10**6."""

_NAMES = re.compile(
    r"collections OrderedDict|torch\._utils (_rebuild_tensor_v2|_rebuild_parameter)|torch (Size|device|b?float\d+)"
    r"|torch (Float|Double|Half|BFloat16|Long|Int|Short|Char|Byte|Bool)Storage"
)
"""The names that the pickle of a `state_dict` or of a training checkpoint may contain; a file with any other name is refused."""
_TORCH_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""The exceptions that `torch.load` and `pickletools` raise for a damaged file, besides `UnpicklingError`."""


def read_torch_file(path: Path) -> dict[str, Any]:
    """The table that `torch.save` wrote: a `state_dict`, or a checkpoint that contains a `state_dict`.

    All tensors are dense and on the CPU.

    Args:
        path: a file in the format of PyTorch 1.6 or later.

    Raises:
        CheckpointError: the file is missing, is of another kind, is truncated, or claims more bytes than it has; no code of the file
            was run.
    """
    try:
        with open_regular(path) as file:
            _check_kind(path, file.read(8))
            size = path.stat().st_size
            with zipfile.ZipFile(file) as archive:
                _check_pickle(_check_entries(path, archive, size))
            file.seek(0)
            with warnings.catch_warnings(action="ignore"):  # torch warns of archives that it then refuses
                table = torch.load(file, map_location="cpu", weights_only=True)
    except zipfile.BadZipFile as error:
        _refuse(path, f"it is truncated or damaged ({_first_line(error)})")
    except OSError as error:
        raise CheckpointError(f"{path.name} cannot be read: {error.strerror or error}.") from error
    except (pickle.UnpicklingError, *_TORCH_ERRORS) as error:
        _refuse(path, f"its table of tensors is refused: {_first_line(error)}")
    if not isinstance(table, dict) or not all(isinstance(name, str) for name in table):
        _refuse(path, "it does not hold a table of tensors by name")
    _check_tensors(path, table, size)
    return _plain(table)


def _check_kind(path: Path, start: bytes) -> None:
    if start[:1] == b"\x80" or start.startswith(b"ustar"):
        raise CheckpointError(
            f"{path.name} is in PyTorch's old format (before 1.6), which is not read. If you trust it, write it anew: "
            "torch.save(torch.load(old, weights_only=True), new)."
        )
    if not start.startswith(b"PK\x03\x04"):
        _refuse(path, "it is not a PyTorch file" if start else "it is empty")


def _check_entries(path: Path, archive: zipfile.ZipFile, size: int) -> bytes:
    """Check the entries of an archive, and return its pickle.

    The entries must have different names, be stored without compression, and together be no larger than the file.
    """
    entries = archive.infolist()
    _check_claims(path, entries, size)
    if len({entry.filename for entry in entries}) != len(entries):
        _refuse(path, "two of its entries have one name")
    if entries and entries[0].header_offset != 0:
        _refuse(path, "its first entry is not at its start, so that PyTorch may find another archive in it")
    table = next((entry for entry in entries if entry.filename.endswith("/data.pkl")), None)
    if table is None or table.file_size > MAX_PICKLE_BYTES:
        _refuse(path, f"it has no table of tensors (data.pkl) of at most {MAX_PICKLE_BYTES} bytes")
    return archive.read(table)


def _check_claims(path: Path, entries: list[zipfile.ZipInfo], size: int) -> None:
    """Refuse entries that are compressed or encrypted, or whose sizes add up to more than the `size` of the file."""
    packed = [entry.file_size for entry in entries if not _is_stored(entry)]
    if packed:
        _refuse(path, f"{len(packed)} of its entries are compressed or encrypted ({sum(packed)} bytes when unpacked)")
    if sum(entry.file_size for entry in entries) > size:
        _refuse(path, f"its entries claim more than the {size} bytes of the file")


def _is_stored(entry: zipfile.ZipInfo) -> bool:
    """Whether an entry is neither compressed nor encrypted."""
    encrypted = entry.flag_bits & 1
    return entry.compress_type == zipfile.ZIP_STORED and entry.compress_size == entry.file_size and not encrypted


def _check_pickle(program: bytes) -> None:
    """Refuse a pickle that contains names other than those of tensors, or that builds more than a table of tensors needs.

    Hashing or copying tuples that are nested a million deep, or that contain one object many times, would overflow the interpreter's stack
    or fill the memory. Therefore the weight of the objects (`_Object`) is computed without building them.

    Raises:
        IndexError, KeyError, ValueError: the pickle is damaged.
        UnpicklingError: the pickle contains another name, or builds too much.
    """
    stack: list[_Object] = []
    marks: list[int] = []
    memo: dict[int, _Object] = {}
    argument: Any
    for operation, argument, _ in pickletools.genops(program):
        name = operation.name
        if name == "GLOBAL" and not _NAMES.fullmatch(argument):
            raise pickle.UnpicklingError(
                f"it refers to {argument.replace(' ', '.')[:80]!r}, which weights do not need and which could run code"
            )
        if name == "MARK":
            marks.append(len(stack))
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            memo[argument].shared = True
            stack.append(memo[argument])
        else:
            parts = _take(stack, marks, operation)
            if name in ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "BUILD"):
                parts[0].extend(parts[1:])
                stack.append(parts[0])
            elif operation.stack_after:
                stack.append(_Object(parts))


class _Object:
    """An object that a pickle would build. Its weight is one plus twice the weight of each of its parts."""

    def __init__(self, parts: list["_Object"]) -> None:
        self.weight = 1
        self.shared = False
        """Whether the pickle refers to the object again, so that the weights of other objects may already include its weight."""
        self.extend(parts)

    def extend(self, parts: list["_Object"]) -> None:
        """Add parts, as for a list that is appended to or a table whose items are set.

        Raises:
            UnpicklingError: the object is too heavy, or other objects may contain it; `torch.save` does not write such a pickle.
        """
        self.weight += 2 * sum(part.weight for part in parts)
        if self.weight > MAX_WEIGHT:
            raise pickle.UnpicklingError("its table is nested too deeply, or repeats too much of itself")
        if self.shared:
            raise pickle.UnpicklingError("it changes an object after it has used it elsewhere")


def _take(stack: list[_Object], marks: list[int], operation: pickletools.OpcodeInfo) -> list[_Object]:
    """Remove the objects that an operation consumes, according to `pickletools`, from the stack, and return them.

    Raises:
        IndexError: the stack has fewer objects.
    """
    before = operation.stack_before
    marked = pickletools.markobject in before
    start = marks.pop() - before.index(pickletools.markobject) if marked else len(stack) - len(before)
    if start < 0:
        raise IndexError("the pickle takes from an empty stack")
    parts = stack[start:]
    del stack[start:]
    return parts


def _check_tensors(path: Path, table: object, size: int) -> None:
    """Refuse tensors that are not dense, and views whose sizes add up to more than the file."""
    tensors = _tensors(table)
    if not all(map(_is_plain_tensor, tensors)):
        _refuse(path, "it has a tensor that is sparse, negated, conjugate or not in memory")
    claimed = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    if claimed > size:
        _refuse(path, f"its tensors share values and together claim {claimed} bytes, more than the {size} of the file")


def _is_plain_tensor(tensor: Tensor) -> bool:
    """Whether a tensor of any shape is dense, in the CPU's memory, and not a negated or conjugate view."""
    dense = tensor.layout == torch.strided and tensor.device.type == "cpu"
    return dense and not tensor.is_neg() and not tensor.is_conj()


def _tensors(value: object) -> list[Tensor]:
    """All tensors in a nested value, without duplicates."""
    if isinstance(value, Tensor):
        return [value]
    parts = dict.values(value) if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    found = [tensor for part in parts for tensor in _tensors(part)]
    return list({id(tensor): tensor for tensor in found}.values())


def _plain(table: dict[str, Any]) -> dict[str, Any]:
    """The table with plain dictionaries, because a pickle can give an `OrderedDict` attributes that hide its methods."""
    return {name: _plain(value) if isinstance(value, dict) else value for name, value in dict.items(table)}


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]


def _refuse(path: Path, reason: str) -> NoReturn:
    raise CheckpointError(
        f"{path.name} is not usable: {reason}. Expected is a Segment Anything `state_dict` written by torch.save; "
        "nothing in the file was run. Fetch it again, or ask who made it for safetensors."
    )
