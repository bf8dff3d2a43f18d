"""A `.pth` file is refused before anything in it runs and before anything of a claimed size is allocated."""

import ast
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
from pfedsam.model import torch_file
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


@pytest.mark.parametrize("added", ["optimizer", "epoch"])
def test_checkpoint_of_a_training_is_refused_with_the_remedy(tmp_path: Path, added: str) -> None:
    model = torch.nn.Linear(3, 4)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    state = {"model": model.state_dict(), added: optimizer.state_dict() if added == "optimizer" else 3}
    torch.save(state, tmp_path / "training.pth")
    assert "save the `state_dict` of the model alone" in refusal(tmp_path / "training.pth")


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
        (Rebuilt("0", 4, (0, 2**62, 2**62), (1, 1, 1)), "does not fit"),  # torch multiplies them
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
    assert read_torch_file(archive(tmp_path / "a.pth", operations)) == {}


def refusal_apart(path: Path) -> str:
    """The message of a process of its own, so that a crash is one failed test; what it allocates is bounded too."""
    script = """
import resource, sys, tracemalloc
from pathlib import Path
from pfedsam.core.errors import CheckpointError
from pfedsam.model.torch_file import read_torch_file
resource.setrlimit(resource.RLIMIT_AS, (8 * 2**30, 8 * 2**30))
tracemalloc.start()
try:
    read_torch_file(Path(sys.argv[1]))
except CheckpointError as error:
    print(error)
sys.exit(tracemalloc.get_traced_memory()[1] > 16 * 2**20)
"""
    command = [sys.executable, "-c", script, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("operations", "reason"),
    [
        (b"})" + b"\x85" * 1_000_000 + b"Ns", "operations"),
        (b"})" + b"q\x00h\x00\x86" * 60 + b"Ns", "more than tensors by name"),  # 2**60 to hash
    ],
    ids=["deep", "exponential"],
)
def test_tuples_as_names_are_not_hashed(tmp_path: Path, operations: bytes, reason: str) -> None:
    assert reason in refusal_apart(archive(tmp_path / "a.pth", b"\x80\x02" + operations + b"."))


def test_tables_are_not_copied(tmp_path: Path) -> None:
    table = b"}q\x00(" + b"".join(b"X\x05\x00\x00\x00%05dN" % i for i in range(40_000)) + b"u"
    copies = b"](" + table + b"ccollections\nOrderedDict\nq\x01" + b"h\x01h\x00\x85R" * 80_000 + b"e."
    assert "not one that torch.save writes" in refusal_apart(archive(tmp_path / "a.pth", b"\x80\x02" + copies))


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


@pytest.mark.parametrize("properties", [[1], {"neg": True}])
def test_tensor_with_properties_of_its_own(tmp_path: Path, properties: object) -> None:
    tensor = Rebuilt("0", 4, (4,), (1,))
    tensor.arguments = (*tensor.arguments, properties)  # type: ignore[assignment]
    assert "properties of its own" in refusal(archive(tmp_path / "a.pth", {"w": tensor}, data=bytes(16)))


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
    assert "truncated or damaged" in refusal(path)


def test_numbers_in_the_other_byte_order(tmp_path: Path) -> None:
    table = {"w": Rebuilt("0", 1, (1,), (1,))}
    assert "byte order" in refusal(archive(tmp_path / "a.pth", table, data=bytes(4), byteorder=b"big"))


def test_torch_load_stands_nowhere() -> None:
    texts = [path.read_text() for path in Path(torch_file.__file__).parents[1].rglob("*.py")]
    for tree in (ast.parse(text) for text in texts if "torch.load(" in text):  # one stands in a message's remedy
        assert "torch.load" not in {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
