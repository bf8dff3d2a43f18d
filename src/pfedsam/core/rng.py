"""Randomness as an argument: every random draw comes from the run's seed and what the draw is for.

Nothing here, and nothing in the library, seeds a global generator. So the order in which sites happen to run changes
nothing, and a resumed run draws what the undisturbed one would have drawn.
"""

import hashlib

import numpy as np
import torch


def derive(seed: int, *purpose: str | int) -> int:
    """A seed of 63 bits for one purpose, the same on every machine.

    Args:
        seed: the run's seed, any integer.
        *purpose: what the draws are for, for example `site.name, round, "augment"`. Text and numbers are told apart:
            `"1"` and `1` give different seeds, and so do `"ab", "c"` and `"a", "bc"`.
    """
    text = "".join(_tagged(part) for part in (seed, *purpose))
    return int.from_bytes(hashlib.sha256(text.encode("utf-8")).digest()[:8], "big") >> 1


def _tagged(part: str | int) -> str:
    """One part with its type and length, so that no two sequences of parts read the same when joined."""
    kind = "s" if isinstance(part, str) else "i"
    text = str(part) if isinstance(part, str) else str(int(part))
    return f"{kind}{len(text)}:{text}"


def generator(seed: int, *purpose: str | int) -> torch.Generator:
    """A CPU generator of torch, seeded for one purpose."""
    return torch.Generator().manual_seed(derive(seed, *purpose))


def numpy_generator(seed: int, *purpose: str | int) -> np.random.Generator:
    """A generator of NumPy, seeded for one purpose."""
    return np.random.default_rng(derive(seed, *purpose))
