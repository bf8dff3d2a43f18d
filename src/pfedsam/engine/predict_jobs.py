"""The jobs of `predict`, one for each image, and the files of each: the mask on the image's grid, probabilities, and tables of sizes."""

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from pfedsam.core.errors import DataError, OptionError
from pfedsam.core.files import refuse_broken_link
from pfedsam.data.about import about
from pfedsam.data.entries import entry_of, find_unread_among_dicom, further_sequences, may_be_image, stem_of
from pfedsam.data.images import ImageOptions
from pfedsam.data.labels import LabelMap
from pfedsam.data.manifest import READABLE, Case
from pfedsam.data.readers import kind_of
from pfedsam.data.readers.dicom import DicomReader
from pfedsam.data.readers.dicom_files import find_images
from pfedsam.data.readers.dicom_folders import looks_like_dicom
from pfedsam.data.readers.pictures import write_png
from pfedsam.data.readers.seg_write import refuse_without_seg, write_seg
from pfedsam.data.volume_case import open_case
from pfedsam.data.volume_options import VolumeOptions
from pfedsam.engine.predict_volume import PredictedVolume
from pfedsam.engine.size_tables import SIZES, tables_restored, write_sizes

_PROBABILITIES: Final = "_probabilities.nii.gz"


@dataclass(frozen=True)
class Job:
    """One picture, volume or DICOM series to segment."""

    path: Path
    stem: str
    """First part of the names of the files that the job writes."""
    volume: bool
    series: str | None
    target: Path
    """The file of the mask."""
    dicom: bool = False
    """Whether it is a DICOM image, which may be a single picture without a position; its mask is then a PNG."""
    probabilities: Path | None = None
    """The file of the probabilities, if they are written."""

    @property
    def name(self) -> str:
        """The name of the job in progress bars and tables."""
        return self.stem

    def case(self, site: str, channels: Sequence[str] = ()) -> Case:
        """The job as a case without a mask.

        Args:
            site: the site whose model predicts.
            channels: endings of the names of a case's sequences; the files of all sequences are in the same folder.

        Raises:
            DataError: the job is not the first sequence of a case.
        """
        others = further_sequences(self.path, channels)
        return Case(
            site, self.stem, self.path, None, self.stem, volume=self.volume, series=self.series, sequences=others
        )


def without_further_sequences(jobs: Sequence[Job], channels: Sequence[str]) -> list[Job]:
    """The jobs without those for the second or third sequence of a case, because they are read together with the first sequence."""
    further = tuple(channels[1:])
    return [job for job in jobs if not (further and job.volume and stem_of(job.path).endswith(further))]


def find_jobs(images: Sequence[Path], out: Path, *, dicom_seg: bool = False, probabilities: bool = False) -> list[Job]:
    """One job for each picture, volume and series.

    A folder that directly contains DICOM files gives one volume for each of its series. Any other folder stands for all volumes and
    pictures in it and in its folders.

    Args:
        images: files, folders and patterns such as `new/*.nii.gz`.
        out: folder of the masks.
        dicom_seg: whether masks of DICOM series are written as DICOM-SEG.
        probabilities: whether the probabilities of volumes are written.

    Raises:
        OptionError: no file matches a pattern, a folder contains no image, or results of two images would have the same place.
    """
    jobs = [job for image in _expanded(images) for job in _jobs_of(image, out, dicom_seg)]
    if probabilities:
        jobs = [replace(job, probabilities=out / f"{job.stem}{_PROBABILITIES}") if job.volume else job for job in jobs]
    _refuse_equal_files(jobs)
    return jobs


def _refuse_equal_files(jobs: Sequence[Job]) -> None:
    """Refuse jobs that would write the same file, or the same lines of the tables of sizes.

    Raises:
        OptionError: there are two such jobs.
    """
    seen: dict[str, Job] = {}
    for job in jobs:
        files = (job.target, *_as_pictures(job, ("",)), *([job.probabilities] if job.probabilities else []))
        lines = [f"the lines of {job.name!r} in {SIZES}"] if job.volume else []
        for result in (*(repr(str(file)) for file in files), *lines):
            if result in seen:
                same = seen[result].stem == job.stem
                why = "have the same name without its ending" if same else "have too similar names"
                raise OptionError(
                    f"The images {str(seen[result].path)!r} and {str(job.path)!r} {why}: a result of both would be {result}. "
                    "Nothing was written; rename one, or give them in two calls with different --out."
                )
            seen[result] = job


