"""Model selection at a site: the personal or the shared model, and an earlier model if the current one has become much worse.

At each validation, a site scores both of its models. Until the next validation it uses the shared one if that is clearly better
(`evaluation.choose_model`, `evaluation.statistics.clearly_positive`), so that local parameters that overfit a small site are not used, and
otherwise the personal one. If the Dice of the model in use is more than `evaluation.max_drop` below the site's best one, the site uses an
earlier model, with the shared and local parameters of the last validation for which this was not the case, for final local fine-tuning, the
test and predictions; with `evaluation.max_drop: 0` this is early stopping. The site still trains with the received parameters, so that the
rounds of other sites do not change, and uses the new parameters as soon as they are good enough again.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from typing import Final, NamedTuple

from pfedsam.core.tensors import NamedTensors
from pfedsam.experiment.build import BuiltModel, build_method
from pfedsam.experiment.options import RunOptions
from pfedsam.federation.site_store import SiteState, SiteStore
from pfedsam.training.phases import Model

FINAL: Final = "final"
"""The phase under which the parameters after the phases that follow the last aggregation are stored."""
_PHASE: Final = "validation"
"""The phase under which the parameters that a site uses since a validation are stored."""


class Parameters(NamedTuple):
    """All trained parameters of one model."""

    shared: NamedTensors
    local: NamedTensors
    uses: Model = "personal"
    """The model that the site uses: `shared` if the shared model was clearly better on its validation part."""
    averaged: NamedTensors | None = None
    """The parameters of the shared model if `shared` holds the site's own, fine-tuned copy; None if both models have those in `shared`."""

    @property
    def of_shared_model(self) -> NamedTensors:
        """The shared parameters of the shared model."""
        return self.shared if self.averaged is None else self.averaged

    def model(self, wanted: Model) -> Model:
        """The model that is used if `wanted` is requested."""
        return "shared" if self.uses == "shared" else wanted


@dataclass(frozen=True)
class Validation:
    """The numbers that a site reports about a validation."""

    dice: Mapping[str, float | None]
    """Dice by reported model."""
    kept: int | None = None
    """The earlier round whose model the site uses; None if it uses the model of this round."""
    uses: Model = "personal"
    """The model that the site uses from now on."""


def allowed_drop(options: RunOptions, built: BuiltModel) -> float | None:
    """The allowed decrease of a site's validation Dice; None if there is no model to keep or to choose.

    A pooled method has one model for all sites, so no site may choose another one.
    """
    evaluation, choice = options.evaluation, bool(built.partition.shared)
    if build_method(options).roster.pool:
        return None
    return inf if evaluation.max_drop is None and evaluation.choose_model and choice else evaluation.max_drop


