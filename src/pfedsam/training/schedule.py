"""How long a study trains, and the learning rate of each round.

Without `training.patience` a study has `training.rounds` rounds: the learning rate warms up, and then decreases with a cosine over all of
them. With it, that number is only an upper bound. The learning rate is constant after the warm-up until no site has gained on its
validation part for `patience` rounds; the study then goes on for `patience` rounds more, in which the learning rate decreases, and ends.
Such a schedule, whose length need not be known in advance, is that of Hägele et al. (NeurIPS 2024, arXiv:2405.18392).
"""

import math
from collections.abc import Mapping
from typing import Final

from pfedsam.training.options import TrainingOptions
from pfedsam.training.phases import OptimizerOptions

FINE_TUNING_START: Final = 0.5
"""Learning rate at the beginning of local fine-tuning, as a fraction of the peak (docs/decisions/0021)."""
LEAST_GAIN: Final = 0.002
"""A site gains if its Dice is by this much above the best one before; smaller gains count once they add up to it."""


def learning_rate(options: TrainingOptions, round_: int, ends: int | None = None) -> float:
    """The learning rate of a round.

    Args:
        options: options of the training.
        round_: the round, counted from 0; rounds after the end keep the last learning rate.
        ends: the number of rounds after which the study ends, as far as it is known; None for `training.rounds`.
    """
    optimizer, rounds = options.optimizer, options.rounds if ends is None else ends
    length = rounds if options.patience is None else min(options.patience, rounds)
    done = max(0.0, (round_ - (rounds - length)) / max(1, length - 1))
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    warmed = min(1.0, (round_ + 1) / max(1, round(optimizer.warm_up * length)))
    return optimizer.learning_rate * (optimizer.final_fraction + (1 - optimizer.final_fraction) * cosine) * warmed


def fine_tuning_rates(optimizer: OptimizerOptions, steps: int) -> list[float]:
    """The learning rate of each step of local fine-tuning: a cosine from half of the peak to the last learning rate of the rounds."""
    last = optimizer.final_fraction
    first = max(last, FINE_TUNING_START)
    cosine = (0.5 * (1 + math.cos(math.pi * step / max(1, steps - 1))) for step in range(steps))
    return [optimizer.learning_rate * (last + (first - last) * share) for share in cosine]


def end_of_training(options: TrainingOptions, validations: Mapping[int, Mapping[str, float]]) -> int:
    """The number of rounds after which a study ends, as far as its validations so far determine it.

    Once they determine an end before `training.rounds`, no later validation changes it.

    Args:
        options: options of the training.
        validations: Dice of each site by the round after which it was validated, counted from 0; sites without a score are left out.
    """
    if options.patience is None:
        return options.rounds
    best: dict[str, float] = {}
    gained = 0
    for round_, scores in sorted(validations.items()):
        for site, dice in scores.items():
            if dice >= best.get(site, -math.inf) + LEAST_GAIN:
                best[site], gained = dice, round_
        if best and round_ - gained >= options.patience:
            return min(options.rounds, round_ + 1 + options.patience)
    return options.rounds
