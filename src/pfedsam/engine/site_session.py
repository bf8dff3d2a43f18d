"""The work of one site: it keeps its data, its state and its local parameters, and returns updates and scores.

The same methods are used in one process, in several processes and on several machines.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pfedsam.core import atomic
from pfedsam.core.small_numbers import rounded_up
from pfedsam.core.tensors import NamedTensors
from pfedsam.data.examples import Example
from pfedsam.data.loader import CaseTruth, check_sizes, load_case_truth
from pfedsam.data.manifest import Case
from pfedsam.engine.model_selection import FINAL, Parameters, SiteModels, Validation
from pfedsam.evaluation.predict import Forward, flip_mean, whole_cases
from pfedsam.evaluation.regions import clean_regions
from pfedsam.evaluation.scores import CaseScores, score_case
from pfedsam.evaluation.small_numbers import publishable_losses, withhold
from pfedsam.evaluation.statistics import clearly_positive, paired_difference
from pfedsam.evaluation.summary import summarize_site
from pfedsam.experiment.build import (
    BuiltModel,
    build_cache,
    build_images,
    build_method,
    build_predict,
    build_site_data,
    single_regions,
)
from pfedsam.experiment.options import RunOptions
from pfedsam.federation.pipeline.base import Sent
from pfedsam.federation.pipeline.build import build_pipeline
from pfedsam.federation.site_policy import RefusedError
from pfedsam.federation.site_store import SiteState, SiteStore
from pfedsam.federation.update import Update
from pfedsam.model.partition import assign
from pfedsam.model.prefix import PrefixCache
from pfedsam.report.overlays import OverlayItem, VolumeOverlay, volume_overlay, write_overlays
from pfedsam.training.client_round import ClientResult, ClientState, client_round, expert_usage
from pfedsam.training.phases import Model
from pfedsam.training.site_data import SiteData

SCORES: Final = "scores.json"
"""The file in a site's folder with its test scores by case; it is written when the study has ended there."""


@dataclass(frozen=True)
class RoundReport:
    """The numbers that a site reports about a round, in addition to its update."""

    losses: dict[str, dict[str, float]]
    """Mean losses by phase, without those over too few cases to leave the site."""
    usage: dict[str, list[float]]
    """Share of the tokens by block and expert, in the last round and after it; empty in earlier rounds, and without experts."""


class SiteSession:
    """The training side of one site."""

    def __init__(
        self,
        options: RunOptions,
        study: str,
        name: str,
        cases: tuple[Case, ...],
        built: BuiltModel,
        folder: Path,
        cache: Path,
        start: NamedTensors,
    ) -> None:
        """Load the training part of a site.

        Args:
            options: the options of the run.
            study: the run's identity, which is stored with each state.
            name: the name of the site.
            cases: the training cases of the site.
            built: the federation's model; its trained parameters are overwritten.
            folder: the folder of the site in the run.
            cache: the folder of the cache of frozen features.
            start: the local parameters before the site's first round.

        Raises:
            DataError: a case cannot be read.
        """
        self.options, self.study, self.name, self.built = options, study, name, built
        self.store = SiteStore(folder / "state")
        self.data: SiteData = build_site_data(options, name, cases, built, cache)
        self.cases = rounded_up(len(cases), options.communication.least_cases)
        """The weight of the site in the average: its training cases, at least `communication.min_cases`."""
        self._initial = start
        self.models = SiteModels.of(options, built, folder, self._initial)

    def train(self, round_: int, shared: NamedTensors, ends: int | None = None) -> tuple[bytes, RoundReport]:
        """Run the client round `round_` with the received shared parameters, and save the new local state.

        Args:
            round_: the round, counted from 0.
            shared: the received parameters.
            ends: the number of rounds after which the study ends; None for `training.rounds`.

        Returns:
            The message with the update (empty if the method shares nothing), and the report of the round.

        Raises:
            RefusedError: the site is several rounds ahead.
            DataError: a case cannot be read.
            StoreError: the site's state cannot be read or written.
        """
        stored = self._state_before(round_)
        result = self._phases(round_, shared, stored, ends=ends)
        sent = self._send(round_, shared, result, stored)
        self._commit(round_, result, "round", sent.memory)
        last = round_ + 1 == (ends or self.options.training.rounds)
        return sent.message, RoundReport(self._losses(result), self._usage(result) if last else {})

    def finalize(self, round_: int, shared: NamedTensors) -> RoundReport:
        """Final local fine-tuning: the phases after the last aggregation, after which no update is sent."""
        stored, kept = self.store.rewind(round_), self.models.kept(round_)
        result = self._phases(round_, kept.shared if kept else shared, kept or stored, ends=round_, final=True)
        own = result.shared if kept or self.models.fine_tuned else {}
        self._commit(round_, result, FINAL, {}, own, kept.shared_round if kept else round_ - 1)
        return RoundReport(self._losses(result), self._usage(result))

    def _state_before(self, round_: int) -> SiteState | None:
        """The stored state with which the site begins a round; a later one, of a round that is repeated, is removed.

        Raises:
            RefusedError: the site is several rounds ahead.
            StoreError: the state cannot be read.
        """
        last = self.store.load()
        if last is None or last.round <= round_:
            return last
        if last.round > round_ + 1:  # a restarted coordinator repeats at most one round
            raise RefusedError(
                "wrong-round",
                f"the request is for round {round_ + 1}, but this site is already several rounds ahead.",
            )
        return self.store.rewind(round_)

    def _send(self, round_: int, shared: NamedTensors, result: ClientResult, stored: SiteState | None) -> Sent:
        """The result of the update pipeline for the round's update; it is empty if the method shares nothing."""
        if not result.shared:
            return Sent(b"", {})
        update = Update(self.name, round_, result.shared, self.cases)
        return build_pipeline(self.options.communication).send(update, shared, stored.memory if stored else {})

    def _phases(
        self,
        round_: int,
        shared: NamedTensors,
        stored: SiteState | None,
        *,
        ends: int | None,
        final: bool = False,
    ) -> ClientResult:
        method, training = build_method(self.options), self.options.training
        state = ClientState(stored.local, stored.optimizer) if stored else ClientState(self._initial)
        experts = self.options.model.experts
        return client_round(
            self.built.model,
            self.built.partition,
            self.data,
            method.final(training) if final else method.phases_of(training, round_),
            shared=shared,
            state=state,
            round_=round_,
            options=training,
            balance=experts.balance if experts else 0.0,
            ends=ends,
        )

    def _commit(
        self,
        round_: int,
        result: ClientResult,
        phase: str,
        memory: NamedTensors,
        own: NamedTensors | None = None,
        received_after: int | None = None,
    ) -> None:
        """Store the result of a phase, and `own` shared parameters that began with those received after a round."""
        self.store.commit(
            SiteState(
                study=self.study,
                site=self.name,
                round=round_ + 1,
                phase=phase,
                local=result.state.local,
                optimizer=result.state.optimizer,
                memory=memory,
                shared=own or {},
                shared_round=received_after if own else None,
            )
        )

    def _losses(self, result: ClientResult) -> dict[str, dict[str, float]]:
        least = self.options.communication.least_cases
        return {phase: publishable_losses(found, result.cases[phase], least) for phase, found in result.losses.items()}

    def _usage(self, result: ClientResult) -> dict[str, list[float]]:
        if not self.built.model.routers():
            return {}
        assign(self.built.model, result.state.local, self.built.partition.local)
        return expert_usage(self.built.model, self.data, least_cases=self.options.communication.least_cases)


