"""A study that is open at a site, with its model in memory: it executes requests and makes the replies.

The same code is used at a hospital (`engine.site_agent`) and in a local run (`engine.local`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pfedsam.core.log import get_logger
from pfedsam.core.tensors import NamedTensors
from pfedsam.data.manifest import Site
from pfedsam.data.manifest_lines import Split
from pfedsam.data.site_summary import summarize_data
from pfedsam.data.split import USED, refuse_changed_files
from pfedsam.engine.model_selection import SiteModels, models_of
from pfedsam.engine.scalar_metrics import (
    ScalarMetrics,
    from_registration,
    from_report,
    from_summaries,
    from_validation,
)
from pfedsam.engine.site_files import SPLIT
from pfedsam.engine.site_session import SiteScorer, SiteSession
from pfedsam.evaluation.summary import summarize_site
from pfedsam.experiment.build import BuiltModel, build_cache, build_study, check_cases
from pfedsam.experiment.options import RunOptions
from pfedsam.federation.data_summary import from_site_summary
from pfedsam.federation.manifest import StudyManifest
from pfedsam.federation.messages import Reply, Request
from pfedsam.federation.tasks import in_words

_LOG = get_logger(__name__)


@dataclass
class SiteStudy:
    """One site in one study."""

    manifest: StudyManifest
    options: RunOptions
    built: BuiltModel
    """The study's model; sites in one process share it, and each puts its own parameters into it."""
    site: Site
    folder: Path
    """The folder of the site in the study, with its split, states and scores."""
    cache_folder: Path
    """The folder of the cache of frozen features of this site's images."""
    start: Callable[[], NamedTensors]
    """A function that returns the local parameters before the site's first round."""

    @property
    def _enough_to_train(self) -> bool:
        """Whether the site has enough training cases for numbers about them to leave the site."""
        return len(self.site.of("train")) >= self.manifest.min_cases

    @cached_property
    def session(self) -> SiteSession:
        """The training side of the site; the training images are read on the first access.

        Raises:
            DataError: a case cannot be read, or does not fit the model.
            OptionError: validation would average over mirror images, and training images are not mirrored.
        """
        check_cases(self.options, self.site, self.built.model.image_size)
        return SiteSession(
            self.options,
            self.manifest.study,
            self.site.name,
            self.site.of("train"),
            self.built,
            self.folder,
            self.cache_folder,
            self.start(),
        )

    @property
    def models(self) -> SiteModels:
        """The models that the site may use."""
        return SiteModels.of(self.options, self.built, self.folder, self.start())

    def answer(self, request: Request, shared: NamedTensors) -> Reply:
        """Execute a request.

        Args:
            request: an admitted request of this study.
            shared: the shared parameters in the request.

        Raises:
            RefusedError: the round does not follow the site's own state.
            DataError: a case cannot be read, or has changed since the site began the study.
            StoreError: the site's state cannot be read or written.
        """
        if request.task == "join":
            return _reply(request, self._join())
        if request.task == "summarize":
            return _reply(request, self._summarize())
        if request.task == "train":
            return self._train(request, shared)
        if request.task == "validate":
            return _reply(request, self._validate(request, shared))
        if request.task == "finalize":
            report = self.session.finalize(request.round, shared)
            return _reply(request, from_report(report, may_leave=self._enough_to_train))
        return _reply(request, self._test(shared))

    def _join(self) -> ScalarMetrics:
        classes, form = self.options.data.label_map().names, self.session.data.form
        return from_registration(self.session.cases, classes, form, self.manifest.scalar_metrics["join"])

    def _summarize(self) -> ScalarMetrics:
        """The summary of the data of all parts of the site."""
        return from_site_summary(
            summarize_data(self.site, build_study(self.options), min_cases=self.manifest.min_cases)
        )

    def _train(self, request: Request, shared: NamedTensors) -> Reply:
        message, report = self.session.train(request.round, shared, request.ends)
        return Reply(
            request.task, request.study, request.round, from_report(report, may_leave=self._enough_to_train), message
        )

    def _validate(self, request: Request, shared: NamedTensors) -> ScalarMetrics:
        self._refuse_changed(("val",))
        ends = request.ends or self.manifest.rounds
        both = self.options.evaluation.validate_shared or request.round + 1 >= ends
        models = models_of(self.options, self.built, both=both)
        found = self._scorer().validate(self.site.of("val"), models, self.models, request.round, shared)
        if found.kept is not None:
            asked = in_words("validate", request.round, ends)
            _LOG.warning(
                "%s: the model became much worse here; the site uses an earlier model, of round %d",
                asked,
                found.kept + 1,
            )
        return from_validation(found, self.manifest.scalar_metrics["validate"])

    def _test(self, shared: NamedTensors) -> ScalarMetrics:
        self._refuse_changed(USED)
        models = models_of(self.options, self.built, both=self.options.evaluation.test_shared)
        used = self.models.in_use(shared)
        scores = self._scorer().test(self.site.of("test"), models, used, self.folder)
        summaries = {name: summarize_site(found) for name, found in scores.items()}
        return from_summaries(summaries, self.manifest.scalar_metrics["test"], self.manifest.min_cases)

    def _refuse_changed(self, parts: Sequence[Split]) -> None:
        """Refuse to score if files were changed while the study was open: images and masks to score are read from the disk each time.

        The test also refuses changed files of the other parts, as `--resume` does, because volumes are read again during the training.

        Raises:
            DataError: the files of a case of these parts have changed, or cannot be read.
        """
        refuse_changed_files(self.folder / SPLIT, self.site, parts)

    def _scorer(self) -> SiteScorer:
        cache = build_cache(self.options, self.built, self.cache_folder)
        return SiteScorer(self.options, self.site.name, self.built, cache)


def _reply(request: Request, numbers: ScalarMetrics) -> Reply:
    return Reply(request.task, request.study, request.round, numbers)
