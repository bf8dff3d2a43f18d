"""Opens trained models: those of a finished run, of a study at its coordinator, or of a study at a site.

A site's folder in a run (`sites/<name>`) and a study's folder at a site (`studies/<id>`) have the same layout: the split, `state/` with the
parameters that the site trained last, `good/` with those that it uses since a validation, `scores.json` and the overlays. A run's folder
and a study's folder at the coordinator also have the same layout, but the latter contains nothing that belongs to the sites.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from pfedsam.core.errors import CheckpointError, DataError, OptionError, RunError
from pfedsam.core.lock import exclusive
from pfedsam.core.log import get_logger
from pfedsam.core.tensors import NamedTensors
from pfedsam.core.text import some_of
from pfedsam.data.about import about
from pfedsam.data.entries import entry_of, further_sequences
from pfedsam.data.loader import load_image
from pfedsam.data.manifest import Case
from pfedsam.data.split import read_split
from pfedsam.data.trained_on import TrainedOn, cut_as_trained, far_from_training, other_kind, refuse_other_number
from pfedsam.engine.inputs import refuse_other_backbone, starts_from_backbone
from pfedsam.engine.model_selection import Parameters, SiteModels, fine_tunes_shared, models_of, start_of
from pfedsam.engine.predict_volume import PredictedVolume, PredictOptions, predict_volume_file
from pfedsam.engine.progress import Event, Progress, silent
from pfedsam.engine.run import run_id
from pfedsam.engine.run_end import SUMMARY, summarize_models, write_end
from pfedsam.engine.server_files import SERVER, check_records, read_server, refuse_lost_state
from pfedsam.engine.site_agent import build_study_model, study_options
from pfedsam.engine.site_files import SPLIT
from pfedsam.engine.site_options import CONFIG, read_site_options
from pfedsam.engine.site_session import SCORES, SiteScorer
from pfedsam.experiment.build import (
    BuiltModel,
    build_images,
    build_method,
    build_model,
    read_sites,
    with_site_spacing,
)
from pfedsam.experiment.load import read_config, with_overrides
from pfedsam.experiment.options import RunOptions
from pfedsam.federation.manifest import StudyManifest
from pfedsam.federation.site_policy import SitePolicy
from pfedsam.model.numerics import COMPUTING, configure_numerics
from pfedsam.model.partition import Kind
from pfedsam.report.onboarded import RESULT as ONBOARDED
from pfedsam.report.summary_file import PartSizes, Summary, read_summary

Wanted: TypeAlias = Literal["in-use", "personal", "shared"]
"""The model that predicts: the one that the site chose on its validation part, or one given by name."""
_LOG = get_logger(__name__)
_RUN: Final = "config.yaml"
_STUDY: Final = "policy.json"
"""A file that exists only in a study's folder at the coordinator."""
_DEPTH: Final = 3
"""The largest depth of folders in which the runs of a comparison are searched; `bench` uses this depth."""


