import json
import os
import stat
import tracemalloc

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from pfedsam.core import tensors
from pfedsam.core.errors import StoreError

SOME = {
    "lora.b": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "lora.a": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "step": torch.tensor(7),
    "none": torch.zeros(0, 4),
    "mask": torch.tensor([True, False, True]),
}


def message(header, payload=b"", length=None):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(raw) if length is None else length).to_bytes(8, "little") + raw + payload


def entry(dtype="F32", shape=(2,), place=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(place)}


def test_bytes_come_back_equal():
    data = tensors.to_bytes(SOME, {"site": "north", "round": "3"})
    back, metadata = tensors.from_bytes(data, max_bytes=len(data))
    assert metadata == {"site": "north", "round": "3"}
    assert set(back) == set(SOME)
    assert all(torch.equal(back[name], SOME[name]) and back[name].dtype == SOME[name].dtype for name in SOME)


def test_the_library_reads_what_we_write_and_we_read_what_it_writes(tmp_path):
    assert set(safetensors.torch.load(tensors.to_bytes(SOME))) == set(SOME)
    safetensors.torch.save_file(SOME, tmp_path / "theirs", {"format": "pt"})
    back, metadata = tensors.load_foreign(tmp_path / "theirs")
    assert tensors.digest(back) == tensors.digest(SOME)
    assert metadata == {"format": "pt"}


def test_equal_tensors_give_equal_bytes_in_any_order():
    metadata = {f"key{i}": "v" for i in range(8)}
    turned = dict(reversed(SOME.items()))
    one, other = tensors.to_bytes(SOME, metadata), tensors.to_bytes(turned, dict(reversed(metadata.items())))
    assert one == other


def test_tied_and_strided_tensors_can_be_written():
    base = torch.arange(12.0).reshape(3, 4)
    back, _ = tensors.from_bytes(tensors.to_bytes({"x": base, "y": base.T, "z": base}), max_bytes=10_000)
    assert torch.equal(back["y"], base.T)
    assert torch.equal(back["z"], base)


def test_save_and_load(tmp_path):
    tensors.save(tmp_path / "t", SOME)
    back, metadata = tensors.load(tmp_path / "t")
    assert tensors.digest(back) == tensors.digest(SOME)
    assert metadata == {}
    assert stat.S_IMODE((tmp_path / "t").stat().st_mode) == 0o600


def test_digest_ignores_order_and_sees_everything_else():
    reference = tensors.digest({"a": torch.tensor([1.0, 2.0])})
    assert tensors.digest({"a": torch.tensor([[1.0, 9.0], [2.0, 9.0]])[:, 0]}) == reference
    assert tensors.digest(dict(reversed(SOME.items()))) == tensors.digest(SOME)
    others = [
        {"b": torch.tensor([1.0, 2.0])},
        {"a": torch.tensor([[1.0, 2.0]])},
        {"a": torch.tensor([1.0, 2.0], dtype=torch.float64)},
        {"a": torch.tensor([1.0, 2.0000002])},
        {"a": torch.tensor([1.0]), "a2": torch.tensor([2.0])},
    ]
    assert len({tensors.digest(other) for other in [*others, {"a": torch.tensor([1.0, 2.0])}]}) == 6
    assert tensors.digest({"a": torch.tensor(0.0)}) != tensors.digest({"a": torch.tensor(-0.0)})


