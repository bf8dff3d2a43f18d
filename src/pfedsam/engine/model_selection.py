"""Which model a site uses: its personal or the shared one, and not one that has become much worse.

Whenever it validates, a site scores both of its models, and uses the better one until the next time (`evaluation.choose_model`): a local
part that overfits a small site is left out. Where the better one's Dice is more than `evaluation.max_drop` below the best it has had, the
site stays with the shared and local parameters of the last validation that was not so, for all that it uses: the last phases, the test,
predictions; with `evaluation.max_drop: 0` that is early stopping. It trains on what it receives all the same, so that no other site's
round changes, and uses that again as soon as it is good again.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from typing import Final, NamedTuple

from pfedsam.core.tensors import NamedTensors
from pfedsam.experiment.build import BuiltModel, build_roster
from pfedsam.experiment.options import RunOptions
from pfedsam.federation.site_store import SiteState, SiteStore
from pfedsam.training.phases import Model

_GOOD: Final = "good"
_KEPT: Final = "kept"
"""The phases under which a validation is stored: its own parameters, or once more those of the last good one."""
_PLAIN: Final = "-shared"
"""Ends the phase where the shared model did better than the personal one."""


class Parameters(NamedTuple):
    """All that is trained of one model."""

    shared: NamedTensors
    local: NamedTensors
    plain: bool = False
    """The shared model is used in the place of the personal one."""

    def model(self, wanted: Model) -> Model:
        """What computes where `wanted` is asked for."""
        return "shared" if self.plain else wanted


@dataclass(frozen=True)
class Validation:
    """What a site says about a validation: numbers only."""

    dice: Mapping[str, float | None]
    """By reported model."""
    kept: int | None = None
    """The round whose shared model the site stays with; None where it uses the one that it got."""
    plain: bool = False
    """The site uses the shared model, which did better than its personal one."""


def allowed_drop(options: RunOptions, built: BuiltModel) -> float | None:
    """How far a site's validation Dice may fall; None where there is nothing to keep or to choose.

    A pooled model is one for all sites, and none of them may choose another.
    """
    evaluation, choice = options.evaluation, bool(built.partition.shared)
    if build_roster(options).pool:
        return None
    return inf if evaluation.max_drop is None and evaluation.choose_model and choice else evaluation.max_drop


@dataclass(frozen=True)
class SiteModels:
    """The models of the site in `folder`."""

    folder: Path
    initial: NamedTensors
    """The local parameters before the site's first round."""
    max_drop: float | None = None
    """As `allowed_drop`."""
    choose: bool = True
    """Use the shared model where that does better."""

    @classmethod
    def of(cls, options: RunOptions, built: BuiltModel, folder: Path, initial: NamedTensors) -> "SiteModels":
        """The models of a site of this run."""
        return cls(folder, initial, allowed_drop(options, built), options.evaluation.choose_model)

    def trained(self, received: NamedTensors) -> Parameters:
        """What the site trained last, with the shared parameters that it received, or that it ended with."""
        state = self._state.load()
        return Parameters(state.shared or received, state.local) if state else Parameters(received, self.initial)

    def in_use(self, received: NamedTensors) -> Parameters:
        """What the site uses."""
        good = self._if_of_last(self._good.load())
        if good is None:
            return self.trained(received)
        used = Parameters(good.shared, good.local) if _is_kept(good) else self.trained(received)
        return used._replace(plain=_is_plain(good))

    def kept(self, round_: int) -> SiteState | None:
        """What the last phases after `round_` rounds start from where that is not what was received; later validations are dropped."""
        good = self._if_of_last(self._good.rewind(round_))
        return good if good and _is_kept(good) else None

    def judge(self, round_: int, scores: Mapping[str, float | None], received: NamedTensors) -> Validation:
        """Note how the models that were trained last did in the validation after `round_`.

        Args:
            round_: the validation is after this one.
            scores: Dice by reported model; of those that have one the best is judged, or the first where none is chosen.
            received: the shared parameters.
        """
        before, state = self._good.rewind(round_), self._state.load()
        defined = {name: dice for name, dice in scores.items() if dice is not None}
        if self.max_drop is None or not defined or state is None:
            return Validation(scores)
        chosen = max(defined, key=lambda name: defined[name]) if self.choose else next(iter(defined))
        dice, ending = defined[chosen], _PLAIN if chosen != next(iter(scores)) else ""
        best = dice if before is None or before.best is None else max(dice, before.best)
        if before is not None and dice < best - self.max_drop:
            self._good.commit(replace(before, round=round_ + 1, phase=before.phase.replace(_GOOD, _KEPT)))
            return Validation(scores, before.shared_round, _is_plain(before))
        good = SiteState(
            study=state.study,
            site=state.site,
            round=round_ + 1,
            phase=_GOOD + ending,
            local=state.local,
            optimizer={},
            shared=state.shared or received,
            shared_round=state.shared_round if state.shared else round_,
            best=best,
        )
        self._good.commit(good)
        return Validation(scores, plain=bool(ending))

    def _if_of_last(self, good: SiteState | None) -> SiteState | None:
        """A stored validation, if it is of what was trained last."""
        state = self._state.load()
        return good if state and good and good.round >= state.round else None

    @property
    def _state(self) -> SiteStore:
        return SiteStore(self.folder / "state")

    @property
    def _good(self) -> SiteStore:
        return SiteStore(self.folder / "good")


def models_of(options: RunOptions, built: BuiltModel) -> dict[str, Model]:
    """Reported name to model.

    A pooled method has one model for all sites, so it is reported as shared. Where a part of what is local cannot be switched off
    (FedPer's decoder) there is no shared model.
    """
    roster = build_roster(options)
    if roster.pool and not roster.each_finalizes:
        return {"shared": "personal"}
    models: dict[str, Model] = {"personal": "personal"} if built.partition.local else {}
    return models | ({"shared": "shared"} if built.has_shared_model else {})


def start_of(options: RunOptions, built: BuiltModel, sites: Path, site: str) -> NamedTensors:
    """The local parameters of a site of a run before its first round: the model's own, or those that the pooled site trained last.

    Args:
        options: of the run.
        built: its model.
        sites: the folder that holds a folder for each site of the run.
        site: the site's name.
    """
    first: NamedTensors = built.start("local")
    pool = build_roster(options).pool
    return first if pool is None or site == pool else SiteModels(sites / pool, first).trained({}).local


def site_models(options: RunOptions, built: BuiltModel, sites: Path, site: str) -> SiteModels:
    """The models of a site of a run, whose folder lies in `sites`."""
    return SiteModels.of(options, built, sites / site, start_of(options, built, sites, site))


def _is_kept(good: SiteState) -> bool:
    return good.phase.startswith(_KEPT)


def _is_plain(good: SiteState) -> bool:
    return good.phase.endswith(_PLAIN)
