"""What is not a sound table of tensors is refused, runs no code, and allocates no more than the file holds."""

import contextlib
import io
import os
import pickle
import struct
import subprocess
import sys
import tracemalloc
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from pfedsam.core.errors import CheckpointError
from pfedsam.model.torch_file import read_torch_file

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


def test_reads_views_shared_storages_and_tensors_without_elements(tmp_path: Path) -> None:
    base = torch.arange(60.0).reshape(3, 4, 5)
    state = {"view": base[1:, 2], "turned": base.mT, "half": base[:, ::2, :2], "one": base[0, 0, 3], "none": base[3:]}
    torch.save(state, tmp_path / "views.pth")
    read = read_torch_file(tmp_path / "views.pth")
    assert read.keys() == state.keys()
    assert all(torch.equal(read[name], state[name]) for name in state)
    assert read["turned"].stride() == state["turned"].stride()


def test_checkpoint_of_a_training_is_read_as_the_table_that_it_is(tmp_path: Path) -> None:
    model = torch.nn.Linear(3, 4)
    groups = [{"params": [parameter], "lr": 0.1} for parameter in model.parameters()]
    optimizer = torch.optim.AdamW(groups)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    torch.save(
        {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3}, tmp_path / "training.pth"
    )
    read = read_torch_file(tmp_path / "training.pth")
    assert list(read) == ["model", "optimizer", "epoch"]
    assert torch.equal(read["model"]["weight"], model.weight)


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


def test_claim_of_a_billion_elements_is_refused(tmp_path: Path) -> None:
    billion = 10**9
    path = archive(tmp_path / "huge.pth", {"w": Rebuilt("0", billion, (billion,), (1,))}, data=bytes(64))
    assert path.stat().st_size < 1500
    assert "4000000000 elements" in refusal(path)  # torch counts in bytes


@pytest.mark.parametrize(
    "tensor",
    [
        Rebuilt("0", 4, (10**9,), (0,)),  # one element seen a billion times
        Rebuilt("0", 4, (2, 3), (3, 1)),
        Rebuilt("0", 4, (4,), (1,), offset=1),
        Rebuilt("0", 4, (2,), (4,)),
        Rebuilt("0", 4, (4,), (1,), offset=-1),
        Rebuilt("0", 4, (-4,), (1,)),
        Rebuilt("0", 4, (4,), (-1,)),
        Rebuilt("0", 4, (4,), (1, 1)),
        Rebuilt("0", 5, (4,), (1,)),
        Rebuilt("1", 4, (4,), (1,)),
        Rebuilt("0", -4, (4,), (1,)),
    ],
    ids=lambda tensor: "-".join(str(argument) for argument in tensor.arguments[1:4]),
)
def test_unsound_tensors(tmp_path: Path, tensor: Rebuilt) -> None:
    assert "is not usable" in refusal(archive(tmp_path / "a.pth", {"w": tensor}, data=bytes(16)))


@pytest.mark.parametrize(
    "value",
    [
        bytearray(8),  # as `bytearray(10**11)` it would fill the memory
        torch.zeros(3).to_sparse(),
        torch.zeros(3, device="meta"),
        {1, 2},
    ],
    ids=["bytearray", "sparse", "meta", "set"],
)
def test_other_things_than_dense_tensors_do_not_reach_torch(tmp_path: Path, value: object) -> None:
    torch.save({"w": value}, tmp_path / "a.pth")
    assert "which weights do not need" in refusal(tmp_path / "a.pth")


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


@pytest.mark.parametrize("name", ["constants.pkl", "data__0"])
def test_a_program_of_torchscript_and_a_name_that_stands_twice(tmp_path: Path, name: str) -> None:
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
        b"\x80\x04\x8e\xff\xff\xff\xff\x00\x00\x00\x00.",  # bytes of a length of 2**32
        b"\x80\x02}X\xff\xff\xff\x7f.",  # a text longer than the file
        b"\x80\x02(((((",
        b"\x80\x02]q\x00.",  # a list instead of a table
        b"\x80\x02}K\x01K\x02s.",  # names that are numbers
        b"\x80\x02ctorch\nFloatStorage\n)R.",  # calls what cannot be called
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x04\x00\x00\x00nameNsb.",  # changes a function
        b"cbuiltins\neval\n(X\x03\x00\x00\x001+1tR.",
        b"",
    ],
)
def test_odd_programs(tmp_path: Path, operations: bytes) -> None:
    refusal(archive(tmp_path / "a.pth", operations))


@pytest.mark.parametrize(
    "operations",
    [
        b"\x80\x02}r\xff\xff\xff\x7f.",  # numbers an object 2**31 - 1: a table of 16 GiB in pickle's reader
        b"\x80\x02ccollections\nOrderedDict\n)R}X\x05\x00\x00\x00itemsNsb.",  # replaces a method: forgotten
    ],
)
def test_odd_programs_that_do_no_harm(tmp_path: Path, operations: bytes) -> None:
    read = read_torch_file(archive(tmp_path / "a.pth", operations))
    assert read == {}
    assert list(read.items()) == []


