"""A `.pth` file is refused before anything in it runs and before anything of a claimed size is allocated."""

import contextlib
import io
import os
import pickle
import re
import struct
import tracemalloc
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from pfedsam.core.errors import CheckpointError
from pfedsam.model import torch_file
from pfedsam.model.torch_file import check_torch_version, inspect_torch_file, read_torch_file

MEGABYTE = 2**20


@pytest.fixture(autouse=True)
def small_peak() -> Any:
    """Refusing costs little memory, whatever a file claims; holds for every test here."""
    tracemalloc.start()
    yield
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 * MEGABYTE


class StoragePickler(pickle.Pickler):
    """Writes `(name, shape, stride, dtype, key, elements)` as `torch.save` would write such a tensor."""

    def persistent_id(self, value: object) -> object:
        return value.reference if isinstance(value, Reference) else None


class Reference:
    def __init__(self, key: str, elements: int) -> None:
        self.reference = ("storage", torch.FloatStorage, key, "cpu", elements)


class Rebuilt:
    def __init__(
        self, key: str, elements: int, shape: tuple[int, ...], stride: tuple[int, ...], offset: int = 0
    ) -> None:
        self.arguments = (Reference(key, elements), offset, shape, stride, False, OrderedDict())

    def __reduce__(self) -> tuple[Any, ...]:
        return torch._utils._rebuild_tensor_v2, self.arguments


class Runs:
    """An object that makes a file when it is unpickled: what a malicious checkpoint would do."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


def program(table: object) -> bytes:
    buffer = io.BytesIO()
    StoragePickler(buffer, protocol=2).dump(table)
    return buffer.getvalue()


def archive(path: Path, table: object, *, data: bytes = b"", packed: bool = False, **extra: bytes) -> Path:
    """A file of PyTorch's form; `extra` are more entries, with `__` for `/` in their names."""
    method = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", method) as target:
        target.writestr("weights/data.pkl", table if isinstance(table, bytes) else program(table))
        target.writestr("weights/data/0", data)
        target.writestr("weights/version", b"3\n")
        for name, content in extra.items():
            target.writestr("weights/" + name.replace("__", "/"), content)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as refused:
        read_torch_file(path)
    text = str(refused.value)
    assert path.name in text
    assert len(text) < 1000
    return text


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_reads_what_torch_save_writes(tmp_path: Path, dtype: torch.dtype) -> None:
    state = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Conv2d(2, 5, 3)).to(dtype).state_dict()
    torch.save(state, tmp_path / "model.pth")
    read = read_torch_file(tmp_path / "model.pth")
    assert read.keys() == state.keys()
    assert all(torch.equal(read[name], state[name]) for name in state)


def test_hand_made_file_is_read_so_the_refusals_below_are_not_about_its_form(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.pth", {"w": Rebuilt("0", 2, (2,), (1,))}, data=struct.pack("<2f", 1.5, -2.0))
    assert read_torch_file(path)["w"].tolist() == [1.5, -2.0]


@pytest.mark.parametrize("kept", [0, 3, 100, 0.5, 0.99])
def test_truncated_file(tmp_path: Path, kept: float) -> None:
    torch.save({"w": torch.randn(1000)}, tmp_path / "model.pth")
    whole = (tmp_path / "model.pth").read_bytes()
    (tmp_path / "model.pth").write_bytes(whole[: kept if isinstance(kept, int) else int(kept * len(whole))])
    refusal(tmp_path / "model.pth")


def test_missing_file(tmp_path: Path) -> None:
    refusal(tmp_path / "none.pth")


@pytest.mark.parametrize(
    "start", [b"<!DOCTYPE html><html>", b"\x89PNG\r\n\x1a\n", b"\x08\x00\x00\x00\x00\x00\x00\x00{}"]
)
def test_another_kind_of_file(tmp_path: Path, start: bytes) -> None:
    (tmp_path / "page.pth").write_bytes(start * 100)
    assert "not a PyTorch file" in refusal(tmp_path / "page.pth")


def test_old_format_is_refused_with_the_remedy(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(3)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert "write it anew" in refusal(tmp_path / "old.pth")


@pytest.mark.parametrize("place", ["zip", "old", "nested"])
def test_code_is_refused_and_not_run(tmp_path: Path, place: str) -> None:
    marker = tmp_path / "marker"
    path = tmp_path / "evil.pth"
    if place == "old":
        path.write_bytes(pickle.dumps(Runs(marker), protocol=2))
    else:
        archive(path, {"w": Runs(marker)} if place == "zip" else {"w": [{"x": (Runs(marker),)}]})
    message = refusal(path)
    assert not marker.exists()
    assert place == "old" or "system" in message
    pickle.loads(program(Runs(marker)))  # the same object does run where it is trusted
    assert marker.exists()


def test_claim_of_a_billion_elements_is_refused_before_torch_sees_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(torch, "load")
    billion = 10**9
    path = archive(tmp_path / "huge.pth", {"w": Rebuilt("0", billion, (billion,), (1,))}, data=bytes(64))
    assert path.stat().st_size < 1500
    assert "1000000000 elements" in refusal(path)


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        (Rebuilt("0", 4, (10**9,), (0,)), "does not fit"),  # one element seen a billion times
        (Rebuilt("0", 4, (2, 3), (3, 1)), "does not fit"),
        (Rebuilt("0", 4, (4,), (1,), offset=1), "does not fit"),
        (Rebuilt("0", 4, (2,), (4,)), "does not fit"),
        (Rebuilt("0", 4, (4,), (1,), offset=-1), "not described"),
        (Rebuilt("0", 4, (-4,), (1,)), "not described"),
        (Rebuilt("0", 4, (4,), (-1,)), "not described"),
        (Rebuilt("0", 4, (4,), (1, 1)), "not described"),
        (Rebuilt("0", 5, (4,), (1,)), "claims 5 elements"),
        (Rebuilt("1", 4, (4,), (1,)), "has 0 bytes"),
        (Rebuilt("0", -4, (4,), (1,)), "not a storage"),
        (torch.Size([3]), "torch.Size"),
        ("text", "not a tensor"),
        ({"state": 1}, "not a tensor"),
    ],
)
def test_unsound_tensors(tmp_path: Path, tensor: object, reason: str) -> None:
    assert reason in refusal(archive(tmp_path / "a.pth", {"w": tensor}, data=bytes(16)))


