"""A site that works for a coordinator elsewhere: it answers requests, one after the other, and never says more than agreed.

Knows nothing of networks: a runtime hands it requests and takes its replies through the site's gate (`federation.site_policy`).
Whatever goes wrong here becomes one word in the reply; what it was in full stands in the site's own log.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from pfedsam.core import tensors
from pfedsam.core.errors import DataError, OptionError, PfedsamError, StoreError
from pfedsam.core.log import get_logger
from pfedsam.core.tensors import NamedTensors
from pfedsam.data.check import refuse_problems
from pfedsam.data.intensity import training_range, write_range
from pfedsam.data.manifest import Site
from pfedsam.data.split import read_split, write_split
from pfedsam.engine.model_selection import models_of
from pfedsam.engine.scalar_metrics import from_report, from_summaries, from_validation
from pfedsam.engine.server_files import NOTHING
from pfedsam.engine.site_options import SiteOptions, read_site_options
from pfedsam.engine.site_session import SiteScorer, SiteSession
from pfedsam.engine.study_folder import derive_manifest
from pfedsam.evaluation.summary import summarize_site
from pfedsam.experiment.build import BuiltModel, build_method, build_model, build_sites, build_study, read_sites
from pfedsam.experiment.options import RunOptions
from pfedsam.federation.manifest import StudyManifest
from pfedsam.federation.messages import Reply, Request, in_words
from pfedsam.federation.site_policy import RefusedError, SitePolicy
from pfedsam.model.numerics import configure_numerics, describe

MODEL_FILES = {"shared": "shared.safetensors", "local": "local.safetensors"}
"""What a site uses after a study, in the study's folder at the site; the metadata say whether as its personal or the shared model."""
_LOG = get_logger(__name__)


def study_options(manifest: StudyManifest, site: SiteOptions) -> RunOptions:
    """The study's options as they hold at one site.

    Raises:
        OptionError: the study's configuration is not one that this version knows.
    """
    content: dict[str, Any] = {key: dict(v) if isinstance(v, dict) else v for key, v in manifest.configuration.items()}
    content["data"]["sites"] = {site.name: str(site.data)}
    content["runtime"] = {"threads": site.threads, "device": site.device}
    if site.backbone:
        content["model"]["backbone"] = site.backbone
    if site.patient_pattern:
        content["data"]["patient_pattern"] = site.patient_pattern
    try:
        return RunOptions.model_validate(content)
    except ValidationError as error:
        raise OptionError(
            f"the study's configuration is not one that this version of pFedSAM knows: {error}"
        ) from error


def build_study_model(manifest: StudyManifest, options: RunOptions) -> BuiltModel:
    """The study's model at this site, in this process, which computes as the options say from now on.

    Raises:
        OptionError: there is no such device here.
        RefusedError: the backbone here is not the study's.
    """
    device = configure_numerics(options.runtime.threads, options.runtime.device)
    _LOG.info("computing on %s", describe(device))
    built = build_model(options, device, may_download=False)
    if built.backbone != manifest.backbone:
        raise RefusedError(
            "other-backbone",
            f"the backbone here has the hash {built.backbone}, the study's {manifest.backbone}; set the right one as `backbone` in "
            "site.yaml.",
        )
    return built


def check_manifest(manifest: StudyManifest, options: RunOptions, built: BuiltModel) -> None:
    """Let a manifest pass only if all that it says follows from its configuration, as this site derives it.

    Args:
        manifest: of the study.
        options: the study's at this site.
        built: the study's model at this site.

    Raises:
        RefusedError: naming each field that says something else.
    """
    derived = derive_manifest(options, built, manifest.configuration)
    listed = {
        # An older coordinator lists fewer metrics; none may be listed that the configuration does not give.
        task: tuple(name for name in names if name in derived.scalar_metrics.get(task, ()))
        for task, names in manifest.scalar_metrics.items()
    }
    derived = derived.model_copy(update={"scalar_metrics": listed})
    different = sorted({path.split(".")[0] for path in manifest.differences(derived)})
    if different:
        raise RefusedError(
            "other-tensors" if "tensors" in different else "other-configuration",
            f"what the manifest says does not follow from its configuration; different: {', '.join(different)}. Do not approve it; "
            "ask the coordinator for the manifest that `pfedsam coordinator submit` wrote.",
        )


@dataclass
class _OpenStudy:
    """A study with its model in memory."""

    manifest: StudyManifest
    options: RunOptions
    built: BuiltModel
    site: Site
    session: SiteSession


