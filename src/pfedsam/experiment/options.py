"""The configuration of a run: every option of every layer in one tree. Each option is described where it is used."""

from pathlib import Path

from pydantic import Field, field_validator, model_validator

from pfedsam.core.options import Device, Options
from pfedsam.data.images import ImageOptions
from pfedsam.data.split import SplitOptions
from pfedsam.data.tiling import TilingOptions
from pfedsam.data.transforms import AugmentOptions
from pfedsam.data.volume_options import VolumeOptions
from pfedsam.evaluation.scores import SURFACE_TOLERANCE
from pfedsam.federation.codec import CommunicationOptions
from pfedsam.federation.methods import METHODS, MethodOptions, find_method
from pfedsam.model.options import ModelOptions
from pfedsam.model.prefix import PrefixOptions
from pfedsam.training.options import TrainingOptions


class DataOptions(Options):
    """The sites and how their files are read."""

    sites: dict[str, Path] = Field(
        description="Site name to folder; a folder has images/ and masks/, or a manifest.csv. Relative to the configuration file."
    )
    classes: dict[str, list[int]] = Field(
        description="Class name to its ids in the mask files; 0 is background. The order gives the classes 1, 2, ..."
    )
    patient_pattern: str | None = Field(
        default=None,
        description="Regular expression on the case id; its first group is the patient. Empty: every case is a patient.",
    )
    split_folder: Path | None = Field(
        default=None, description="Folder of split files made by `pfedsam data split`; empty: split by seed."
    )
    image: ImageOptions = Field(default=ImageOptions(), description="How images are read.")
    volume: VolumeOptions = Field(
        default=VolumeOptions(), description="How volumes (NIfTI, DICOM) are read and cut into slices."
    )
    split: SplitOptions = Field(default=SplitOptions(), description="Shares of training, validation and test.")
    tiling: TilingOptions | None = Field(
        default=None, description="Train and predict on tiles of the pictures; empty = on whole pictures."
    )
    augment: AugmentOptions = Field(default=AugmentOptions(), description="Views of the training images.")

    @field_validator("sites")
    @classmethod
    def _some_sites(cls, sites: dict[str, Path]) -> dict[str, Path]:
        if not sites:
            raise ValueError("name at least one site and its folder")
        return sites


class EvaluationOptions(Options):
    """When and how models are scored."""

    validate_every: int = Field(default=10, ge=0, description="Rounds between validations; 0 = never.")
    max_drop: float | None = Field(
        default=0.05,
        ge=0,
        le=1,
        description="A site whose validation Dice falls by more than this below its best stays with its last good model; empty: never.",
    )
    choose_model: bool = Field(
        default=True,
        description="A site uses the shared model where that does better than its personal one on its validation part.",
    )
    batch_size: int = Field(default=4, ge=1, description="Images per forward pass when predicting.")
    surface_tolerance: float = Field(
        default=SURFACE_TOLERANCE,
        ge=0,
        allow_inf_nan=False,
        description="Distance within which two surfaces agree (NSD): mm where the spacing is known, else pixels.",
    )
    lesions: list[str] = Field(
        default=[],
        description="Classes whose connected components are lesions: the share of lesions that were found is scored, too.",
    )


class RuntimeOptions(Options):
    """How the work is spread over this machine; changes no result but by rounding."""

    workers: int = Field(default=1, ge=1, description="Processes that train sites side by side; 1 = in this process.")
    threads: int = Field(
        default=1, ge=1, description="Threads of each process; results are bit-equal only at the same number."
    )
    device: Device = Field(
        default="auto",
        description="Where sites compute: auto (a GPU where torch finds one), cpu, cuda or cuda:<n>; all processes share one GPU. Results "
        "are bit-equal on the CPU, equal up to rounding between devices.",
    )
    cache_folder: Path | None = Field(
        default=None,
        description="Where frozen blocks' outputs are kept, one folder per site; empty: in the run's folder. Relative to the "
        "configuration file.",
    )


class RunOptions(Options):
    """One federation's run."""

    name: str = Field(
        default="run",
        min_length=1,
        description="Heads the report. A run may be resumed under another one; to sites elsewhere, another name is another study.",
    )
    seed: int = Field(default=0, ge=0, description="Seed of splits, weights, batches and views.")
    method: str = Field(default="pfedsam", description=f"One of {', '.join(METHODS)}.")
    method_options: MethodOptions = Field(  # type: ignore[valid-type]  # made of the methods' own classes
        default=MethodOptions(), description="Options of single methods, under their names."
    )
    data: DataOptions = Field(description="Sites, classes, patients.")
    model: ModelOptions = Field(default=ModelOptions(), description="Backbone, LoRA, experts.")
    training: TrainingOptions = Field(default=TrainingOptions(), description="Rounds, steps, optimiser, distillation.")
    prefix: PrefixOptions = Field(default=PrefixOptions(), description="Cache of the frozen blocks' outputs.")
    communication: CommunicationOptions = Field(
        default=CommunicationOptions(), description="How updates are written for the way to the server."
    )
    evaluation: EvaluationOptions = Field(default=EvaluationOptions(), description="Validation and test.")
    runtime: RuntimeOptions = Field(default=RuntimeOptions(), description="Processes, threads and device.")

    @field_validator("method")
    @classmethod
    def _known_method(cls, method: str) -> str:
        if method not in METHODS:
            raise ValueError(f"there is no method {method!r}; known: {', '.join(METHODS)}")
        return find_method(method).name

    @model_validator(mode="after")
    def _lesions_are_classes(self) -> "RunOptions":
        unknown = sorted(set(self.evaluation.lesions) - set(self.data.classes))
        if unknown:
            raise ValueError(
                f"evaluation.lesions names {', '.join(unknown)}; the classes are {', '.join(self.data.classes)}"
            )
        return self