def refuse_existing(jobs: Sequence[Job], folders: Sequence[str] = ("",), *, resume: bool = False) -> None:
    """Refuse to overwrite a file.

    Args:
        jobs: the jobs whose masks are to be written.
        folders: for classes that overlap, the folders of the masks in the output folder.
        resume: whether files of the jobs may exist, because an interrupted call wrote a part of them; images are still not overwritten.

    Raises:
        OptionError: a file of a job exists already.
    """
    inputs = {job.path.resolve() for job in jobs}
    for job in jobs:
        extra = [job.probabilities] if job.probabilities else []
        for target in (*_targets(job, folders), *_as_pictures(job, folders), *extra):
            if _exists(target) and not (resume and target.resolve() not in inputs):
                what = "is one of the images" if target.resolve() in inputs else "exists already"
                raise OptionError(
                    f"The {'probabilities' if target in extra else 'mask'} of {str(job.path)!r} would overwrite {str(target)!r}, which "
                    f"{what}. Nothing was written; give another --out, such as a new folder, or --resume to skip existing masks."
                )


def _expanded(images: Sequence[Path]) -> Iterator[Path]:
    """The images, with the files that match in place of each pattern.

    Raises:
        OptionError: no file matches a pattern.
    """
    for image in images:
        if not image.exists() and glob.has_magic(str(image)):
            found = sorted(glob.glob(str(image), recursive=True))
            if not found:
                raise OptionError(
                    f"No file matches {str(image)!r}. Nothing was written; give files, folders or patterns that match a file."
                )
            yield from map(Path, found)
        else:
            yield image.resolve() if image.name in ("", "..") else image  # `.` has no name for its mask


def _jobs_of(image: Path, out: Path, dicom_seg: bool) -> Iterator[Job]:
    if image.is_dir() and not _holds_dicom(image):
        yield from _jobs_in(image, out, dicom_seg)
        return
    entry = entry_of(image)
    if entry is None or not entry.volume:
        yield Job(image, stem_of(image), False, None, out / f"{stem_of(image)}.png")
    elif kind_of(image) == "dicom":
        yield from _dicom_jobs(image, out, ".dcm" if dicom_seg else ".nii.gz")
    else:
        yield Job(image, stem_of(image), True, None, out / f"{stem_of(image)}.nii.gz")


def _holds_dicom(folder: Path) -> bool:
    """Whether a folder directly contains DICOM files, so that it is an image itself."""
    return any(looks_like_dicom(file) for file in folder.iterdir() if file.is_file())


def _jobs_in(folder: Path, out: Path, dicom_seg: bool) -> Iterator[Job]:
    """The jobs of all images in a folder that is not an image itself, and in its folders; the folder of the masks may be in it.

    Raises:
        OptionError: there is no image in it.
    """
    images = list(_images_in(folder, out))
    if not images:
        raise OptionError(f"The folder {str(folder)!r} holds no image ({READABLE}). Nothing was written.")
    for one in images:
        yield from _jobs_of(one, out, dicom_seg)


def _images_in(folder: Path, out: Path) -> Iterator[Path]:
    """The images in a folder and in its folders, sorted by name; hidden files and the folder of the masks are left out.

    Raises:
        DataError: there is a link whose target does not exist.
    """
    return filter(entry_of, _contents(folder, out))


def _contents(folder: Path, out: Path) -> Iterator[Path]:
    """The files in a folder and in its folders, and folders that are images themselves, as for `_images_in`.

    Raises:
        DataError: there is a link whose target does not exist.
    """
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.resolve() == out.resolve():
            continue
        refuse_broken_link(path)
        if path.is_dir() and not _holds_dicom(path):
            yield from _contents(path, out)
        else:
            yield path


def find_left_out(images: Sequence[Path], out: Path) -> list[Path]:
    """What the folders among the images hold that may be an image and is not read, such as volumes of other formats and archives.

    Args:
        images: files, folders and patterns, as for `find_jobs`.
        out: folder of the masks, which may be in one of them.

    Raises:
        OptionError: no file matches a pattern.
        DataError: there is a link whose target does not exist.
    """
    folders = [image for image in _expanded(images) if image.is_dir()]
    return [path for folder in folders for path in _left_out(folder, out)]


def _left_out(folder: Path, out: Path) -> Iterator[Path]:
    contents = [folder] if _holds_dicom(folder) else _contents(folder, out)
    for path in contents:
        if path.is_dir():
            found = find_unread_among_dicom(path)
            yield from (one for one in found if out.resolve() not in one.resolve().parents)
        elif entry_of(path) is None and may_be_image(path):
            yield path