class SiteScorer:
    """The scoring side of one site: its validation and test parts, which are never used for training."""

    def __init__(self, options: RunOptions, name: str, built: BuiltModel, cache: PrefixCache | None = None) -> None:
        """Prepare the scoring of a site.

        Args:
            options: the options of the run.
            name: the name of the site.
            built: the model of the run, whose trained parameters are overwritten.
            cache: the cache of the frozen features of the site's images; None to compute them each time.
        """
        self.options, self.name, self.built = options, name, built
        self._cache = build_cache(options, built, None) if cache is None else cache
        self._labels = options.data.label_map(name)
        self._predict = build_predict(options, built.model.image_size)
        self._single = single_regions(options)

    def validate(
        self,
        cases: tuple[Case, ...],
        models: Mapping[str, Model],
        site: SiteModels,
        round_: int,
        received: NamedTensors,
    ) -> Validation:
        """Score the parameters that the site trained last on its validation part, and choose the model that it uses from now on.

        The choice uses the exact scores. In the result, scores over fewer than `communication.min_cases` cases are withheld.

        Args:
            cases: the validation part; if it is empty, the result is empty too.
            models: reported name -> model.
            site: the parameters of the site.
            round_: the round after which the validation takes place.
            received: the shared parameters.
        """
        if not cases:
            return Validation({})
        trained = site.trained(received)
        scores = {name: self._score(cases, model, trained, distances=False)[0] for name, model in models.items()}
        found = {name: summarize_site(one) for name, one in scores.items()}
        better = len(scores) == 2 and clearly_positive(_differences(scores["shared"], scores["personal"]))
        judged = site.judge(
            round_, {name: one.mean.dice for name, one in found.items()}, received, shared_is_better=better
        )
        least = self.options.communication.least_cases
        return replace(judged, dice={name: withhold(one, least).mean.dice for name, one in found.items()})

    def test(
        self,
        cases: tuple[Case, ...],
        models: Mapping[str, Model],
        parameters: Parameters,
        folder: Path,
    ) -> dict[str, list[CaseScores]]:
        """Score the test cases, write `scores.json` and overlays into `folder`, and return the scores by the reported name of the model.

        Args:
            cases: the test part.
            models: reported name -> model; overlays are drawn for the first model.
            parameters: the parameters that the site uses.
            folder: the folder of the site in the run.
        """
        scores: dict[str, list[CaseScores]] = {}
        for number, (reported, model) in enumerate(models.items()):
            if number and parameters.uses == "shared":  # the shared model is scored under every name
                scores[reported] = next(iter(scores.values()))
                continue
            scores[reported], overlays = self._score(cases, model, parameters, distances=True, draw=number == 0)
            if number == 0:
                write_overlays(folder / "overlays", overlays, self._labels.names)
        atomic.write_json(folder / SCORES, {"schema": 2, "models": _plain(scores)})
        return scores

    def predict(self, examples: Sequence[Example], model: Model, parameters: Parameters) -> list[Any]:
        """Class maps uint8 at native size: `[H, W]` of a picture, `[D, H, W]` of a volume."""
        return [found for _, found in self._class_maps(examples, model, parameters)]

    def _class_maps(
        self, examples: Sequence[Example], model: Model, parameters: Parameters
    ) -> Iterator[tuple[Example, npt.NDArray[np.uint8]]]:
        """Each case, a volume by its last slice, with its class map at native size after post-processing."""
        for example, found in whole_cases(self._predict(self.forward(model, parameters), examples)):
            yield example, self.cleaned(found)

    def cleaned(self, classes: npt.NDArray[np.uint8], *, smallest: int = 0) -> npt.NDArray[np.uint8]:
        """A class map at native size, `[H, W]` or `[D, H, W]`, after the post-processing of the study.

        Args:
            classes: the predicted labels.
            smallest: connected components with fewer pixels or voxels are removed too.
        """
        return clean_regions(classes, smallest=smallest, single=self._single, overlap=self._labels.overlap)

    def forward(self, model: Model, parameters: Parameters) -> Forward:
        """The function from pixels to class logits of one of the site's models, with `evaluation.flips` the mean over mirror images."""
        sam, partition = self.built.model, self.built.partition
        personal = parameters.model(model) == "personal"
        assign(sam, parameters.shared if personal else parameters.of_shared_model, partition.shared)
        assign(sam, parameters.local, partition.local)

        def forward(pixels: Tensor) -> Tensor:
            """Class logits [B, C, h, w] of pixels [B, 3, S, S]."""
            tokens = torch.stack([self._cache.tokens(p, sam.prefix) for p in pixels])
            return sam.from_prefix(tokens, personal=personal)

        return flip_mean(forward) if self.options.evaluation.flips else forward

    def _score(
        self,
        cases: tuple[Case, ...],
        model: Model,
        parameters: Parameters,
        *,
        distances: bool,
        draw: bool = False,
    ) -> tuple[list[CaseScores], list[OverlayItem | VolumeOverlay]]:
        examples = build_images(self.options, cases, self.built.model.image_size)
        scores: list[CaseScores] = []
        overlays: list[OverlayItem | VolumeOverlay] = []
        for example, found in self._class_maps(examples, model, parameters):
            truth = load_case_truth(example.case, self._labels, self.options.data.image, self.options.data.volume)
            if not example.case.volume:
                check_sizes(example.case, found.shape, truth.classes.shape)
            found = found.reshape(truth.classes.shape)  # a volume of one slice has labels [H, W]
            scored = score_case(
                example.case.id,
                found,
                truth.classes,
                class_names=self._labels.names,
                spacing_mm=truth.spacing_mm,
                patient=example.case.patient,
                lesions=self.options.evaluation.lesions,
                surface_tolerance=self.options.evaluation.surface_tolerance,
                distances=distances,
                not_annotated=self._labels.not_annotated,
                overlap=self._labels.overlap,
            )
            scores.append(scored)
            if draw:
                overlays.append(_overlay(truth, found, scored.dice, overlap=self._labels.overlap))
        return scores, overlays


