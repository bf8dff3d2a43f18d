"""The configuration of a run: the options of all layers in one tree. Each option is defined beside the code that uses it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final, Literal, TypeAlias

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from pfedsam.core.errors import OptionError
from pfedsam.core.options import MAX_THREADS, Device, Options
from pfedsam.data.images import ImageOptions
from pfedsam.data.labels import BACKGROUND, LabelMap
from pfedsam.data.manifest import check_name
from pfedsam.data.site_labels import NOTHING_OF_ITS_OWN, SiteLabelOptions, site_label_map
from pfedsam.data.split import SplitOptions
from pfedsam.data.tiling import TilingOptions
from pfedsam.data.transforms import AugmentOptions
from pfedsam.data.volume_options import VolumeOptions
from pfedsam.evaluation.scores import SURFACE_TOLERANCE
from pfedsam.federation.methods import METHODS, MethodOptions
from pfedsam.federation.pipeline.build import CommunicationOptions
from pfedsam.model.options import ModelOptions
from pfedsam.model.prefix import PrefixOptions
from pfedsam.training.options import TrainingOptions


class SiteFolder(SiteLabelOptions):
    """A site for which some settings differ from those of the study."""

    folder: Path = Field(description="Folder of the site, relative to the configuration file.")
    patient_pattern: str | None = Field(
        default=None,
        description="Regular expression for the case id whose first group is the patient at this site; empty: data.patient_pattern.",
    )


def _form(site: object) -> str:
    return "[site]" if isinstance(site, dict | SiteFolder) else "[folder]"


SiteEntry: TypeAlias = Annotated[
    Annotated[Path, Tag("[folder]")] | Annotated[SiteFolder, Tag("[site]")], Discriminator(_form)
]
"""A folder, or a folder with the settings that differ at the site. The tags do not appear in messages (`experiment.load`)."""


class DataOptions(Options):
    """The sites and how their files are read and split."""

    sites: dict[str, SiteEntry] = Field(
        description="Folder of each site, by the site's name, or {folder, labels, not_annotated, spacing, patient_pattern} for a site that "
        "differs from the others. A folder contains images/ and masks/, or a manifest.csv. Paths are relative to the configuration file."
    )
    classes: dict[str, list[int]] = Field(
        description="List of the ids in the mask files that belong to a class, by the name of the class; id 0 is background. The order of "
        "the names numbers the classes 1, 2, ..."
    )
    ignore: list[int] = Field(
        default=[],
        description="Ids in the mask files that mark pixels to be left out of losses and scores, such as [255].",
    )
    overlap: bool = Field(
        default=False,
        description="Whether classes may overlap: an id may then belong to several classes (regions), each predicted independently.",
    )
    patient_pattern: str | None = Field(
        default=None,
        description="Regular expression for the case id; its first group is the patient. Empty: every case is a patient of its own.",
    )
    split_folder: Path | None = Field(
        default=None,
        description="Folder with the split files that `pfedsam data split` wrote; empty: the sites are split by the seed.",
    )
    image: ImageOptions = Field(default=ImageOptions(), description="How images are read.")
    volume: VolumeOptions = Field(
        default=VolumeOptions(), description="How volumes (NIfTI, DICOM) are read and divided into slices."
    )
    split: SplitOptions = Field(default=SplitOptions(), description="Shares of training, validation and test.")
    tiling: TilingOptions | None = Field(
        default=None, description="Train and predict on tiles of the pictures; empty: on whole pictures."
    )
    foreground_share: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Least share of the pictures or tiles of the training batches, on average, that have foreground. They are drawn for "
        "each class in turn; the rest is drawn from all of them. Slices of volumes: data.volume.foreground_share.",
    )
    augment: AugmentOptions = Field(
        default=AugmentOptions(), description="Random transformations (augmentation) of the training images."
    )

    @field_validator("sites")
    @classmethod
    def _some_sites(cls, sites: dict[str, Path | SiteFolder]) -> dict[str, Path | SiteFolder]:
        if not sites:
            raise ValueError("name at least one site and its folder")
        for name in sites:
            try:
                check_name(name)
            except OptionError as error:
                raise ValueError(str(error)) from error
        return sites

    def site(self, name: str) -> SiteFolder | None:
        """The settings of a site; None if the configuration gives only its folder, or does not name it."""
        entry = self.sites.get(name)
        return SiteFolder(folder=entry) if isinstance(entry, Path) else entry

    def folder(self, name: str) -> Path:
        """The folder of a configured site."""
        entry = self.sites[name]
        return entry if isinstance(entry, Path) else entry.folder

    def with_folders(self, folders: Mapping[str, Path]) -> "DataOptions":
        """The same options with other folders for some of the sites."""
        sites = {
            name: folders.get(name, entry)
            if isinstance(entry, Path)
            else entry.model_copy(update={"folder": folders.get(name, entry.folder)})
            for name, entry in self.sites.items()
        }
        return self.model_copy(update={"sites": sites})

    def pattern(self, name: str) -> str | None:
        """The patient pattern for a site."""
        entry = self.sites.get(name)
        own = entry.patient_pattern if isinstance(entry, SiteFolder) else None
        return own or self.patient_pattern

    def label_map(self, site: str = "") -> LabelMap:
        """The meaning of the ids in the masks of a site; without a site, the meaning for sites that do not give their own.

        Raises:
            OptionError: the ids contradict each other.
        """
        entry = self.sites.get(site)
        own = entry if isinstance(entry, SiteFolder) else NOTHING_OF_ITS_OWN
        return site_label_map(
            self.classes,
            own,
            ignore=self.ignore,
            overlap=self.overlap,
            key=f"data.sites.{site}" if site else "data.classes",
        )

    def check_labels(self) -> None:
        """Refuse label maps that contradict each other, and a class that no site annotates.

        Raises:
            OptionError: a label map is not valid, or no site annotates a class; the message names the site and the key.
        """
        maps = [self.label_map(), *(self.label_map(site) for site in self.sites)]
        nowhere = [name for name in self.classes if all(name in one.not_annotated for one in maps[1:])]
        if nowhere:
            keys = ", ".join(f"data.sites.{site}.not_annotated" for site in self.sites)
            raise OptionError(
                f"class {nowhere[0]!r} is annotated at no site, so that it cannot be learnt; it is listed in {keys}: remove it there for a "
                "site that annotates it, or remove it from data.classes"
            )


class EvaluationOptions(Options):
    """When and how models are scored, and which of them a site uses."""

    validate_every: int = Field(default=10, ge=0, description="Number of rounds between validations; 0: no validation.")
    max_drop: float | None = Field(
        default=0.05,
        ge=0,
        le=1,
        description="A site uses an earlier model if the validation Dice is below its best one by more than this value; empty: never.",
    )
    choose_model: bool = Field(
        default=True,
        description="A site uses the shared model if that is clearly better than its personal model on the validation part: if the mean "
        "difference in Dice over the patients is more than twice its standard error, which needs at least two patients.",
    )
    validate_shared: bool = Field(
        default=True,
        description="Every validation scores the shared model beside the personal one. If false, only the validations after the last round "
        "do, among which the site chooses the model that it uses at the end; this saves the time of one prediction per validation case.",
    )
    test_shared: bool = Field(
        default=True,
        description="The test scores the shared model beside the personal one, so that the report can compare them. If false, it scores "
        "only the model that the site uses; this saves the time of one prediction per test case.",
    )
    batch_size: int = Field(
        default=4, ge=1, le=1024, description="Number of images in a forward pass during prediction."
    )
    surface_tolerance: float = Field(
        default=SURFACE_TOLERANCE,
        ge=0,
        allow_inf_nan=False,
        description="Distance within which two surfaces count as equal for NSD: in mm if the spacing is known, else in pixels.",
    )
    lesions: list[str] = Field(
        default=[],
        description="Classes whose connected components are lesions: for these, the share of lesions that were found is also scored.",
    )
    flips: bool = Field(
        default=False,
        description="Predictions, scored or written, are the mean over the mirror images (test-time augmentation), which takes four times "
        "as long. Refused for models that were trained without mirrored images (data.augment.flips), by default those of volumes.",
    )
    single_region: list[str] | Literal["all"] = Field(
        default=[],
        description="Classes, or all, that are one connected structure, such as an organ: in predictions, scored or written, only the "
        "largest connected component of each is kept.",
    )

    @field_validator("single_region", mode="before")
    @classmethod
    def _names_or_all(cls, given: object) -> object:
        if given != "all" and not isinstance(given, list):
            raise ValueError("give a list of classes, such as [liver], or all")
        return given


_MAX_WORKERS: Final = 256


class RuntimeOptions(Options):
    """Processes, threads and device on this machine; they change results at most by rounding."""

    workers: int | Literal["auto"] = Field(
        default=1,
        description="Number of worker processes that train sites in parallel; 1: all sites are trained in this process; auto: as many as "
        "keep all CPU cores busy, or 1 on a GPU. Each process has its own copy of the backbone in memory.",
    )
    threads: int = Field(
        default=1,
        ge=1,
        le=MAX_THREADS,
        description="Number of threads of each process; results are equal to the bit only for the same number.",
    )
    device: Device = Field(
        default="auto",
        description="Device for the computation: auto (a GPU if torch finds one), cpu, cuda or cuda:<n>; all processes share one GPU. "
        "Results are equal to the bit on the CPU, and equal up to rounding between devices.",
    )
    cache_folder: Path | None = Field(
        default=None,
        description="Folder of the cache of frozen features (the outputs of the frozen encoder blocks), with one folder per site; empty: "
        "in the run's folder, where `onboard` always keeps it. Relative paths start at the configuration file.",
    )

    @field_validator("workers", mode="before")
    @classmethod
    def _number_or_auto(cls, given: object) -> object:
        number = isinstance(given, int) and not isinstance(given, bool) and 1 <= given <= _MAX_WORKERS
        if given != "auto" and not number:
            raise ValueError(f"give a number of processes from 1 to {_MAX_WORKERS}, or auto")
        return given


class RunOptions(Options):
    """All options of one run of a federation."""

    name: str = Field(
        default="run",
        min_length=1,
        description="Title of the report. A run on one machine may be resumed under another name; for sites on other machines, another "
        "name is another study.",
    )
    seed: int = Field(
        default=0, ge=0, description="Seed of the splits, the initial weights, the batches and the augmentation."
    )
    method: str = Field(default="pfedsam", description=f"Method of federated training: one of {', '.join(METHODS)}.")
    method_options: MethodOptions = Field(  # type: ignore[valid-type]  # built from the options classes of the methods
        default=MethodOptions(), description="Options of single methods, by the name of the method."
    )
    data: DataOptions = Field(description="Sites, classes, patients.")
    model: ModelOptions = Field(default=ModelOptions(), description="Backbone, LoRA, experts.")
    training: TrainingOptions = Field(default=TrainingOptions(), description="Rounds, steps, optimiser, distillation.")
    prefix: PrefixOptions = Field(
        default=PrefixOptions(), description="Cache of frozen features, the outputs of the frozen encoder blocks."
    )
    communication: CommunicationOptions = Field(
        default=CommunicationOptions(),
        description="What sites send to the server: the encoding of updates, which counts and scores, and a summary of the data.",
    )
    evaluation: EvaluationOptions = Field(default=EvaluationOptions(), description="Validation and test.")
    runtime: RuntimeOptions = Field(default=RuntimeOptions(), description="Processes, threads and device.")

    @field_validator("method")
    @classmethod
    def _known_method(cls, method: str) -> str:
        if method not in METHODS:
            raise ValueError(f"there is no method {method!r}; known: {', '.join(METHODS)}")
        return method

    @model_validator(mode="after")
    def _lesions_and_single_regions_are_classes(self) -> "RunOptions":
        single, known = self.evaluation.single_region, [name for name in self.data.classes if name != BACKGROUND]
        for key, names in (("lesions", self.evaluation.lesions), ("single_region", [] if single == "all" else single)):
            unknown = sorted(set(names).difference(known))
            if unknown:
                raise ValueError(f"evaluation.{key} names {', '.join(unknown)}; the classes are {', '.join(known)}")
        return self