@dataclass(frozen=True)
class OpenSite:
    """The model of one site."""

    name: str
    uses: str
    """The reported name of the model that predicts, `personal` or `shared`."""
    options: RunOptions
    built: BuiltModel
    parameters: Parameters
    trained_on: TrainedOn = field(default_factory=TrainedOn)
    """What is known of the site's training images."""

    def predict(self, image: Path | str) -> npt.NDArray[np.uint8]:
        """The class map of an image file at its native size; 0 is background, 1 to C are the classes.

        The shape is `[H, W]` for a picture and `[D, H, W]` for a volume; `predict_volume` also returns the orientation of the slices.

        A warning is logged if the model was trained on volumes and the image is a picture, or the reverse, or if the intensities of the
        image are far from those of the site's training images.

        Args:
            image: the file. Of a volume of several sequences it is the first one; the others are found beside it by the endings of
                `data.volume.channels`.

        Raises:
            DataError: the image cannot be read, or the model was trained on another number of sequences or other planes.
        """
        path = Path(image)
        entry = entry_of(path)
        stem = entry.stem if entry else path.stem
        volume = entry is not None and entry.volume
        others = further_sequences(path, self.options.data.volume.channels) if volume else ()
        case, options = self._as_trained(Case(self.name, stem, path, None, stem, volume=volume, sequences=others))
        images = build_images(options, (case,), self.built.model.image_size)
        model = next(iter(models_of(options, self.built).values()))
        scorer = SiteScorer(options, self.name, self.built)
        with COMPUTING:
            return scorer.predict(images, model, self.parameters)[0]  # type: ignore[no-any-return]

    def predict_volume(
        self, case: Case, predict_options: PredictOptions, tell: Callable[[int, int], None] | None = None
    ) -> PredictedVolume:
        """The predicted classes of a volume; see `pfedsam.engine.predict_volume`. Warnings are logged as for `predict`.

        Raises:
            DataError: the volume cannot be read, or the model was trained on another number of sequences or other planes.
        """
        case, options = self._as_trained(case)
        with COMPUTING:
            return predict_volume_file(options, self.built, self.parameters, case, predict_options, tell)

    def _as_trained(self, case: Case) -> tuple[Case, RunOptions]:
        """The case with the spacing of the site, and the options with which it is cut in the plane of the training volumes.

        A warning is logged if the image is a picture and the training cases are volumes, or the reverse (the same for all images), or if
        its intensities are far from those of the training images.

        Raises:
            DataError: the volume cannot be read, or has another number of sequences or thick slices in another plane than the training
                volumes.
        """
        if case.volume:
            with about(case):
                refuse_other_number(case.sequence_count, self.trained_on.sequences)
        if warning := other_kind(self.name, self.trained_on.volumes, volume=case.volume):
            _LOG.warning("%s", warning)
        case = with_site_spacing(self.options, case)
        self._warn_of_range(case)
        data = self.options.data
        volume = cut_as_trained(case, data.image, data.volume, self.trained_on.plane)
        return case, self.options.model_copy(update={"data": data.model_copy(update={"volume": volume})})

    def _warn_of_range(self, case: Case) -> None:
        """Log a warning if an image is much darker or brighter than the training images, unless its contrast is stretched."""
        known = self.trained_on.intensities
        if known is None or case.volume or self.options.data.image.contrast != "none":
            return
        if warning := far_from_training(load_image(case, self.options.data.image), known):
            _LOG.warning("%s: %s", case.image.name, warning)


