"""Randomness as an argument: every random draw is determined by the run's seed and the purpose of the draw.

No part of the library seeds a global generator. Therefore the order in which sites run does not change the result, and a resumed run
draws the same numbers as a run that was not interrupted.
"""

import hashlib

import numpy as np
import torch


def derive(seed: int, *purpose: str | int) -> int:
    """A seed of 63 bits for one purpose, the same on every machine.

    Args:
        seed: the run's seed, any integer.
        *purpose: the purpose of the draws, for example `site.name, round, "augment"`. Text and numbers are distinguished:
            `"1"` and `1` give different seeds, and so do `"ab", "c"` and `"a", "bc"`.
    """
    text = "".join(_tagged(part) for part in (seed, *purpose))
    return int.from_bytes(hashlib.sha256(text.encode("utf-8")).digest()[:8], "big") >> 1


def _tagged(part: str | int) -> str:
    """One part with its type and length, so that two different sequences of parts never give the same joined text."""
    kind = "s" if isinstance(part, str) else "i"
    text = str(part) if isinstance(part, str) else str(int(part))
    return f"{kind}{len(text)}:{text}"


def generator(seed: int, *purpose: str | int) -> torch.Generator:
    """A torch generator on the CPU, seeded for one purpose."""
    return torch.Generator().manual_seed(derive(seed, *purpose))


def numpy_generator(seed: int, *purpose: str | int) -> np.random.Generator:
    """A NumPy generator, seeded for one purpose."""
    return np.random.default_rng(derive(seed, *purpose))
