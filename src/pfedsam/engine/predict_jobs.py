"""The jobs of `predict`, one for each image, and the files of each: the mask on the image's grid, probabilities, and tables of sizes."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from pfedsam.core.errors import DataError, OptionError
from pfedsam.core.text import is_text
from pfedsam.data.about import about
from pfedsam.data.entries import further_sequences, stem_of
from pfedsam.data.images import ImageOptions
from pfedsam.data.labels import LabelMap
from pfedsam.data.manifest import Case
from pfedsam.data.readers.dicom import DicomReader
from pfedsam.data.readers.pictures import write_png
from pfedsam.data.readers.seg_write import refuse_without_seg, write_seg
from pfedsam.data.volume_case import open_case
from pfedsam.data.volume_options import VolumeOptions
from pfedsam.engine.predict_names import SERIES, name_results, read_series, write_series
from pfedsam.engine.predict_sources import Source, find_sources
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
    source: Source | None = None
    """The image, with the DICOM series of it."""

    @property
    def name(self) -> str:
        """The name of the job in progress bars and tables."""
        return self.stem

    @property
    def shown(self) -> str:
        """The name of the file or folder; of one of several series in a folder also that of its first file."""
        if not (self.source and self.source.first and self.source.numbered and self.path.is_dir()):
            return self.path.name
        return f"{self.path.name} (series of {self.source.first.relative_to(self.path)})"

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

    A folder that directly contains DICOM pictures gives one volume for each of its series. Any other folder stands for all volumes and
    pictures in it and in its folders. `predict_names` determines the names of the results.

    Args:
        images: files, folders and patterns such as `new/*.nii.gz`.
        out: folder of the masks.
        dicom_seg: whether masks of DICOM series are written as DICOM-SEG.
        probabilities: whether the probabilities of volumes are written.

    Raises:
        OptionError: no file matches a pattern, a folder contains no image, results of two images would have the same place, or it is not
            known which series a mask in the folder is of.
        DataError: the folder of the masks has another table with the name of the table of series, or there is a link without a target.
    """
    sources, table = list(find_sources(images, out)), read_series(out)
    ending = ".dcm" if dicom_seg else ".nii.gz"
    names = name_results(sources, table)
    jobs = [_job(source, stem, out, ending) for source, stem in zip(sources, names, strict=True)]
    _refuse_unknown_series(jobs, table)
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


def _job(source: Source, stem: str, out: Path, ending: str) -> Job:
    """The job of an image; volumes in DICOM have masks with this ending."""
    suffix = ".png" if not source.volume else ending if source.dicom else ".nii.gz"
    return Job(source.path, stem, source.volume, source.chosen, out / f"{stem}{suffix}", source.dicom, source=source)


def _refuse_unknown_series(jobs: Sequence[Job], table: Mapping[str, str]) -> None:
    """Refuse a mask that has a number in its name and is not in the table: with `--resume` it may be taken for that of another series.

    Raises:
        OptionError: there is such a mask.
    """
    for job in jobs:
        if job.source and job.source.numbered and job.stem not in table and _exists(job.target):
            raise OptionError(
                f"The mask {str(job.target)!r} exists already, and {SERIES} beside it does not say of which series it is. Nothing was "
                "written; give another --out, such as a new folder."
            )


def refuse_unlistable(job: Job) -> None:
    """Refuse a volume whose name the tables of sizes cannot hold, before it is segmented.

    Raises:
        DataError: the name is not UTF-8.
    """
    if not is_text(job.name):
        raise DataError(
            f"{job.path.name!r} or its folder has a name that is not UTF-8 and cannot be written into {SIZES}; rename it, for example to "
            "ASCII letters and digits"
        )


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
    """Write the results of a volume: lines of tables, then probabilities, and the mask last, so that a job with a mask is finished.

    If the mask cannot be written, the tables of sizes and of series are as before.

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
    with tables_restored(folder, SERIES):
        write_sizes(folder, job.name, found, labels)
        if job.source:
            write_series(folder, job.name, job.source)
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
    """Whether the masks of a job exist; the mask of a single DICOM image without a position is a PNG.

    False for DICOM files that cannot be read, because it is not known which series they hold.
    """
    if job.source and not job.source.readable:
        return False
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