def test_many_tensors_on_one_storage_may_not_claim_more_than_the_file(tmp_path: Path) -> None:
    table = {f"w{i}": Rebuilt("0", 10_000, (10_000,), (1,)) for i in range(100)}
    assert "together" in refusal(archive(tmp_path / "a.pth", table, data=bytes(40_000)))


def test_zip_bomb(tmp_path: Path) -> None:
    size = 64 * MEGABYTE
    path = archive(tmp_path / "bomb.pth", {"w": Rebuilt("0", size // 4, (size // 4,), (1,))}, packed=True)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as target, target.open("weights/data/1", "w") as entry:
        for _ in range(64):
            entry.write(bytes(MEGABYTE))
    assert path.stat().st_size < MEGABYTE
    assert "compressed" in refusal(path)


def test_entries_that_overlap(tmp_path: Path) -> None:
    # David Fifield's bomb (2019) lists one stored block many times; the sum of the sizes gives it away.
    path = archive(tmp_path / "a.pth", {"w": Rebuilt("0", 500, (500,), (1,))}, data=bytes(2000))
    content = bytearray(path.read_bytes())
    directory = content.index(b"PK\x01\x02")
    entry_length = 46 + len("weights/data.pkl")
    second = directory + entry_length
    entry = bytes(content[second : second + 46 + len("weights/data/0")])
    copies = b"".join(entry.replace(b"data/0", b"data/%d" % (i + 1)) for i in range(8))
    end = content.index(b"PK\x05\x06")
    tail = bytearray(content[end:])
    struct.pack_into("<HHI", tail, 8, 11, 11, end - directory + len(copies))
    path.write_bytes(bytes(content[:end]) + copies + bytes(tail))
    assert "claim more than" in refusal(path)


def test_a_table_of_contents_that_would_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_file, "MAX_READ_BYTES", 5000)
    extra = {f"data__{i}": b"" for i in range(1, 200)}
    path = archive(tmp_path / "a.pth", {}, **extra)
    assert "truncated or damaged" in refusal(path)


@pytest.mark.parametrize("name", ["constants.pkl", "code__model.py", "data__x", "..__data__1", "data__0"])
def test_entries_that_weights_do_not_have(tmp_path: Path, name: str) -> None:
    with pytest.warns(UserWarning, match="Duplicate name") if name == "data__0" else contextlib.nullcontext():
        path = archive(tmp_path / "a.pth", {}, **{name: b""})
    refusal(path)


def test_no_table_and_a_table_that_is_too_long(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "none.pth", "w") as target:
        target.writestr("weights/version", b"3")
    assert "no table" in refusal(tmp_path / "none.pth")
    assert "no table" in refusal(archive(tmp_path / "long.pth", bytes(MEGABYTE + 1)))


@pytest.mark.parametrize(
    "operations",
    [
        b"\x80\x02}r\xff\xff\xff\x7f.",  # numbers an object 2**31 - 1: a table of 16 GiB in the reader
        b"\x80\x04\x8e\xff\xff\xff\xff\x00\x00\x00\x00.",  # bytes of a length of 2**32
        b"\x80\x02}X\xff\xff\xff\x7f.",  # a text longer than the file
        b"\x80\x02(((((",
        b"\x80\x02]q\x00.",  # a list instead of a table
        b"\x80\x02}K\x01K\x02s.",  # names that are numbers
        b"\x80\x02ctorch\nFloatStorage\n)R.",  # calls what cannot be called
        b"\x80\x02ccollections\nOrderedDict\n)R}X\x05\x00\x00\x00itemsNsb.",  # replaces a method: forgotten, so empty
        b"cbuiltins\neval\n(X\x03\x00\x00\x001+1tR.",
        b"",
    ],
)
def test_odd_programs(tmp_path: Path, operations: bytes) -> None:
    path = archive(tmp_path / "a.pth", operations)
    if b"OrderedDict" in operations:
        assert inspect_torch_file(path) == {}
    else:
        refusal(path)


@pytest.mark.parametrize("version", ["2.9.1", "2.8.0+cpu", "1.13.0", "2.10.0a0"])
def test_old_torch_is_refused(version: str) -> None:
    with pytest.raises(CheckpointError, match=r"2\.10"):
        check_torch_version(version)


@pytest.mark.parametrize("version", ["2.10.0", "2.13.0+cpu", "3.0"])
def test_new_torch_passes(version: str) -> None:
    check_torch_version(version)


def test_torch_load_stands_in_one_place() -> None:
    source = Path(torch_file.__file__).parents[1]
    call = re.compile(r"(?<![.`])torch\.load\(")
    calls = [path.name for path in source.rglob("*.py") if call.search(path.read_text())]
    assert calls == ["torch_file.py"]
