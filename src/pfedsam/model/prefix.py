"""A bounded cache of frozen features, the outputs of the frozen blocks before the first adapted one.

These blocks never change in a federation, so their output is computed once for each view of an image. The cache is derived from
patients' images: it is in the site's own folder, and only its owner can read it.
"""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Literal

import torch
from pydantic import Field
from torch import Tensor

from pfedsam.core.lock import in_turn
from pfedsam.core.log import get_logger
from pfedsam.core.options import Options

_LOG = get_logger(__name__)
_HASH_BYTES = 32
_KEY_BYTES = 2 * _HASH_BYTES
"""The length of a key entry: the digest of the pixels and the digest of the stored tokens."""
_FORM = 2
"""The version of the file format; files of version 0.1 had no digest of the tokens and are removed."""
_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class PrefixOptions(Options):
    """Precision and size of the cache of frozen features."""

    dtype: Literal["float32", "float16", "bfloat16"] = Field(
        default="float32",
        description="Precision of the frozen features, with and without a cache; float16 and bfloat16 halve the space, and bfloat16 "
        "loses nothing if model.precision is bfloat16.",
    )
    max_gigabytes: float = Field(
        default=4.0,
        ge=0,
        description="Largest size of the cache of a site; features beyond it are computed each time. 0: no cache.",
    )


class PrefixCache:
    """Frozen features by image content, in a memory-mapped file of equal slots and a file of their keys.

    The key is the SHA-256 of the pixels, so that equal views of an image are found whatever the file is called. Beside each key the SHA-256
    of its slot is stored, which is checked when the slot is first read: a damaged slot is reported in the log, computed again and
    rewritten. A slot's key is written after its data, so that a killed process or a full disk leaves only complete slots. Processes that
    share a folder add slots one after the other. Model, block, size and precision are part of the file's name.
    """

    def __init__(
        self, folder: Path | None, model_key: str, shape: tuple[int, int, int], options: PrefixOptions
    ) -> None:
        """Open the cache of one site, or create it.

        Args:
            folder: the folder of the site's cache; None: nothing is stored, and `tokens` only rounds to the precision of the cache.
            model_key: identifies the backbone and the first block that is not frozen.
            shape: shape of one image's tokens, (h, w, d).
            options: precision and size limit.
        """
        self.shape = shape
        self.dtype = _DTYPES[options.dtype]
        self._slot_bytes = shape[0] * shape[1] * shape[2] * self.dtype.itemsize
        self._slots = 0 if folder is None else int(options.max_gigabytes * 2**30) // self._slot_bytes
        self._known: dict[bytes, tuple[int, bytes]] = {}
        self._checked: set[int] = set()
        if folder is not None and self._slots:
            name = f"{model_key}-{'x'.join(map(str, shape))}-{options.dtype}"
            self._data_path, self._key_path = folder / f"{name}-{_FORM}.tokens", folder / f"{name}-{_FORM}.keys"
            for old in (folder / f"{name}.tokens", folder / f"{name}.keys"):
                old.unlink(missing_ok=True)
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._known = self._read_keys()

    def tokens(self, pixels: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
        """The tokens `[h, w, d]` (float32, CPU) of one view, pixels `[3, S, S]`; computed by `compute([1, 3, S, S])` if not stored."""
        key = hashlib.sha256(pixels.contiguous().numpy().tobytes()).digest()
        known = self._known.get(key)
        if known is not None and (kept := self._read(*known)) is not None:
            return kept.float()
        tokens = compute(pixels[None])[0].to("cpu", self.dtype)
        if known is not None or len(self._known) < self._slots:
            try:
                self._write(key, tokens)
            except OSError as error:  # for example a full disk; slots that are stored already are still valid
                self._slots = len(self._known)
                _LOG.warning("cannot store more frozen features (%s): they are computed each time", error.strerror)
        return tokens.float()

    def _read_keys(self) -> dict[bytes, tuple[int, bytes]]:
        """Digest of the pixels -> slot, and digest of the tokens."""
        if not (self._key_path.exists() and self._data_path.exists()):
            return {}
        keys = self._key_path.read_bytes()
        whole = min(len(keys) // _KEY_BYTES, self._data_path.stat().st_size // self._slot_bytes, self._slots)
        lines = [keys[i * _KEY_BYTES : (i + 1) * _KEY_BYTES] for i in range(whole)]
        return {line[:_HASH_BYTES]: (i, line[_HASH_BYTES:]) for i, line in enumerate(lines)}

    def _read(self, slot: int, digest: bytes) -> Tensor | None:
        """The tokens of shape [h, w, d] in a slot; None if they are not those that were written."""
        if not self._data_path.exists() or self._data_path.stat().st_size < (slot + 1) * self._slot_bytes:
            _LOG.warning("%s was removed or cut: its entries are computed again", self._data_path.name)
            self._known, self._checked = {}, set()
            return None
        count = self._slot_bytes // self.dtype.itemsize
        size = (slot + 1) * count
        mapped = torch.from_file(str(self._data_path), shared=False, size=size, dtype=self.dtype)
        tokens = mapped[slot * count :].view(self.shape).clone()
        if slot not in self._checked and _digest(tokens) != digest:
            _LOG.warning("%s is damaged at entry %d: the entry is computed again", self._data_path.name, slot)
            return None
        self._checked.add(slot)
        return tokens

    def _write(self, key: bytes, tokens: Tensor) -> None:
        """Write the tokens of an image, shape [h, w, d], under a key."""
        turn = in_turn(self._key_path.with_suffix(".lock"))
        with turn, _open(self._key_path) as keys, _open(self._data_path) as data:
            of_keys, of_data = os.fstat(keys.fileno()).st_size, os.fstat(data.fileno()).st_size
            if lost := min(of_keys // _KEY_BYTES, of_data // self._slot_bytes) < len(self._known):
                self._checked = set()
            if lost or of_keys != len(self._known) * _KEY_BYTES:  # another process has added slots
                self._known = self._read_keys()
            slot = self._known[key][0] if key in self._known else len(self._known)
            if slot in self._checked or slot >= self._slots:
                return
            data.seek(slot * self._slot_bytes)
            data.write(tokens.contiguous().view(torch.uint8).numpy().tobytes())
            data.flush()
            keys.seek(slot * _KEY_BYTES)
            keys.write(key + _digest(tokens))
        self._known[key] = slot, _digest(tokens)
        self._checked.add(slot)


def _digest(tokens: Tensor) -> bytes:
    """A digest of the bytes of tokens of shape [h, w, d]."""
    return hashlib.sha256(tokens.contiguous().view(torch.uint8).numpy().data).digest()


def _open(path: Path) -> BinaryIO:
    return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b")
