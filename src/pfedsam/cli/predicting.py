"""The common part of `pfedsam predict` and `pfedsam site predict`: images are predicted one by one; a bad file does not stop the others."""

import json
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
    from pfedsam.engine.predict_volume import PredictOptions


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
    typer.Option(
        help="personal, shared, or in-use: the personal one, unless the shared one was clearly better on the site's validation part."
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", help="Override a key of the configuration, such as data.image.max_megapixels=150; may be repeated."
    ),
]
DicomSeg = Annotated[
    bool,
    typer.Option(
        "--dicom-seg",
        help="Write the masks of DICOM series as DICOM-SEG. Masks of other images are written as without it: NIfTI for volumes, PNG for "
        "pictures.",
    ),
]
Probabilities = Annotated[
    bool, typer.Option("--probabilities", help="For volumes: write also the probabilities of the classes (NIfTI, 4-D).")
]
Flips = Annotated[
    bool,
    typer.Option(
        "--tta",
        help="Average the predictions over mirror images, which takes four times as long; short for --set evaluation.flips=true. "
        "Refused for models that were trained without mirrored images (data.augment.flips), by default those of volumes.",
    ),
]
Smallest = Annotated[
    int, typer.Option(min=0, help="For volumes: remove connected components with fewer voxels than this.")
]
Largest = Annotated[
    bool,
    typer.Option(
        "--largest",
        help="Keep only the largest connected component of each class; short for --set evaluation.single_region=all.",
    ),
]
Resume = Annotated[bool, typer.Option("--resume", help="Skip images that have a mask already.")]


Backbone = Annotated[
    str | None,
    typer.Option(help="Path of the run's backbone, if it is at another place now; its weights have to be the same."),
]


def with_backbone(path: str | None) -> list[str]:
    """The override of the configuration for a backbone at another place than in the training.

    The path is relative to the working directory; in a configuration it would be relative to the run's folder.
    """
    from pfedsam.model.backbones.checkpoint import backbone_file

    if path is None:
        return []
    found = backbone_file(path)
    return [f"model.backbone={json.dumps(str(found.resolve()) if found else path)}"]


def with_flags(overrides: Sequence[str] | None, *, tta: bool, largest: bool) -> list[str]:
    """The overrides of the configuration, with those that these flags stand for."""
    short = {"evaluation.flips=true": tta, "evaluation.single_region=all": largest}
    return [*(overrides or ()), *(override for override, wanted in short.items() if wanted)]


def predict_all(
    images: Sequence[Path],
    out: Path,
    predictor: "Callable[[], OpenSite]",
    wanted: Wanted,
    predict_options: "PredictOptions",
    *,
    dicom_seg: bool,
    resume: bool,
) -> None:
    """Segment all images and write their masks.

    Args:
        images: files, folders and patterns.
        out: folder of the masks.
        predictor: function that opens the model; it is called after the check that nothing would be overwritten.
        wanted: the model of the site that it opens; the terminal shows which one is used.
        predict_options: how volumes are predicted.
        dicom_seg: whether masks of DICOM series are written as DICOM-SEG.
        resume: whether to skip images that have a mask already; otherwise an existing mask is an error.

    Raises:
        DataError: some images cannot be read, or their masks cannot be written, or a folder holds files of formats that are not read; the
            masks of all others are written. Or the model was trained on another number of sequences; nothing is written.
        OptionError: a mask exists already, a folder has no images, no file matches a pattern, or mirror images are requested of a model
            that was trained without them; nothing is written.
    """
    from pfedsam.core.errors import DataError
    from pfedsam.data.trained_on import refuse_other_number
    from pfedsam.engine.predict_jobs import find_jobs, without_further_sequences
    from pfedsam.engine.predict_sources import find_left_out
    from pfedsam.experiment.build import check_flips

    jobs = find_jobs(images, out, dicom_seg=dicom_seg, probabilities=predict_options.probabilities)
    left_out = find_left_out(images, out)
    left = _without_masks(jobs, [""], resume=resume)
    opened = predictor()
    check_flips(opened.options, volumes=bool(opened.trained_on.volumes) or any(job.volume for job in left))
    in_use = " (in use there)" if wanted is Wanted.IN_USE else ""
    OUT.print(f"Model: the {opened.uses} one of site {opened.name}{in_use}", markup=False)
    channels = opened.options.data.volume.channels
    if any(job.volume for job in left):
        refuse_other_number(len(channels) or 1, opened.trained_on.sequences)
    jobs, left = without_further_sequences(jobs, channels), without_further_sequences(left, channels)
    labels = opened.options.data.label_map()
    labels.first_ids()  # refuses ids that a mask file cannot contain, before anything is predicted
    if labels.overlap:
        left = _without_masks(left, labels.names, resume=resume)
    if dicom_seg:
        _tell_other_formats(left)
    unread = _predict_each(left, opened, predict_options, labels, dicom_seg)
    if len(left) < len(jobs):
        OUT.print(f"{len(jobs) - len(left)} image(s) had a mask already.")
    if unread or left_out:
        raise DataError(_what_is_missing(len(left) - len(unread), unread, left_out))