def _differences(ones: Sequence[CaseScores], others: Sequence[CaseScores]) -> list[float]:
    """The difference in Dice of each patient, the mean over its cases; patients of whom no case has a Dice are left out."""
    found: dict[str, list[float]] = {}
    for one, other in zip(ones, others, strict=True):
        difference = paired_difference(one.dice_by_class, other.dice_by_class)
        if difference is not None:
            found.setdefault(one.patient, []).append(difference)
    return [fmean(values) for values in found.values()]


def _overlay(
    truth: CaseTruth, found: npt.NDArray[np.uint8], dice: float | None, *, overlap: bool
) -> OverlayItem | VolumeOverlay:
    """The overlay of a case, from labels of the shape of `truth.classes`: [H, W] of a picture, [D, H, W] of a volume."""
    if truth.classes.ndim == 2:
        return OverlayItem(truth.picture(0), truth.classes, found, dice, overlap)
    spacing = truth.spacing_mm if truth.spacing_mm and len(truth.spacing_mm) == 3 else None
    return volume_overlay(
        truth.picture, truth.classes, found, dice, spacing_mm=spacing, axes=truth.directions, overlap=overlap
    )


def _plain(scores: Mapping[str, list[CaseScores]]) -> dict[str, list[dict[str, Any]]]:
    """The content of `scores.json` by reported model; it names cases and patients, so it must stay at the site."""
    return {
        model: [
            {
                "case": case.case,
                "patient": case.patient,
                "unit": case.unit,
                "volume_unit": case.volume_unit,
                "classes": {
                    name: {**asdict(found), "presence": case.presence[name]} for name, found in case.classes.items()
                },
            }
            for case in cases
        ]
        for model, cases in scores.items()
    }
