"""The encoding of the values of an update: exact, as half floats, or as small integers with a scale for each block.

All codecs but `fp32` encode the change from the shared parameters that the site received, which server and site know exactly: the changes
are small and of similar size, and the parameters themselves are not. An integer codec divides a tensor into blocks. For each block it sends
the scale s = max|x| / L (float16, rounded up, so that nothing is clipped) and the codes round(x / s) in -L..L, with L = 127 (int8) or 7
(int4). The error of a value is at most s / 2. Decoding is one exact product in float32, so that every machine gets the same bits.

Block-wise symmetric quantisation: Dettmers et al., "8-bit Optimizers via Block-wise Quantization", ICLR 2022, section 2.1, with
linear codes.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pfedsam.core.errors import OptionError, UpdateError

CodecName = Literal["fp32", "fp16", "int8", "int4"]

MIN_BLOCK, MAX_BLOCK = 8, 4096
"""Number of values in a block: in smaller blocks the scales need more bytes than the codes, and in larger ones a single large value makes
the rounding of too many others coarse."""

_LEVELS = {"int8": 127, "int4": 7}
_HALF = torch.float16
_ZERO_NIBBLE = 8
"""The stored form of the code 0 of int4: codes are stored with 8 added, two in a byte, the earlier one in the low half."""


@dataclass(frozen=True)
class Codec:
    """One encoding of tensors; site and server must use the same one, so it is covered by the digest of the update's specification."""

    name: CodecName = "fp32"
    block: int = 64

    def __post_init__(self) -> None:
        """Check the length of a block.

        Raises:
            OptionError: the length is not allowed.
        """
        if not MIN_BLOCK <= self.block <= MAX_BLOCK:
            raise OptionError(f"communication.block is {self.block}; allowed are {MIN_BLOCK} to {MAX_BLOCK} values.")

    def __str__(self) -> str:
        return f"{self.name}/{self.block}" if self.name in _LEVELS else self.name

    @property
    def lossless(self) -> bool:
        """Whether the values themselves are sent, in the types of the tensors; otherwise `pack` and `unpack` encode their changes."""
        return self.name == "fp32"

    def size(self, count: int) -> int:
        """The number of bytes of `count` changes of one tensor."""
        if self.name not in _LEVELS:
            return count * _HALF.itemsize
        return self._scales(count) * _HALF.itemsize + (count if self.name == "int8" else (count + 1) // 2)

    def pack(self, change: Tensor) -> Tensor:
        """Encode the changes of one tensor (any shape, converted to float32) as bytes, uint8 `[size]`.

        A block with a value that is not finite, or that is too large for a scale, is encoded so that it is decoded as not finite; the
        server then refuses the update and names the site.
        """
        flat = change.detach().cpu().to(torch.float32).reshape(-1)
        if self.name not in _LEVELS:
            return flat.to(_HALF).view(torch.uint8)
        rows = _in_blocks(flat, self.block)
        scales = _round_up(rows.abs().amax(dim=1) / _LEVELS[self.name])
        steps = (
            (rows / scales.to(torch.float32)[:, None]).nan_to_num(0.0, 0.0, 0.0).round()
        )  # 0 / 0 in a block of zeros
        codes = steps.clamp(-_LEVELS[self.name], _LEVELS[self.name]).to(torch.int8).reshape(-1)[: len(flat)]
        return torch.cat(
            [scales.view(torch.uint8), codes.view(torch.uint8) if self.name == "int8" else _nibbles(codes)]
        )

    def unpack(self, data: Tensor, count: int) -> Tensor:
        """Decode bytes that `pack` wrote, uint8 of shape `[size]`, to float32 of shape `[count]`.

        Raises:
            UpdateError: `pack` does not write such bytes.
        """
        if data.dtype != torch.uint8 or data.shape != (self.size(count),):
            raise UpdateError(f"{data.numel()} bytes cannot be {count} values of codec {self}: {self.size(count)} are.")
        if self.name not in _LEVELS:
            return data.clone().view(_HALF).to(torch.float32)
        cut = self._scales(count) * _HALF.itemsize
        scales = data[:cut].clone().view(_HALF).to(torch.float32)
        codes = data[cut:].view(torch.int8) if self.name == "int8" else _from_nibbles(data[cut:], count)
        if bool((codes.to(torch.int16).abs() > _LEVELS[self.name]).any()) or bool(scales.signbit().any()):
            raise UpdateError(f"a code or a scale is beyond what codec {self} writes.")
        return (_in_blocks(codes.to(torch.float32), self.block) * scales[:, None]).reshape(-1)[:count]

    def least_norm(self, data: Tensor, count: int) -> float:
        """A lower bound of the L2 norm of the changes in these bytes `[size]`, from the scales alone; 0 for a codec without scales.

        The largest value of every block that `pack` writes is exactly the scale times L. Scales that are not finite are left out,
        because their values are refused as not finite.

        Args:
            data: the bytes uint8 `[size]` of one tensor.
            count: the number of values of the tensor.
        """
        if self.name not in _LEVELS:
            return 0.0
        scales = data[: self._scales(count) * _HALF.itemsize].clone().view(_HALF).to(torch.float64)
        normal = scales[scales.isfinite() & (scales >= torch.finfo(_HALF).smallest_normal)]
        return _LEVELS[self.name] * math.sqrt(float(normal.square().sum()))

    def _scales(self, count: int) -> int:
        return -(-count // self.block)


LOSSLESS = Codec("fp32")
"""The codec that changes no value."""


def _in_blocks(flat: Tensor, block: int) -> Tensor:
    """Values of shape `[n]` in blocks, shape `[ceil(n / block), block]`, padded with zeros."""
    return torch.nn.functional.pad(flat, (0, -len(flat) % block)).view(-1, block)


def _round_up(values: Tensor) -> Tensor:
    """Round non-negative float32 values of any shape up to float16; values above its range become infinity."""
    halves = values.to(_HALF)
    return torch.where(halves.to(torch.float32) < values, (halves.view(torch.int16) + 1).view(_HALF), halves)


def _nibbles(codes: Tensor) -> Tensor:
    """Pack int8 codes in -7..7 of shape `[n]` into bytes of shape `[ceil(n / 2)]`."""
    halves = torch.nn.functional.pad(codes, (0, len(codes) % 2)).add(_ZERO_NIBBLE).to(torch.uint8)
    return halves[0::2] | (halves[1::2] << 4)


def _from_nibbles(data: Tensor, count: int) -> Tensor:
    """Unpack bytes of shape `[ceil(count / 2)]` to int8 codes of shape `[count]`; a code is -8 only in a message that is not valid.

    Raises:
        UpdateError: the unused half byte at the end is not empty.
    """
    codes = torch.stack([data & 15, data >> 4], dim=1).reshape(-1).to(torch.int8) - _ZERO_NIBBLE
    if bool(codes[count:].any()):
        raise UpdateError("the half byte that is left over at a tensor's end is not empty.")
    return codes[:count]