class SiteAgent:
    """The site in `folder`; SAM is loaded once, with the first request of a study."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.policy = folder, SitePolicy(folder)
        self.options = read_site_options(folder)
        self._open: _OpenStudy | None = None

    def handle(self, request: Request) -> Reply:
        """The answer to a request; a failure is answered by one word and told in full in the site's own log."""
        word = "failed"
        try:
            return self._answer(request)
        except RefusedError as error:
            word = error.word
            _LOG.error("%s refused (%s): %s", self._asked(request), word, error)
        except PfedsamError as error:
            word = _word(error)
            _LOG.error("%s failed (%s): %s", self._asked(request), word, error)
        except (MemoryError, torch.OutOfMemoryError) as error:
            word = "memory"
            _LOG.error("%s ran out of memory: %s", self._asked(request), error)
        except Exception as error:  # noqa: BLE001 - the coordinator learns one word, whatever it was; the log has all of it
            _LOG.exception("%s failed: %s", self._asked(request), type(error).__name__)
        return Reply(request.task, request.study, request.round, refused=word)

    def _asked(self, request: Request) -> str:
        return in_words(request.task, request.round, self.policy.rounds(request.study))

    def _answer(self, request: Request) -> Reply:
        manifest = self.policy.admit(request)
        study = self._study(manifest)
        if request.task == "join":
            return self._reply(request, {"cases": study.session.cases})
        shared = self.policy.accept_broadcast(manifest, request, study.built.start("shared"))
        history = self.policy.history(manifest.study)
        reply = history.reply(request)  # of a coordinator that was restarted and asks again
        if reply is None:
            reply = self._compute(request, study, shared)
            history.keep(request, reply)
        return reply

    def _compute(self, request: Request, study: _OpenStudy, shared: NamedTensors) -> Reply:
        if request.task == "train":
            return self._train(request, study, shared)
        if request.task == "validate":
            return self._reply(request, self._validate(request.round, study, shared))
        if request.task == "finalize":
            return self._reply(request, from_report(study.session.finalize(request.round, shared)))
        return self._reply(request, self._test(study, shared))

    def _train(self, request: Request, study: _OpenStudy, shared: NamedTensors) -> Reply:
        last = study.session.store.load()
        if last is not None and request.round < last.round - 1:
            # The store would have to forget more than the one round that a coordinator's restart can cost.
            raise RefusedError("wrong-round", f"asked for round {request.round + 1}, which this site has left behind.")
        message, report = study.session.train(request.round, shared)
        return Reply(request.task, request.study, request.round, from_report(report), message)

    def _validate(self, round_: int, study: _OpenStudy, shared: NamedTensors) -> dict[str, float | None]:
        scorer = SiteScorer(study.options, study.site.name, study.built, study.session.data.cache)
        models, site = models_of(study.options, study.built), study.session.models
        found = scorer.validate(study.site.of("val"), models, site, round_, shared)
        if found.kept is not None:
            asked = in_words("validate", round_, study.manifest.rounds)
            _LOG.warning("%s: the shared model is worse here; the one of round %d stays", asked, found.kept + 1)
        return from_validation(found, study.manifest.scalar_metrics["validate"])

    def _test(self, study: _OpenStudy, shared: NamedTensors) -> dict[str, float | None]:
        scorer = SiteScorer(study.options, study.site.name, study.built, study.session.data.cache)
        models = models_of(study.options, study.built)
        folder = self.policy.study_folder(study.manifest.study)
        used = study.session.models.in_use(shared)
        scores = scorer.test(study.site.of("test"), models, used, folder)
        uses = {"model": used.model(next(iter(models.values())))}
        for kind, name in MODEL_FILES.items():
            tensors.save(folder / name, getattr(used, kind) or NOTHING, uses)
        summaries = {name: summarize_site(found) for name, found in scores.items()}
        return from_summaries(summaries, study.manifest.scalar_metrics["test"])

    def _reply(self, request: Request, numbers: dict[str, float | None]) -> Reply:
        return Reply(request.task, request.study, request.round, numbers)

    def _study(self, manifest: StudyManifest) -> _OpenStudy:
        if self._open is None or self._open.manifest.digest != manifest.digest:
            self._open = None  # one model in memory at a time
            self._open = self._load(manifest)
        return self._open

    def _load(self, manifest: StudyManifest) -> _OpenStudy:
        """Check the data, load the backbone, and find the study's own backbone and tensors in it.

        Raises:
            RefusedError: they are not.
            DataError: naming every problem of the data; for the site's log only.
        """
        options = study_options(manifest, self.options)
        if build_method(options).pooled:
            raise RefusedError("other-configuration", "a pooled method needs all images in one place.")
        site = self._split(manifest, options)
        built = build_study_model(manifest, options)
        check_manifest(manifest, options, built)
        folder = self.policy.study_folder(manifest.study)
        session = SiteSession(
            options, manifest.study, site.name, site.of("train"), built, folder, folder / "cache" / site.name
        )
        return _OpenStudy(manifest, options, built, site, session)

    def _split(self, manifest: StudyManifest, options: RunOptions) -> Site:
        folder, name = self.policy.study_folder(manifest.study), self.options.name
        if (folder / "split.json").exists():
            return read_split(folder / "split.json", read_sites(options, masks_required=False)[name])
        site = build_sites(options)[name]
        report = refuse_problems([site], build_study(options))
        for warning in report.warnings:
            _LOG.warning("%s", warning)
        found = training_range(report.facts[0])
        if found is not None:
            write_range(folder, found)
        write_split(folder / "split.json", site, digests=True)
        return site


def _word(error: PfedsamError) -> str:
    if isinstance(error, DataError):
        return "data"
    return "storage" if isinstance(error, StoreError) else "failed"