def entries(count: int) -> bytes:
    return b"(" + b"".join(b"X\x05\x00\x00\x00%05dN" % i for i in range(count)) + b"u"


HEAVY = {
    "deep": b"})" + b"\x85" * 1_000_000 + b"Ns.",
    "exponential": b"})" + b"q\x00h\x00\x86" * 60 + b"Ns.",  # 2**60 objects to hash
    "copied": b"](}q\x00" + entries(4000) + b"ccollections\nOrderedDict\nq\x01" + b"h\x01h\x00\x85R" * 9000 + b"e.",
    "grown": b"](}q\x00\x85q\x02h\x00"
    + entries(4000)
    + b"ccollections\nOrderedDict\nq\x01"
    + b"h\x01h\x02R" * 9000
    + b"e.",
}
"""Programs that overflow the stack or fill the memory of what runs them: tuples as names, and one table copied many times."""


def test_programs_that_are_too_heavy(tmp_path: Path) -> None:
    # In a process of its own, so that a crash is one failed test; the memory that it may use is bounded.
    script = """
import resource, sys
from pathlib import Path
from pfedsam.core.errors import CheckpointError
from pfedsam.model.torch_file import read_torch_file
resource.setrlimit(resource.RLIMIT_AS, (4 * 2**30, 4 * 2**30))
for path in sys.argv[1:]:
    try:
        read_torch_file(Path(path))
    except CheckpointError as error:
        print(error)
"""
    paths = [str(archive(tmp_path / f"{name}.pth", b"\x80\x02" + program)) for name, program in HEAVY.items()]
    command = [sys.executable, "-c", script, *paths]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    reasons = ["nested too deeply", "nested too deeply", "repeats too much of itself", "changes an object after"]
    lines = done.stdout.splitlines()
    assert len(lines) == len(HEAVY)
    assert all(
        f"{name}.pth" in line and reason in line for name, line, reason in zip(HEAVY, lines, reasons, strict=True)
    )


def test_two_archives_in_one_file(tmp_path: Path) -> None:
    # The end names the first directory by its place and the second by its length alone: torch takes the one, zipfile the
    # other. So what is inspected by one reader was not what the other loads.
    parts = []
    for value in (1.0, 2.0):
        table = {"w": Rebuilt("0", 1, (1,), (1,))}
        content = archive(tmp_path / "part.pth", table, data=struct.pack("<f", value)).read_bytes()
        directory, end = content.index(b"PK\x01\x02"), content.index(b"PK\x05\x06")
        parts.append((content[:directory], content[directory:end], content[end:]))
    (hidden, hidden_directory, _), (seen, seen_directory, end) = parts
    entry = 0
    for _ in range(3):  # zipfile adds the length of the directory that it skips to where an entry starts
        entry = seen_directory.index(b"PK\x01\x02", entry)
        place = struct.unpack_from("<I", seen_directory, entry + 42)[0] + len(hidden) - len(seen_directory)
        seen_directory = seen_directory[: entry + 42] + struct.pack("<I", place) + seen_directory[entry + 46 :]
        entry += 46
    end = end[:16] + struct.pack("<I", len(hidden) + len(seen)) + end[20:]
    path = tmp_path / "two.pth"
    path.write_bytes(hidden + seen + hidden_directory + seen_directory + end)
    assert torch.load(path, weights_only=True)["w"].item() == 1.0
    assert zipfile.ZipFile(path).read("weights/data/0") == struct.pack("<f", 2.0)
    assert "another archive" in refusal(path)


def test_tensor_whose_values_are_to_be_negated(tmp_path: Path) -> None:
    tensor = Rebuilt("0", 4, (4,), (1,))
    tensor.arguments = (*tensor.arguments, {"neg": True})  # type: ignore[assignment]
    assert "negated" in refusal(archive(tmp_path / "a.pth", {"w": tensor}, data=bytes(16)))


@pytest.mark.parametrize("entry", ["data.pkl", "data/0"])
def test_encrypted_entry(tmp_path: Path, entry: str) -> None:
    path = archive(tmp_path / "a.pth", {"w": Rebuilt("0", 4, (4,), (1,))}, data=bytes(16))
    content = bytearray(path.read_bytes())
    content[content.rindex(b"weights/" + entry.encode()) - 46 + 8] |= 1
    path.write_bytes(bytes(content))
    assert "encrypted" in refusal(path)


def test_entry_that_is_elsewhere(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.pth", {"w": Rebuilt("0", 4, (4,), (1,))}, data=bytes(16))
    content = bytearray(path.read_bytes())
    struct.pack_into("<I", content, content.rindex(b"weights/data/0") - 4, 3)
    path.write_bytes(bytes(content))
    assert "is not usable" in refusal(path)


def test_numbers_in_the_other_byte_order(tmp_path: Path) -> None:
    table = {"w": Rebuilt("0", 2, (2,), (1,))}
    path = archive(tmp_path / "a.pth", table, data=struct.pack(">2f", 1.5, -2.0), byteorder=b"big")
    assert read_torch_file(path)["w"].tolist() == [1.5, -2.0]
