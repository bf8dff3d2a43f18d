"""What `pfedsam predict` and `pfedsam site predict` share: images one after the other; one bad file does not stop the others."""

from collections.abc import Callable, Sequence
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from pfedsam.cli.console import ERR, OUT

if TYPE_CHECKING:
    from pfedsam.data.labels import LabelMap
    from pfedsam.engine.opened import OpenSite
    from pfedsam.engine.predict_jobs import Job
    from pfedsam.engine.predict_volume import VolumeWishes


class Wanted(StrEnum):
    """The model of a site that is used for prediction."""

    IN_USE = "in-use"
    PERSONAL = "personal"
    SHARED = "shared"


Images = Annotated[
    list[Path], typer.Argument(help="Pictures, NIfTI files, DICOM files or folders, folders of these, or patterns.")
]
Model = Annotated[
    Wanted,
    typer.Option(help="personal, shared, or in-use: the one of the two that was better on the site's validation part."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", help="Override a key of the configuration, such as data.image.max_megapixels=150; may be repeated."
    ),
]
DicomSeg = Annotated[bool, typer.Option("--dicom-seg", help="Write DICOM-SEG for DICOM series.")]
Probabilities = Annotated[
    bool, typer.Option("--probabilities", help="Volumes: also write each class's probabilities (NIfTI, 4-D).")
]
Flips = Annotated[bool, typer.Option("--tta", help="Volumes: average over mirror images; four times as slow.")]
Smallest = Annotated[int, typer.Option(min=0, help="Volumes: remove connected parts of fewer voxels.")]
Largest = Annotated[bool, typer.Option("--largest", help="Volumes: keep the largest part of each class only.")]
Resume = Annotated[bool, typer.Option("--resume", help="Skip what has a mask already.")]


def predict_all(
    images: Sequence[Path],
    out: Path,
    predictor: "Callable[[], OpenSite]",
    wanted: Wanted,
    wishes: "VolumeWishes",
    *,
    dicom_seg: bool,
    resume: bool,
) -> None:
    """Segment all images and write their masks.

    Args:
        images: Files, folders and patterns.
        out: Folder of the masks.
        predictor: Opens the model, once it is known that nothing would be overwritten.
        wanted: Which model of the site it opens; the terminal says which one that is.
        wishes: How volumes are predicted.
        dicom_seg: Masks of DICOM series become DICOM-SEG.
        resume: Skip what has a mask already; without it nothing is written where one is there.

    Raises:
        DataError: Some images cannot be read; the masks of all others are written.
        OptionError: A mask is there already, or a folder has no images; nothing is written.
    """
    from pfedsam.core.errors import DataError
    from pfedsam.engine.predict_jobs import find_jobs, is_done, refuse_existing, without_further_sequences
    from pfedsam.experiment.build import build_labels

    jobs = find_jobs(images, out, dicom_seg=dicom_seg)
    left = [job for job in jobs if not is_done(job)] if resume else jobs
    refuse_existing(left)
    opened = predictor()
    in_use = " (in use there)" if wanted is Wanted.IN_USE else ""
    OUT.print(f"Model: the {opened.uses} one of site {opened.name}{in_use}", markup=False)
    channels = opened.options.data.volume.channels
    jobs, left = without_further_sequences(jobs, channels), without_further_sequences(left, channels)
    labels, unread = build_labels(opened.options), []
    labels.first_ids()  # refuses ids that no mask holds before anything is predicted
    if labels.overlap:
        left = [job for job in left if not (resume and is_done(job, labels.names))]
        refuse_existing(left, labels.names)
    columns = (TextColumn("{task.description:<34}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=ERR, transient=True) as bars:
        every, slices = bars.add_task("images", total=len(left)), bars.add_task("slices", total=None, visible=False)
        for job in left:
            try:
                written = _predict(job, opened, wishes, labels, dicom_seg, partial(_tell, bars, slices))
            except DataError as error:
                unread.append(str(error))
            else:
                OUT.print(f"{job.path.name} -> {written}")
            bars.advance(every)
    if len(left) < len(jobs):
        OUT.print(f"{len(jobs) - len(left)} image(s) had a mask already.")
    if unread:
        raise DataError(
            f"{len(left) - len(unread)} mask(s) written; {len(unread)} image(s) got none:\n" + "\n".join(unread)
        )


def _predict(
    job: "Job",
    predictor: "OpenSite",
    wishes: "VolumeWishes",
    labels: "LabelMap",
    dicom_seg: bool,
    tell: Callable[[int, int], None],
) -> Path:
    """Predict one image, write its mask, and return the mask's file (for classes that overlap, the last one)."""
    from pfedsam.data.readers.pictures import write_png
    from pfedsam.engine.predict_jobs import write_volume

    if job.volume:
        case = job.case(predictor.name, predictor.options.data.volume.channels)
        return write_volume(job, predictor.predict_volume(case, wishes, tell), labels, dicom_seg=dicom_seg)
    written = job.target
    for name, ids in labels.to_ids(predictor.predict(job.path)).items():
        written = job.target.parent / name / job.target.name
        written.parent.mkdir(parents=True, exist_ok=True)
        write_png(written, ids)
    return written


def _tell(bars: Progress, task: TaskID, done: int, total: int) -> None:
    bars.update(task, completed=done, total=total, visible=True)
