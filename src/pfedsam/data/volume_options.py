"""How volumes (NIfTI, DICOM) are read and cut into slices: the options `data.volume`."""

from typing import Annotated, Final, Literal, TypeAlias

from pydantic import Field, field_validator, model_validator

from pfedsam.core.options import Options

WINDOWS: Final = {
    "abdomen": (-160.0, 240.0),
    "bone": (-500.0, 1300.0),
    "brain": (0.0, 80.0),
    "liver": (-45.0, 105.0),
    "lung": (-1350.0, 150.0),
    "mediastinum": (-125.0, 225.0),
}
"""Common windows of CT: the lowest and the highest value shown, in HU."""

Plane: TypeAlias = Literal["auto", "axial", "coronal", "sagittal"]
Overlaps: TypeAlias = Literal["refused", "last", "sum"]
"""What happens where two parts of a mask (segments, structures) share a voxel: the file is refused, or the voxel gets the id of the later
part, or the sum of the ids."""
Positive: TypeAlias = Annotated[float, Field(gt=0, lt=1000)]


class VolumeOptions(Options):
    """How volumes are cut into slices; these options do not affect pictures."""

    axis: Plane = Field(
        default="auto",
        description="Plane of the slices; auto: perpendicular to the axis with the largest spacing; of several that differ by at most a "
        "quarter, axial before coronal before sagittal. Predictions use the plane of the training volumes.",
    )
    neighbours: int = Field(
        default=0, ge=0, le=1, description="1: the slices before and after are the first and third channel."
    )
    channels: list[str] = Field(
        default=[],
        max_length=3,
        description="File-name endings of two or three sequences that become the channels, such as ['_t1', '_t2']; in a manifest name the "
        "files in the column image, joined by ';'. Predictions find the sequences of a case by these endings. With two, the third channel "
        "repeats the second.",
    )
    normalise: Literal["percentile", "window", "zscore", "none"] = Field(
        default="percentile",
        description="Grey values to 0..1: percentile (between data.image.low and high of the whole volume), window, zscore (-3 to 3 "
        "standard deviations of the volume), none (unsigned values of 8 or 16 bits without slope or intercept are divided by the "
        "largest value of their type; all others must lie in 0..1).",
    )
    window: str | tuple[float, float] | None = Field(
        default=None,
        description=f"For normalise: window, in HU for CT: [low, high], or one of {', '.join(WINDOWS)}.",
    )
    spacing: Positive | None = Field(
        default=None,
        description="Size of a pixel of the model's square in mm: slices of every site are resampled to it. Empty: the longer side fills "
        "the square.",
    )
    spacing_unknown: list[str] = Field(
        default=[],
        description="Sites whose files have lost their spacing (as 1 mm everywhere): distances there are in pixels.",
    )
    foreground_share: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="On average at least this share of the training batches are slices with foreground, drawn for each class in turn; the "
        "rest is drawn from all slices.",
    )
    resample: bool = Field(
        default=False,
        description="Put tilted or unevenly spaced DICOM series on a right-angled, even grid, and masks of another grid on that of their "
        "image; without it they are refused.",
    )
    frame: int | None = Field(
        default=None, ge=0, description="Which time, echo or sequence of a file or series that holds several; from 0."
    )
    series: str | None = Field(
        default=None,
        description="Which series of a folder that holds several: its number as `pfedsam data check` lists it, its SeriesInstanceUID, "
        "or words of its description.",
    )
    segments: dict[str, int] = Field(
        default={},
        description="For DICOM-SEG and RTSTRUCT: name of a segment or ROI to its id in the mask; others are left out, and where they "
        "overlap the later one wins. Empty: ids are the segments' numbers, and an overlap is refused.",
    )
    sum_segments: bool = Field(
        default=False,
        description="Whether a voxel in several segments gets the sum of their ids, for data.overlap. The ids in segments are then "
        "different powers of two (1, 2, 4, ...), and a class lists all sums that contain its id.",
    )
    fractional_threshold: float = Field(
        default=0.5,
        gt=0,
        le=1,
        description="Share above which a voxel of a fractional DICOM-SEG belongs to its segment.",
    )
    max_gigabytes: float = Field(
        default=2.0, gt=0, description="Volumes that need more memory in their own type are refused before decoding."
    )
    cache_megabytes: int = Field(
        default=512, ge=16, description="Memory for prepared slices of a site; beyond it slices are read again."
    )

    @field_validator("channels")
    @classmethod
    def _several(cls, channels: list[str]) -> list[str]:
        if len(channels) == 1 or len(set(channels)) != len(channels) or not all(channels):
            raise ValueError("name two or three different endings, or leave it empty")
        return channels

    @field_validator("segments")
    @classmethod
    def _ids(cls, segments: dict[str, int]) -> dict[str, int]:
        if any(not 0 < number <= 65535 for number in segments.values()):
            raise ValueError("an id of a segment is 1 to 65535")
        return segments

    @model_validator(mode="after")
    def _sums_tell_the_segments(self) -> "VolumeOptions":
        ids = list(self.segments.values())
        if self.sum_segments and (not ids or len(set(ids)) < len(ids) or any(value & (value - 1) for value in ids)):
            raise ValueError("sum_segments needs segments, each with an id of its own of 1, 2, 4, 8, ...")
        return self

    @property
    def segment_overlaps(self) -> Overlaps:
        """What happens where two segments share a voxel."""
        return "sum" if self.sum_segments else "last" if self.segments else "refused"

    @model_validator(mode="after")
    def _together(self) -> "VolumeOptions":
        if (self.window is None) != (self.normalise != "window"):
            raise ValueError("window and normalise: window belong together; give both, or neither")
        if isinstance(self.window, str) and self.window not in WINDOWS:
            raise ValueError(f"there is no window {self.window!r}; known: {', '.join(WINDOWS)}, or give [low, high]")
        if isinstance(self.window, tuple) and self.window[0] >= self.window[1]:
            raise ValueError(f"the window's low ({self.window[0]}) must be below its high ({self.window[1]})")
        if self.neighbours and self.channels:
            raise ValueError("neighbours and channels both fill the three channels; give one of them")
        return self

    def limits(self) -> tuple[float, float]:
        """Lowest and highest value of the window; only for `normalise: window`."""
        if isinstance(self.window, str):
            return WINDOWS[self.window]
        return self.window or (0.0, 1.0)