def _dicom_jobs(image: Path, out: Path, ending: str) -> Iterator[Job]:
    """A job for each series of a DICOM file or folder; if there is only one series, the name contains no number."""
    try:
        series = find_images(image).series
    except DataError:  # reported when this image is predicted, so that the other images are still predicted
        series = []
    if len(series) < 2:
        yield Job(image, stem_of(image), True, None, out / f"{stem_of(image)}{ending}", dicom=True)
        return
    for number in (str(one.number) for one in series):
        stem = f"{stem_of(image)}_series{number}"
        yield Job(image, stem, True, number, out / f"{stem}{ending}", dicom=True)


def refuse_unwritable(case: Case, image: ImageOptions, options: VolumeOptions, names: Sequence[str]) -> None:
    """Refuse a DICOM series for which no DICOM-SEG can be written, before it is segmented.

    Args:
        case: the series as a case.
        image: how the values of images are read.
        options: how volumes are read.
        names: names of the classes.

    Raises:
        DataError: the series cannot be read, or no DICOM-SEG can be made of it.
    """
    source = open_case(case, image, options).readers[0]
    if isinstance(source, DicomReader):
        with about(case):
            refuse_without_seg(source, names)


def write_volume(job: Job, found: PredictedVolume, labels: LabelMap, *, dicom_seg: bool = False) -> Path:
    """Write the results of a volume: sizes, then probabilities, and the mask last, so that a job with a mask is finished.

    If the mask cannot be written, the tables of sizes are as before.

    A single DICOM picture without a position gets a PNG, because a NIfTI file would give it a position. If classes overlap, there is a mask
    for each class in a folder of the class's name, or one DICOM-SEG with all of them.

    Args:
        job: the job with the paths of its files.
        found: the volume and its classes.
        labels: names and ids of the classes.
        dicom_seg: whether the mask of a DICOM series is written as DICOM-SEG.

    Returns:
        The file of the mask; if there are several, the last one.

    Raises:
        DataError: a DICOM-SEG cannot be made of this volume.
        StoreError: a file cannot be written.
    """
    folder = job.target.parent
    folder.mkdir(parents=True, exist_ok=True)
    with tables_restored(folder):
        write_sizes(folder, job.name, found, labels)
        if job.probabilities:
            _write_probabilities(job.probabilities, found, len(labels.names))
        return _write_masks(job, found, labels, dicom_seg=dicom_seg)


def _write_masks(job: Job, found: PredictedVolume, labels: LabelMap, *, dicom_seg: bool) -> Path:
    """Write the masks of a volume, and return the last one.

    Raises:
        DataError: a DICOM-SEG cannot be made of this volume.
        StoreError: a file cannot be written.
    """
    folder, volume = job.target.parent, found.volume
    source = volume.readers[0]
    if dicom_seg and isinstance(source, DicomReader):
        write_seg(job.target, source, volume.slicing.to_file(found.classes), labels.names, overlap=labels.overlap)
        return job.target
    written = job.target
    for name, ids in labels.to_ids(found.classes).items():
        (folder / name).mkdir(exist_ok=True)
        if volume.header.affine is None and len(ids) == 1:
            (written,) = _as_pictures(job, (name,))
            write_png(written, ids[0])
        else:
            (written,) = _targets(job, (name,))
            volume.write_mask(written, ids)
    return written


def _write_probabilities(path: Path, found: PredictedVolume, classes: int) -> None:
    """Write the probabilities of all classes to one file, if they were requested.

    Raises:
        StoreError: the file cannot be written.
    """
    if found.probabilities is None:
        return
    maps = [found.volume.slicing.to_file(found.probabilities[..., k]) for k in range(classes)]
    found.volume.readers[0].write_mask(path, np.stack(maps, axis=3))


def is_done(job: Job, folders: Sequence[str] = ("",)) -> bool:
    """Whether the masks of a job exist; the mask of a single DICOM image without a position is a PNG."""
    pictures = _as_pictures(job, folders)
    return all(map(_exists, _targets(job, folders))) or bool(pictures and all(map(_exists, pictures)))


def _exists(path: Path) -> bool:
    """Whether there is a file; False for a name that is too long, which `Path.exists` raises an error for: its image is reported later."""
    return os.path.exists(path)


def _targets(job: Job, folders: Sequence[str]) -> list[Path]:
    """The files of the masks in these folders of the output folder; a DICOM-SEG contains all classes."""
    if job.target.suffix == ".dcm":
        return [job.target]
    return [job.target.parent / name / job.target.name for name in folders]


def _as_pictures(job: Job, folders: Sequence[str]) -> list[Path]:
    """The files of the masks of a DICOM image if it is a single picture without a position."""
    return [job.target.parent / name / f"{job.stem}.png" for name in folders] if job.dicom else []