@dataclass
class OpenRun:
    """The models in a folder."""

    folder: Path
    options: RunOptions
    built: BuiltModel
    shared: NamedTensors
    """The last shared parameters of the server, or those that the site received last."""
    places: Mapping[str, Path]
    """Site -> the folder that can contain its parameters."""
    finished: bool = True
    """Whether this is a finished run on this machine, which can be scored again."""
    rounds: int | None = None
    """The number of rounds that the server has committed; None for a study at a site."""

    def __post_init__(self) -> None:
        """Make the folders absolute: a program may change its working directory after it has opened the run."""
        self.folder = self.folder.absolute()
        self.places = {site: place.absolute() for site, place in self.places.items()}

    @property
    def site_names(self) -> list[str]:
        """The sites."""
        return list(self.places)

    def site(self, name: str, wanted: Wanted = "in-use") -> OpenSite:
        """The model that a site uses, or its personal or shared model if this is requested.

        Raises:
            RunError: there is no such site or model, the site has no parameters here, or they do not fit the configuration.
        """
        if name not in self.places:
            raise RunError(f"The run has no site {name!r}; it has {', '.join(self.site_names)}.")
        models, used = list(models_of(self.options, self.built)), self._in_use(name, wanted)
        model = wanted if wanted != "in-use" else "shared" if used.uses == "shared" else models[0]
        if model not in models:
            raise RunError(
                f"A run of the method {self.options.method!r} has no {model} model; it has the {' and the '.join(models)} model."
            )
        used = used._replace(uses="shared" if len(models) > 1 and model == "shared" else "personal")
        return OpenSite(name, model, self.options, self.built, used, TrainedOn.read(self.places[name]))

    def evaluate(self, progress: Progress | None = None, folders: Mapping[str, Path] | None = None) -> Summary:
        """Score the test part again, and rewrite scores, overlays, `summary.json` and `report.html`.

        Args:
            progress: called after each site.
            folders: the present folder of each site whose data were moved.

        Raises:
            DataError: there is no folder of a site, or its test cases have changed.
            RunError: the run has no site of a name in `folders`, this is a study over several machines, or another process works in the
                folder.
            StoreError: the summary, or the records of the rounds, are damaged or missing.
        """
        if not self.finished:
            raise RunError(
                f"The folder {self.folder.name!r} is of a study between hospitals: its test images are at the sites, which score them when "
                "the study ends. `pfedsam report` writes the report again."
            )
        with exclusive(self.folder), COMPUTING:
            return self._evaluate(progress or silent, folders or {})

    def _evaluate(self, tell: Progress, folders: Mapping[str, Path]) -> Summary:
        options = self._moved(folders)
        self.shared, self.rounds = _committed(self.folder, self.built)  # the run may have continued since it was opened
        check_records(self.folder)  # they contain which model each site uses
        before = read_summary(self.folder / SUMMARY)
        models, scores = models_of(self.options, self.built, both=self.options.evaluation.test_shared), {}
        sites = read_sites(options, masks_required=False)
        for done, (name, whole) in enumerate(sites.items(), start=1):
            cases = read_split(self.places[name] / SPLIT, whole, ("test",)).of("test")
            scorer = SiteScorer(self.options, name, self.built)
            scores[name] = scorer.test(cases, models, self._in_use(name), self.places[name])
            tell(Event("test", done, len(sites), name))
        sizes = {name: PartSizes(site.train_cases, site.val_cases) for name, site in before.sites.items()}
        found = summarize_models(scores)
        return write_end(
            self.folder,
            self.options,
            found,
            sizes,
            before.communication,
            before.seconds,
            rounds=before.rounds,
            steps=before.steps,
        )

    def _moved(self, folders: Mapping[str, Path]) -> RunOptions:
        """The options with the present folders of the sites.

        Raises:
            DataError: there is no folder of a site.
            RunError: the run has no site of a name in `folders`.
        """
        for name in folders:
            if name not in self.places:
                raise RunError(f"The run has no site {name!r}; it has {', '.join(self.site_names)}.")
        data = self.options.data.with_folders({name: folder.resolve() for name, folder in folders.items()})
        for name in data.sites:
            if not data.folder(name).is_dir():
                raise DataError(
                    f"site {name!r}: there is no folder {str(data.folder(name))!r}. If the data were moved, give their present folder by "
                    f"--site-folder {name}=FOLDER."
                )
        return self.options.model_copy(update={"data": data})

    def _in_use(self, site: str, wanted: Wanted = "in-use") -> Parameters:
        """The parameters that a site uses. It is an error if they were removed; neither the initial nor the averaged ones are used instead.

        Args:
            site: the name of the site.
            wanted: the requested model; the shared one needs no fine-tuned copy of the site.

        Raises:
            RunError: the site has no parameters here, or they do not fit the configuration.
        """
        place = self.places[site]
        pool = build_method(self.options).roster.pool
        holders = [place, *([place.parent / pool] if pool else [])]
        # A site that was onboarded to a method without local parameters has no copy of its own: it uses the averaged parameters.
        tuned = fine_tunes_shared(self.options) and not (self.folder / ONBOARDED).exists()
        own = self.built.partition.local or (tuned and wanted != "shared")
        if own and not any((holder / "state").is_dir() for holder in holders):
            where = "" if self.finished else " They are at the site: open the study there (`pfedsam site predict`)."
            raise RunError(
                f"The folder {self.folder.name!r} contains no parameters of the site {site!r} (sites/{site}/state), which its model "
                f"needs.{where or ' Restore that folder from a copy of the run.'}"
            )
        start = start_of(self.options, self.built, place.parent, site)
        used = SiteModels.of(self.options, self.built, place, start).in_use(self.shared)
        _check_fit(self.folder, self.built, "local", used.local)
        return used


def open_run(folder: Path | str, overrides: Sequence[str] = (), *, study: str | None = None) -> OpenRun:
    """The models in a folder: of a finished run, of a study at its coordinator, or of a study at a site.

    A run that is not finished is opened with the models of its last committed round, and a warning is logged.

    Args:
        folder: the --out of `pfedsam run`, a study's folder at the coordinator, or a site's folder.
        overrides: texts `key.path=value` that take precedence over the configuration; only for options that do not change the model, such
            as `data.image.max_megapixels`.
        study: the id of the study, for a site's folder; needed if more than one study has ended at the site.

    Raises:
        CheckpointError: the backbone cannot be loaded.
        RunError: the folder contains no model or several runs, or its configuration or its backbone is not that of the training.
        OptionError: this version does not support the configuration.
        StoreError: the configuration or the shared parameters are damaged or missing.
    """
    folder = Path(folder)
    if (folder / CONFIG).exists():
        return _open_at_site(folder, study, overrides)
    if (folder / _RUN).exists():
        refuse_lost_state(folder)
    if not (folder / _RUN).exists() or not (folder / SERVER).exists():
        raise RunError(_what_to_give(folder))
    options = read_config(folder / _RUN, overrides)
    _refuse_other_order(read_config(folder / _RUN), options)
    # The machine that opens a run may be another one than that of the training, without its GPU.
    wanted = "cpu" if options.runtime.device == "cpu" else "auto"
    _refuse_missing_backbone(options)
    built = build_model(options, configure_numerics(options.runtime.threads, wanted))
    if starts_from_backbone(options):
        refuse_other_backbone(folder, built.backbone, run_id(options, built.backbone))
    places = {name: folder / "sites" / name for name in options.data.sites}
    finished = not (folder / _STUDY).exists()
    shared, rounds = _committed(folder, built)
    if not (folder / SUMMARY).exists():
        _LOG.warning(
            "The run in %r is not finished (it has no %s): its models are those after %d of %d round(s). Continue it first with %s.",
            folder.name,
            SUMMARY,
            rounds,
            options.training.rounds,
            "--resume" if finished else "`pfedsam coordinator start`",
        )
    return OpenRun(folder, options, built, shared, places, finished, rounds)


