"""A finished run, opened again: predict with its models, or score its test part anew."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from pfedsam.core import tensors
from pfedsam.core.errors import RunError
from pfedsam.core.lock import exclusive
from pfedsam.core.log import get_logger
from pfedsam.data.entries import entry_of
from pfedsam.data.images import ImageOptions
from pfedsam.data.intensity import IntensityRange, far_from_training, read_range
from pfedsam.data.loader import load_image
from pfedsam.data.manifest import Case
from pfedsam.data.split import read_split
from pfedsam.engine.model_selection import Parameters, models_of, site_models
from pfedsam.engine.predict_volume import PredictedVolume, VolumeWishes, predict_volume_file
from pfedsam.engine.progress import Event
from pfedsam.engine.run_end import summarize_models, write_end
from pfedsam.engine.server_files import SERVER, read_server
from pfedsam.engine.site_session import SiteScorer
from pfedsam.experiment.build import BuiltModel, build_cache, build_images, build_model, build_roster, read_sites
from pfedsam.experiment.load import read_config
from pfedsam.experiment.options import RunOptions
from pfedsam.model.numerics import configure_numerics
from pfedsam.model.partition import Kind
from pfedsam.report.summary_file import PartSizes, Summary, read_summary

Wanted: TypeAlias = Literal["in-use", "personal", "shared"]
"""Which model predicts: the one that the site chose on its validation part, or one by name."""
_LOG = get_logger(__name__)


class OpenRun:
    """The models of a run's folder."""

    def __init__(self, folder: Path, overrides: Sequence[str] = ()) -> None:
        """Load configuration, backbone and shared parameters.

        Args:
            folder: of the run.
            overrides: `key.path=value`, before the run's configuration; for what changes no parameter, such as `data.image.max_megapixels`.

        Raises:
            OptionError: an override is wrong.
            RunError: the folder holds no run, or none that has finished a round, or its configuration is not what was trained with.
        """
        if not (folder / "config.yaml").exists() or not (folder / SERVER).exists():
            raise RunError(
                f"The folder {folder.name!r} holds no run with a finished round. Give the --out folder of `pfedsam run`."
            )
        self.folder, self.options = folder, read_config(folder / "config.yaml", overrides)
        # The machine that opens a run need not be the one that made it, nor have its GPU.
        wanted = "cpu" if self.options.runtime.device == "cpu" else "auto"
        device = configure_numerics(self.options.runtime.threads, wanted)
        self.built = build_model(self.options, device)
        self.shared = self._load_shared()

    @property
    def site_names(self) -> list[str]:
        """The sites of the run."""
        return list(self.options.data.sites)

    def predict(self, site: str, image: Path, wanted: Wanted = "in-use") -> npt.NDArray[np.uint8]:
        """The class map `[H, W]` of an image file at its native size, by the model that `site` would use, or the one wanted.

        Raises:
            RunError: the run has no such site, or not that model.
            DataError: the image cannot be read.
        """
        used = self._wanted(site, wanted)[1]
        seen = read_range(self.folder / "sites" / site)
        return predict_file(self.options, self.built, site, used, image, seen)

    def model_of(self, site: str, wanted: Wanted = "in-use") -> str:
        """The reported name of the model that `predict` takes: `personal` or `shared`.

        Raises:
            RunError: the run has no such site, or not that model.
        """
        return self._wanted(site, wanted)[0]

    def _wanted(self, site: str, wanted: Wanted) -> tuple[str, Parameters]:
        """The name of the model asked for, and what it computes with.

        Raises:
            RunError: the run has no such site, or not that model.
        """
        if site not in self.options.data.sites:
            raise RunError(f"The run has no site {site!r}; it has {', '.join(self.site_names)}.")
        names, used = list(models_of(self.options, self.built)), self._in_use(site)
        name = wanted if wanted != "in-use" else "shared" if used.plain else names[0]
        if name not in names:
            raise RunError(
                f"A run of the method {self.options.method!r} has no {name} model; it has the {' and the '.join(names)} one."
            )
        return name, used._replace(plain=len(names) > 1 and name == "shared")

    def predict_volume(
        self,
        case: Case,
        wishes: VolumeWishes,
        wanted: Wanted = "in-use",
        tell: Callable[[int, int], None] | None = None,
    ) -> PredictedVolume:
        """The classes of a volume by the model that the case's site would use, or the one wanted; see `predict_volume_file`.

        Raises:
            RunError: the run has no such site, or not that model.
            DataError: the volume cannot be read.
        """
        used = self._wanted(case.site, wanted)[1]
        return predict_volume_file(self.options, self.built, used, case, wishes, tell)

    def evaluate(self, progress: Callable[[Event], None] | None = None) -> Summary:
        """Score the test part again; rewrites scores, overlays, `summary.json` and `report.html`.

        Raises:
            RunError: another process works in the folder.
        """
        with exclusive(self.folder):
            return self._evaluate(progress)

    def _evaluate(self, progress: Callable[[Event], None] | None) -> Summary:
        self.shared = self._load_shared()  # a run may have ended since it was opened
        before = read_summary(self.folder / "summary.json")
        models, scores = models_of(self.options, self.built), {}
        sites = read_sites(self.options, masks_required=False)
        for done, (name, whole) in enumerate(sites.items(), start=1):
            folder = self.folder / "sites" / name
            cases = read_split(folder / "split.json", whole, ("test",)).of("test")
            scorer = SiteScorer(self.options, name, self.built, build_cache(self.options, self.built, None))
            scores[name] = scorer.test(cases, models, self._in_use(name), folder)
            if progress:
                progress(Event("test", done, len(sites), name))
        sizes = {name: PartSizes(site.train_cases, site.val_cases) for name, site in before.sites.items()}
        found = summarize_models(scores)
        return write_end(self.folder, self.options, found, sizes, before.communication, before.seconds)

    def _load_shared(self) -> tensors.NamedTensors:
        shared, _ = read_server(self.folder)
        self._check_fit("shared", shared)
        return {name: shared[name] for name in self.built.partition.shared}

    def _in_use(self, site: str) -> Parameters:
        """What a site uses; a site whose parameters were taken away has nothing, not those of the start.

        Raises:
            RunError: it has none here, or they do not fit the configuration.
        """
        sites = self.folder / "sites"
        if self.built.partition.local and not any(
            (sites / name / "state").is_dir() for name in (site, build_roster(self.options).pool or site)
        ):
            raise RunError(
                f"The folder {self.folder.name!r} holds no parameters of the site {site!r} (sites/{site}/state), and without them "
                "there is no model of its own. Bring that folder back from a copy of the run."
            )
        used = site_models(self.options, self.built, sites, site).in_use(self.shared)
        self._check_fit("local", used.local)
        return used

    def _check_fit(self, kind: Kind, found: tensors.NamedTensors) -> None:
        """Refuse parameters that are not those of the model that config.yaml describes.

        Raises:
            RunError: one is missing or has another shape.
        """
        for name in self.built.partition.names(kind):
            if name not in found or found[name].shape != self.built.initial[name].shape:
                raise RunError(
                    f"The {kind} parameters in {self.folder.name!r} are not those of the model in its config.yaml (first: {name}). "
                    "Put back the config.yaml that the run wrote; for another model, start a run in a new folder."
                )