HOSTILE = {
    "empty": b"",
    "short": b"\1\2\3",
    "a header longer than the file": message({}, length=10**6),
    "a header of 2^63 bytes": message({}, length=2**63),
    "no json": message(b"\x80\x04pickle..."),
    "nested json": message(b"[" * 100_000),
    "a list": message([]),
    "a billion elements in 1.5 kB": message({"w": entry(shape=(10**9,), place=(0, 4 * 10**9))}, bytes(1400)),
    "a billion elements at a small place": message({"w": entry(shape=(10**9,), place=(0, 1400))}, bytes(1400)),
    "an overflowing shape": message({"w": entry(shape=(2**62, 2**62, 4), place=(0, 8))}, bytes(8)),
    "negative shape": message({"w": entry(shape=(-1, -2))}, bytes(8)),
    "a shape of text": message({"w": {"dtype": "F32", "shape": "2", "data_offsets": [0, 8]}}, bytes(8)),
    "a true dimension": message({"w": entry(shape=(True, 2))}, bytes(8)),
    "a float dimension": message({"w": entry(shape=(2.0,))}, bytes(8)),
    "backward place": message({"w": entry(place=(8, 0))}, bytes(8)),
    "three places": message({"w": entry(place=(0, 8, 8))}, bytes(8)),
    "unknown type": message({"w": entry(dtype="OBJECT")}, bytes(8)),
    "a type that is a list": message({"w": entry() | {"dtype": ["F32"]}}, bytes(8)),
    "an extra key": message({"w": entry() | {"code": "x"}}, bytes(8)),
    "an entry that is a number": message({"w": 3}, bytes(8)),
    "the same name twice": message(b'{"w":%b,"w":%b}' % ((json.dumps(entry()).encode(),) * 2), bytes(8)),
    "overlapping": message({"v": entry(), "w": entry(place=(0, 8))}, bytes(16)),
    "a gap": message({"v": entry(), "w": entry(place=(16, 24))}, bytes(24)),
    "unused bytes": message({"w": entry()}, bytes(9)),
    "truncated": message({"w": entry()}, bytes(7)),
    "metadata of numbers": message({"__metadata__": {"n": 1}, "w": entry()}, bytes(8)),
    "metadata that is not json": message({"__metadata__": {"pfedsam": "{"}, "w": entry()}, bytes(8)),
    "a path": message({"../../etc/passwd": entry()}, bytes(8)),
    "an absolute path": message({"/w": entry()}, bytes(8)),
    "a control character": message({"w\n": entry()}, bytes(8)),
    "no name": message({"": entry()}, bytes(8)),
    "a name of 1 MB": message({"w" * 10**6: entry()}, bytes(8)),
    "a name right to left": message({"w\u202eb": entry()}, bytes(8)),
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_hostile_messages_and_files_are_refused_before_the_library_sees_them(data, tmp_path, monkeypatch):
    monkeypatch.setattr(safetensors.torch, "load", pytest.fail)
    monkeypatch.setattr(tensors, "safe_open", pytest.fail)
    (tmp_path / "hostile").write_bytes(data)
    tracemalloc.start()
    with pytest.raises(StoreError):
        tensors.from_bytes(data, max_bytes=10**7)
    with pytest.raises(StoreError, match="hostile"):
        tensors.load(tmp_path / "hostile")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20 + 20 * len(data)  # parsing JSON takes some times its text


def test_a_long_message_and_a_missing_file_are_refused(tmp_path):
    data = tensors.to_bytes(SOME)
    with pytest.raises(StoreError, match="at most 10 are allowed"):
        tensors.from_bytes(data, max_bytes=10)
    with pytest.raises(StoreError, match="absent cannot be read"):
        tensors.load(tmp_path / "absent")


@pytest.mark.parametrize("metadata", [{}, {"round": "3"}])
def test_any_bit_that_changes_in_a_file_is_seen(tmp_path, metadata):
    tensors.save(tmp_path / "t", {"w": torch.arange(6.0)}, metadata)
    data = (tmp_path / "t").read_bytes()
    for at in range(len(data)):
        (tmp_path / "t").write_bytes(data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :])
        with pytest.raises(StoreError):
            tensors.load(tmp_path / "t", unsealed=metadata)


def test_a_file_without_a_digest_is_only_taken_in_the_form_of_version_0_1(tmp_path):
    (tmp_path / "t").write_bytes(tensors.to_bytes(SOME, {"round": "3"}))
    assert tensors.load(tmp_path / "t", unsealed=("round",))[1] == {"round": "3"}
    for keys in (None, (), ("round", "study")):
        with pytest.raises(StoreError, match="no digest"):
            tensors.load(tmp_path / "t", unsealed=keys)


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(StoreError, match="pipe cannot be read"):
        tensors.load(tmp_path / "pipe")


def test_what_cannot_be_read_is_not_written(tmp_path):
    with pytest.raises(StoreError, match="is not a valid tensor name"):
        tensors.save(tmp_path / "t", {"../w": torch.ones(1)})
    with pytest.raises(StoreError, match="complex64"):
        tensors.save(tmp_path / "t", {"w": torch.ones(1, dtype=torch.complex64)})
    assert not (tmp_path / "t").exists()


@given(st.binary(max_size=200), st.integers(0, 400))
def test_damaged_messages_are_read_or_refused(noise, place):
    data = bytearray(tensors.to_bytes(SOME, {"a": "b"}))
    data[place : place + len(noise)] = noise
    try:
        back, _ = tensors.from_bytes(bytes(data), max_bytes=10_000)
    except StoreError:
        return
    assert sum(tensor.nbytes for tensor in back.values()) < len(data)