def _refuse_other_order(trained: RunOptions, options: RunOptions) -> None:
    """Refuse overrides that give the classes in another order, so that each output of the model would get the name and ids of another one.

    Raises:
        OptionError: they do.
    """
    before, now = list(trained.data.classes), list(options.data.classes)
    if before != now and set(before) == set(now):
        raise OptionError(
            f"The model was trained with data.classes in the order {', '.join(before)}, which is that of its outputs, and not "
            f"{', '.join(now)}. Give them in the first order."
        )


def _refuse_missing_backbone(options: RunOptions) -> None:
    """Refuse a run whose backbone is a file or folder that is not here, for example because the run was made on another machine.

    Raises:
        CheckpointError: there is no such file or folder.
    """
    path = Path(options.model.backbone)
    if starts_from_backbone(options) and path.is_absolute() and not os.path.exists(path):
        raise CheckpointError(
            f"The run was trained with the backbone {str(path)!r}, and there is no such file or folder on this machine. Give the path of "
            "your copy by --backbone."
        )


def _open_at_site(folder: Path, study: str | None, overrides: Sequence[str]) -> OpenRun:
    policy, site = SitePolicy(folder), read_site_options(folder)
    manifest = _ended(policy, study)
    trained, place = study_options(manifest, site), policy.study_folder(manifest.study)
    options = with_overrides(trained, overrides)
    _refuse_other_order(trained, options)
    built, shared = build_study_model(manifest, options), policy.final(manifest.study)
    _check_fit(folder, built, "shared", shared)
    return OpenRun(place, options, built, shared, {site.name: place}, finished=False)


def _ended(policy: SitePolicy, study: str | None) -> StudyManifest:
    """The manifest of a study that has ended at a site: the study with this id, or the only one.

    The model stays in use at the site if its operator has withdrawn the approval since.

    Raises:
        RunError: the study has not ended at the site, or no id is given and not exactly one study has ended.
    """
    ended = {one: manifest for one, manifest in policy.joined().items() if (policy.study_folder(one) / SCORES).exists()}
    if study is None and len(ended) == 1:
        return next(iter(ended.values()))
    if study not in ended:
        asked = f"no study {study} has ended at this site" if study else "give the study whose model is used by --study"
        raise RunError(f"{asked}; ended here: {', '.join(ended) or 'none yet'}.")
    return ended[study]


def _committed(folder: Path, built: BuiltModel) -> tuple[NamedTensors, int]:
    """The shared parameters that the server committed last, and the number of rounds before that commit."""
    stored, metadata = read_server(folder)
    _check_fit(folder, built, "shared", stored)
    return {name: stored[name] for name in built.partition.shared}, int(metadata["round"])


def _check_fit(folder: Path, built: BuiltModel, kind: Kind, found: NamedTensors) -> None:
    """Refuse parameters that do not fit the model of the configuration.

    Raises:
        RunError: a parameter is missing or has another shape.
    """
    for name in built.partition.names(kind):
        if name not in found or found[name].shape != built.initial[name].shape:
            raise RunError(
                f"The {kind} parameters in {folder.name!r} are not those of the model in its config.yaml (first: {name}). "
                "Restore the config.yaml that the run wrote; for another model, start a run in a new folder."
            )


def _what_to_give(folder: Path) -> str:
    """The reason why a folder cannot be opened, and which folder to give instead."""
    if not folder.is_dir():
        return f"There is no folder {folder.name!r}. Give the --out folder of `pfedsam run`."
    found = [
        path.parent.relative_to(folder).as_posix()
        for depth in range(1, _DEPTH + 1)
        for path in sorted(folder.glob("*/" * depth + _RUN))
        if (path.parent / SERVER).exists()
    ]
    if not found:
        return (
            f"The folder {folder.name!r} contains no run with a finished round. Give the --out folder of `pfedsam run`."
        )
    return (
        f"The folder {folder.name!r} contains several runs: {some_of(found, 8)}. Give one of them, such as "
        f"{(folder / found[0]).as_posix()}."
    )