def predict_file(
    options: RunOptions,
    built: BuiltModel,
    site: str,
    used: Parameters,
    image: Path,
    seen: IntensityRange | None,
) -> npt.NDArray[np.uint8]:
    """The class map of an image file at its native size, `[H, W]` or `[D, H, W]`, by what a site uses.

    An image whose range is far from that of the site's training images, `seen`, is told in a warning.

    Raises:
        DataError: the image cannot be read.
    """
    entry = entry_of(image)
    stem = entry.stem if entry else image.stem
    case = Case(site, stem, image, None, stem, volume=entry is not None and entry.volume)
    _warn_of_range(case, options.data.image, seen)
    images = build_images(options, (case,), built.model.image_size)
    model = next(iter(models_of(options, built).values()))
    scorer = SiteScorer(options, site, built, build_cache(options, built, None))
    return scorer.predict(images, model, used)[0]  # type: ignore[no-any-return]


def _warn_of_range(case: Case, options: ImageOptions, seen: IntensityRange | None) -> None:
    """Say that an image is much darker or brighter than those of the training; where contrast is stretched it does not matter."""
    if seen is None or case.volume or options.contrast != "none":
        return
    said = far_from_training(load_image(case, options), seen)
    if said:
        _LOG.warning("%s: %s", case.image.name, said)


def open_run(folder: Path, overrides: Sequence[str] = ()) -> OpenRun:
    """The run in `folder`; see `OpenRun`.

    Raises:
        RunError: there is none.
    """
    return OpenRun(folder, overrides)
