"""The encoding of values as bytes: known blocks computed by hand, and the bounds of the error as properties."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pfedsam.core.errors import OptionError, UpdateError
from pfedsam.core.tensors import digest
from pfedsam.federation.codec import MAX_BLOCK, MIN_BLOCK, Codec

LEVELS = {"int8": 127, "int4": 7}
lossy = pytest.mark.parametrize("name", ["fp16", "int8", "int4"])
integers = pytest.mark.parametrize("name", list(LEVELS))


def halves(data, count):
    return data[: 2 * count].clone().view(torch.float16).tolist()


def test_a_block_of_int8_by_hand():
    """Largest value 1.27 * 2^10: the scale 10.24 is not a float16; the next above is 10.2421875 (steps of 2^-7 there)."""
    data = Codec("int8", 8).pack(torch.tensor([1300.48, -650.24, 10.0, 5.0, -5.2, 0.0, 15.4, -1300.48]))
    assert halves(data, 1) == [10.2421875]
    assert data[2:].view(torch.int8).tolist() == [127, -63, 1, 0, -1, 0, 2, -127]


def test_a_scale_that_is_a_half_float_stays():
    data = Codec("int8", 8).pack(torch.tensor([127 * 0.25, 0.25, -0.5, 0.1]))
    assert halves(data, 1) == [0.25]
    assert data[2:].view(torch.int8).tolist() == [127, 1, -2, 0]


def test_blocks_of_int4_by_hand():
    """Scales 1/8 and 2 (a block of two); codes have 8 added, the earlier one in the low half of a byte."""
    data = Codec("int4", 8).pack(torch.tensor([0.875, -0.875, 0.25, 0.0, 0.125, -0.125, 0.5, 0.3, 14.0, -2.0, 5.1]))
    assert halves(data, 2) == [0.125, 2.0]
    assert data[4:].tolist() == [
        0x1F,
        0x8A,
        0x79,
        0xAC,
        0x7F,
        0x8B,
    ]  # 7 -7 | 2 0 | 1 -1 | 4 2 | 7 -1 | 3 (5.1 / 2 = 2.55) -


def test_half_floats_by_hand():
    data = Codec("fp16").pack(torch.tensor([1.0, -0.1]))
    assert data.tolist() == [0x00, 0x3C, 0x66, 0xAE]


@pytest.mark.parametrize(
    ("codec", "count", "size"),
    [
        (Codec("fp16"), 65, 130),
        (Codec("int8", 64), 64, 66),
        (Codec("int8", 64), 65, 69),
        (Codec("int8", 32), 65, 71),
        (Codec("int4", 64), 64, 34),
        (Codec("int4", 64), 65, 37),
        (Codec("int4", 64), 1, 3),
    ],
)
def test_sizes_by_hand(codec, count, size):
    assert codec.size(count) == size
    assert codec.pack(torch.randn(count, generator=torch.Generator().manual_seed(1))).shape == (size,)


@integers
@settings(max_examples=200)
@given(data=st.data())
def test_no_value_is_off_by_more_than_half_a_scale(name, data):
    width = st.floats(-65000, 65000, width=32) | st.floats(-(2**-10), 2**-10, width=32)
    values = torch.tensor(data.draw(st.lists(width, min_size=1, max_size=100)), dtype=torch.float32)
    codec = Codec(name, data.draw(st.integers(MIN_BLOCK, 70)))
    packed = codec.pack(values)
    back = codec.unpack(packed, len(values))
    scales = torch.tensor(halves(packed, math.ceil(len(values) / codec.block)), dtype=torch.float64)
    bound = scales.repeat_interleave(codec.block)[: len(values)] / 2
    # Beside half a scale: numbers below float32's normal ones may vanish.
    assert ((back.double() - values.double()).abs() <= bound * (1 + 1e-6) + 2**-126).all()
    # The scale itself is no coarser than a float16 has to be: 2^-10 relative, or 2^-24 where it is below the normal ones.
    largest = torch.stack([block.abs().max() for block in values.split(codec.block)]).double() / LEVELS[name]
    assert (scales <= largest * (1 + 2**-10 + 1e-6) + 2**-24).all()


@given(st.lists(st.floats(-65000, 65000, width=32), min_size=1, max_size=100))
def test_half_floats_keep_eleven_bits(numbers):
    values = torch.tensor(numbers, dtype=torch.float32)
    back = Codec("fp16").unpack(Codec("fp16").pack(values), len(values))
    assert ((back - values).abs() <= values.abs() * 2**-11 + 2**-25).all()


@lossy
def test_what_was_read_is_written_again_to_the_same_values(name):
    codec = Codec(name, 16)
    once = codec.unpack(codec.pack(torch.randn(50, generator=torch.Generator().manual_seed(2))), 50)
    assert digest({"x": codec.unpack(codec.pack(once), 50)}) == digest({"x": once})


@integers
def test_zeros_stay_zeros_and_tiny_values_do_not_overflow(name):
    codec = Codec(name, 8)
    assert codec.unpack(codec.pack(torch.zeros(9)), 9).tolist() == [0.0] * 9
    tiny = torch.full((9,), 1e-30)
    assert codec.unpack(codec.pack(tiny), 9).abs().max() <= 2**-25


@lossy
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf"), 3e38])
def test_what_is_not_finite_or_too_large_is_read_as_not_finite(name, bad):
    codec = Codec(name, 8)
    back = codec.unpack(codec.pack(torch.tensor([1.0] * 8 + [1.0, bad])), 10)
    assert back[:8].isfinite().all()
    assert not back[8:].isfinite().all()


@lossy
@pytest.mark.parametrize("change", [lambda d: d[:-1], lambda d: torch.cat([d, d[:1]]), lambda d: d.view(torch.int8)])
def test_bytes_of_another_length_or_type_are_refused(name, change):
    codec = Codec(name, 8)
    with pytest.raises(UpdateError, match=r"cannot be 11 values"):
        codec.unpack(change(codec.pack(torch.ones(11))), 11)


def put(data, place, value):
    data = data.clone()
    data[place] = value
    return data


@pytest.mark.parametrize(
    ("name", "place", "value"),
    [("int8", 4, 0x80), ("int8", 1, 0xBC), ("int4", 4, 0x00), ("int4", 4, 0x80), ("int4", 1, 0x80)],
    ids=["code -128", "negative scale", "codes -8 -8", "code -8", "scale -0"],
)
def test_bytes_that_are_never_written_are_refused(name, place, value):
    codec = Codec(name, 8)
    with pytest.raises(UpdateError, match=f"beyond what codec {name}/8 writes"):
        codec.unpack(put(codec.pack(torch.ones(11)), place, value), 11)


def test_the_half_byte_at_the_end_must_be_empty():
    codec = Codec("int4", 8)
    data = codec.pack(torch.ones(11))
    assert data[-1].item() == 0x8F
    with pytest.raises(UpdateError, match="left over"):
        codec.unpack(put(data, -1, 0x9F), 11)


@pytest.mark.parametrize("block", [0, -64, MIN_BLOCK - 1, MAX_BLOCK + 1, 10**12])
def test_a_block_of_another_length_is_refused(block):
    with pytest.raises(OptionError, match=r"communication\.block is"):
        Codec("int8", block)


@lossy
@settings(max_examples=100)
@given(data=st.binary(min_size=0, max_size=40), count=st.integers(1, 20))
def test_any_bytes_are_refused_or_read_as_numbers(name, data, count):
    codec = Codec(name, 8)
    try:
        back = codec.unpack(torch.tensor(list(data), dtype=torch.uint8), count)
    except UpdateError:
        return
    assert back.shape == (count,)
    assert back.dtype == torch.float32