@dataclass(frozen=True)
class SiteModels:
    """The models of the site in `folder`."""

    folder: Path
    initial: NamedTensors
    """The local parameters before the site's first round."""
    max_drop: float | None = None
    """The result of `allowed_drop`."""
    choose: bool = True
    """Whether the site uses the shared model if it is clearly better on the validation part."""
    fine_tuned: bool = False
    """Whether local fine-tuning gives the site its own copy of the shared parameters."""

    @classmethod
    def of(cls, options: RunOptions, built: BuiltModel, folder: Path, initial: NamedTensors) -> "SiteModels":
        """The models of a site of this run."""
        return cls(
            folder, initial, allowed_drop(options, built), options.evaluation.choose_model, fine_tunes_shared(options)
        )

    def trained(self, received: NamedTensors) -> Parameters:
        """The parameters that the site trained last, with the shared parameters that it received or, after final fine-tuning, kept."""
        state = self._state.load()
        if state is None:
            return Parameters(received, self.initial)
        averaged = received if self.fine_tuned and state.phase == FINAL else None
        return Parameters(state.shared or received, state.local, averaged=averaged)

    def in_use(self, received: NamedTensors) -> Parameters:
        """The parameters that the site uses."""
        good = self._if_of_last(self._good.load())
        if good is None:
            return self.trained(received)
        used = Parameters(good.shared, good.local) if good.kept else self.trained(received)
        return used._replace(uses=good.uses)

    def kept(self, round_: int) -> SiteState | None:
        """The parameters from which final fine-tuning starts, if they are not those received; validations after `round_` are removed."""
        good = self._if_of_last(self._good.rewind(round_))
        return good if good and good.kept else None

    def judge(
        self, round_: int, scores: Mapping[str, float | None], received: NamedTensors, *, shared_is_better: bool = False
    ) -> Validation:
        """Store which model the site uses, from the scores of the validation after `round_`.

        Args:
            round_: the round after which the validation took place.
            scores: Dice by reported model, the personal one first.
            received: the shared parameters.
            shared_is_better: whether the shared model is clearly better than the personal one; used if the site may choose a model.
        """
        before, state = self._good.rewind(round_), self._state.load()
        chosen = self._choice(scores, shared_is_better)
        if self.max_drop is None or chosen is None or state is None:
            return Validation(scores)
        name, dice = chosen
        best = _highest(dice, before)
        if before is not None and dice < best - self.max_drop:
            self._good.commit(replace(before, round=round_ + 1, kept=True))
            return Validation(scores, before.shared_round, before.uses)
        uses = _model(name, scores)
        used = self.trained(received)
        shared = used.of_shared_model if uses == "shared" else used.shared
        self._good.commit(replace(_to_keep(state, shared, round_), best=best, uses=uses))
        return Validation(scores, uses=uses)

    def _choice(self, scores: Mapping[str, float | None], shared_is_better: bool) -> tuple[str, float] | None:
        """The model that a site would use, by the name under which it is reported, with its Dice; None if no model has one."""
        names = list(scores)[::-1] if self.choose and shared_is_better else list(scores)
        defined = ((name, dice) for name in names if (dice := scores[name]) is not None)
        return next(defined, None)

    def _if_of_last(self, good: SiteState | None) -> SiteState | None:
        """A stored validation if it belongs to the parameters that were trained last; otherwise None."""
        state = self._state.load()
        return good if state and good and good.round >= state.round else None

    @property
    def _state(self) -> SiteStore:
        return SiteStore(self.folder / "state")

    @property
    def _good(self) -> SiteStore:
        return SiteStore(self.folder / "good")


def fine_tunes_shared(options: RunOptions) -> bool:
    """Whether each site trains its own copy of the shared parameters after the last aggregation."""
    return any("shared" in phase.trains for phase in build_method(options).final(options.training))


def models_of(options: RunOptions, built: BuiltModel, *, both: bool = True) -> dict[str, Model]:
    """The models of a site by the name under which they are reported; without `both`, only the one that it uses if it does not choose.

    A pooled method has one model for all sites, so it is reported as shared. If some local parameters cannot be switched off (FedPer's
    decoder), there is no shared model.
    """
    roster = build_method(options).roster
    if roster.pool and not roster.each_finalizes:
        return {"shared": "personal"}
    own = built.partition.local or fine_tunes_shared(options)
    models: dict[str, Model] = {"personal": "personal"} if own else {}
    return models | ({"shared": "shared"} if built.has_shared_model and (both or not models) else {})


def start_of(options: RunOptions, built: BuiltModel, sites: Path, site: str) -> NamedTensors:
    """The local parameters of a site before its first round: the initial ones of the model, or those that the pooled site trained last.

    Args:
        options: the options of the run.
        built: the model of the run.
        sites: the folder that contains a folder for each site of the run.
        site: the site's name.
    """
    first: NamedTensors = built.start("local")
    pool = build_method(options).roster.pool
    return first if pool is None or site == pool else SiteModels(sites / pool, first).trained({}).local


def _to_keep(state: SiteState, shared: NamedTensors, round_: int) -> SiteState:
    """The state to store for the validation after `round_`.

    Args:
        state: the local parameters that the site trained last.
        shared: the shared parameters of the model that it uses.
        round_: the round after which the validation took place.
    """
    return SiteState(
        study=state.study,
        site=state.site,
        round=round_ + 1,
        phase=_PHASE,
        local=state.local,
        optimizer={},
        shared=shared,
        shared_round=state.shared_round if state.shared else round_,
    )


def _highest(dice: float, before: SiteState | None) -> float:
    """The best Dice of a site so far, including this validation; `before` is its previous validation."""
    return dice if before is None or before.best is None else max(dice, before.best)


def _model(chosen: str, scores: Mapping[str, float | None]) -> Model:
    """The model that is reported as `chosen`: the first one is the personal model, whatever its reported name."""
    return "personal" if chosen == next(iter(scores)) else "shared"