def _tell_other_formats(jobs: "Sequence[Job]") -> None:
    """Print how many images get no DICOM-SEG although it was requested, because they are no DICOM files."""
    others = sum(not job.dicom for job in jobs)
    if others:
        OUT.print(
            f"--dicom-seg has no effect on {others} image(s) that are no DICOM files: masks of volumes are NIfTI, those of pictures PNG.",
            soft_wrap=True,
        )


def _what_is_missing(written: int, unread: Sequence[str], left_out: Sequence[Path]) -> str:
    """The message at the end of a call with images that have no mask, and with files that were not read."""
    from pfedsam.data.manifest_lines import READABLE

    failed = [f"{len(unread)} image(s) could not be segmented:", *unread] if unread else []
    others = [
        f"{len(left_out)} file(s) were left out, because only {READABLE} are read; convert or unpack them, or take them out:",
        *map(str, left_out),
    ]
    return f"{written} mask(s) written; " + "\n".join([*failed, *(others if left_out else [])])


def _without_masks(jobs: "Sequence[Job]", folders: Sequence[str], *, resume: bool) -> "list[Job]":
    """The jobs whose masks are to be written into these folders: with `resume` those that have none, otherwise all.

    Raises:
        OptionError: a mask would be overwritten.
    """
    from pfedsam.engine.predict_jobs import is_done, refuse_existing
    from pfedsam.engine.size_tables import refuse_other_tables

    left = [job for job in jobs if not (resume and is_done(job, folders))]
    refuse_existing(left, folders, resume=resume)
    refuse_other_tables({job.target.parent for job in left if job.volume})
    return left


def _predict_each(
    jobs: "Sequence[Job]", opened: "OpenSite", predict_options: "PredictOptions", labels: "LabelMap", dicom_seg: bool
) -> list[str]:
    """Predict the images one by one, show the progress, and return a message for each image that has no mask, with its name."""
    from pfedsam.core.errors import DataError, OptionError, StoreError

    unread = []
    columns = (TextColumn("{task.description:<34}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=ERR, transient=True) as bars:
        every, slices = bars.add_task("images", total=len(jobs)), bars.add_task("slices", total=None, visible=False)
        for job in jobs:
            try:
                written = _predict(job, opened, predict_options, labels, dicom_seg, partial(_tell, bars, slices))
            except (DataError, OptionError, StoreError) as error:
                # Also a volume for a model of tiles, or a name that is too long.
                text = str(error)
                named = any(repr(name) in text for name in (job.name, job.path.name))
                unread.append(text if named else f"{job.path.name!r}: {text}")
            else:
                OUT.print(f"{job.shown} -> {written}")
            bars.advance(every)
    return unread


def _predict(
    job: "Job",
    predictor: "OpenSite",
    predict_options: "PredictOptions",
    labels: "LabelMap",
    dicom_seg: bool,
    tell: Callable[[int, int], None],
) -> Path:
    """Predict one image, write its mask, and return the mask's file (for classes that overlap, the last one)."""
    from pfedsam.data.readers.pictures import write_png
    from pfedsam.engine.predict_jobs import refuse_unlistable, refuse_unwritable, write_volume

    if job.volume:
        refuse_unlistable(job)
        data = predictor.options.data
        case = job.case(predictor.name, data.volume.channels)
        if job.dicom and dicom_seg:
            refuse_unwritable(case, data.image, data.volume, labels.names)
        return write_volume(job, predictor.predict_volume(case, predict_options, tell), labels, dicom_seg=dicom_seg)
    written = job.target
    for name, ids in labels.to_ids(predictor.predict(job.path)).items():
        written = job.target.parent / name / job.target.name
        written.parent.mkdir(parents=True, exist_ok=True)
        write_png(written, ids)
    return written


def _tell(bars: Progress, task: TaskID, done: int, total: int) -> None:
    bars.update(task, completed=done, total=total, visible=True)
