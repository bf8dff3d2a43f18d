"""Which model a site uses: the one it trained last, or, where the shared model has made that worse, its last good one.

A site scores the shared parameters that it gets whenever it validates. Where its Dice is then more than `evaluation.max_drop` below
the best it has had, it stays with the shared and local parameters of the last validation that was not so, for all that it uses: the
last phases, the test, predictions. It trains on what it receives all the same, so that no other site's round changes, and uses
that again as soon as it is good again.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, NamedTuple

from pfedsam.core.tensors import NamedTensors
from pfedsam.experiment.build import BuiltModel, build_method
from pfedsam.experiment.options import RunOptions
from pfedsam.federation.site_store import SiteState, SiteStore

_GOOD: Final = "good"
_KEPT: Final = "kept"
"""The phases under which a validation is stored: its own parameters, or once more those of the last good one."""


class Parameters(NamedTuple):
    """All that is trained of one model."""

    shared: NamedTensors
    local: NamedTensors


@dataclass(frozen=True)
class Validation:
    """What a site says about a validation: numbers only."""

    dice: Mapping[str, float | None]
    """By reported model; the first is the one that the site uses."""
    kept: int | None = None
    """The round whose shared model the site stays with; None where it uses the one that it got."""


def allowed_drop(options: RunOptions, built: BuiltModel) -> float | None:
    """How far a site's validation Dice may fall; None where nothing that is received could be worse than before."""
    if build_method(options).pooled or not built.partition.shared:
        return None
    return options.evaluation.max_drop


@dataclass(frozen=True)
class SiteModels:
    """The models of the site in `folder`."""

    folder: Path
    initial: NamedTensors
    """The local parameters before the site's first round."""
    max_drop: float | None = None
    """As `allowed_drop`."""

    def trained(self, received: NamedTensors) -> Parameters:
        """What the site trained last, with the shared parameters that it received, or that it ended with."""
        state = self._state.load()
        return Parameters(state.shared or received, state.local) if state else Parameters(received, self.initial)

    def in_use(self, received: NamedTensors) -> Parameters:
        """What the site uses."""
        state, good = self._state.load(), self._good.load()
        if state and good and _holds(good, state):
            return Parameters(good.shared, good.local)
        return self.trained(received)

    def kept(self, round_: int) -> SiteState | None:
        """What the last phases after `round_` rounds start from where that is not what was received; later validations are dropped."""
        state, good = self._state.load(), self._good.rewind(round_)
        return good if state and good and _holds(good, state) else None

    def judge(self, round_: int, dice: float | None, received: NamedTensors) -> int | None:
        """Note how the model that was trained last did in the validation after `round_`.

        Returns:
            The round whose shared model the site stays with; None where it uses the one that it got.
        """
        before, state = self._good.rewind(round_), self._state.load()
        if self.max_drop is None or dice is None or state is None:
            return None
        best = dice if before is None or before.best is None else max(dice, before.best)
        if before is not None and dice < best - self.max_drop:
            self._good.commit(replace(before, round=round_ + 1, phase=_KEPT))
            return before.shared_round
        good = SiteState(
            study=state.study,
            site=state.site,
            round=round_ + 1,
            phase=_GOOD,
            local=state.local,
            optimizer={},
            shared=state.shared or received,
            shared_round=state.shared_round if state.shared else round_,
            best=best,
        )
        self._good.commit(good)
        return None

    @property
    def _state(self) -> SiteStore:
        return SiteStore(self.folder / "state")

    @property
    def _good(self) -> SiteStore:
        return SiteStore(self.folder / "good")


def _holds(good: SiteState, state: SiteState) -> bool:
    """Whether the last validation kept an earlier model, and nothing was trained since."""
    return good.phase == _KEPT and good.round >= state.round
