"""NIfTI and DICOM files for tests, with a patient's name in every field that can hold one."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, EnhancedMRImageStorage, ExplicitVRLittleEndian, generate_uid

CANARY = "Canary^Wilhelmina"
"""A patient's name, which must never come out."""
_RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def write_nifti(
    path: Path, values: npt.NDArray[Any], affine: Any = None, change: Callable[[Any], None] | None = None
) -> Path:
    """A NIfTI file; `change` edits the header before it is written."""
    image: Any = nib.nifti1.Nifti1Image(values, np.eye(4) if affine is None else affine)
    image.header["descrip"] = CANARY
    if change:
        header = image.header.copy()
        change(header)
        image = nib.nifti1.Nifti1Image(values, None, header)  # with an affine, nibabel would write its own codes
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)
    return path


def write_series(
    folder: Path,
    values: npt.NDArray[Any],
    affine: Any = None,
    *,
    change: Callable[[Dataset, int], None] | None = None,
    seed: int = 0,
    series: str | None = None,
    frame: str | None = None,
) -> Path:
    """A CT series of single files, values [row, column, slice], in shuffled file names.

    `affine` takes [row, column, slice] to mm as NIfTI has them; `change` edits the data set of slice k.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lps = _RAS_TO_LPS @ (np.diag([2.0, 1.0, 3.0, 1.0]) if affine is None else np.asarray(affine))
    names = np.random.default_rng(seed).permutation(values.shape[2])
    series, frame = series or generate_uid(), frame or generate_uid()
    study = generate_uid(entropy_srcs=[series])
    for k in range(values.shape[2]):
        dataset = _slice(values[..., k], lps, k)
        dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID, dataset.StudyInstanceUID = series, frame, study
        dataset.InstanceNumber = int(names[k]) + 1
        if change:
            change(dataset, k)
        dataset.save_as(folder / f"IM{names[k]:03d}_{series[-6:]}", enforce_file_format=True)
    return folder


def _slice(values: npt.NDArray[Any], lps: npt.NDArray[np.float64], k: int) -> Dataset:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = generate_uid()
    dataset.PatientName, dataset.PatientID, dataset.Modality = CANARY, CANARY, "CT"
    dataset.SeriesDescription = dataset.StudyDescription = CANARY
    dataset.PatientBirthDate = dataset.PatientSex = dataset.AccessionNumber = dataset.StudyID = ""
    dataset.StudyDate = dataset.StudyTime = dataset.ReferringPhysicianName = ""
    dataset.SeriesNumber = 1
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    rows, columns = np.linalg.norm(lps[:3, 0]), np.linalg.norm(lps[:3, 1])
    dataset.PixelSpacing = [float(rows), float(columns)]
    dataset.SliceThickness = float(np.linalg.norm(lps[:3, 2]))
    dataset.ImageOrientationPatient = [*_short(lps[:3, 1] / columns), *_short(lps[:3, 0] / rows)]
    dataset.ImagePositionPatient = _short(lps[:3, 3] + k * lps[:3, 2])
    dataset.Rows, dataset.Columns = values.shape[:2]
    set_pixels(dataset, values)
    return dataset


def write_enhanced(folder: Path, frames: Sequence[tuple[npt.NDArray[Any], float, Dataset]]) -> Path:
    """An enhanced MR of axial frames: values [row, column], position along the normal in mm, and functional groups of the frame."""

    def enhance(dataset: Dataset, _: int) -> None:
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = EnhancedMRImageStorage
        dataset.Modality, dataset.NumberOfFrames = "MR", len(frames)
        dataset.PixelData = np.stack([values for values, _, _ in frames]).tobytes()
        shared, measures, plane = Dataset(), Dataset(), Dataset()
        measures.PixelSpacing, measures.SliceThickness = dataset.PixelSpacing, 3
        plane.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [plane]
        dataset.SharedFunctionalGroupsSequence = [shared]
        dataset.PerFrameFunctionalGroupsSequence = [own for _, _, own in frames]
        for _, place, own in frames:
            position = Dataset()
            position.ImagePositionPatient = [0, 0, place]
            own.PlanePositionSequence = [position]
        del dataset.ImagePositionPatient, dataset.ImageOrientationPatient, dataset.PixelSpacing

    (path,) = write_series(folder, frames[0][0][..., None], change=enhance).iterdir()
    return path


def set_pixels(dataset: Dataset, values: npt.NDArray[Any]) -> None:
    """Uncompressed pixels [H, W] or [H, W, 3] of an integer type."""
    colour = values.ndim == 3
    dataset.SamplesPerPixel = 3 if colour else 1
    dataset.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    if colour:
        dataset.PlanarConfiguration = 0
    dataset.BitsAllocated = dataset.BitsStored = values.dtype.itemsize * 8
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(values.dtype.kind == "i")
    dataset.PixelData = np.ascontiguousarray(values).tobytes()
    dataset["PixelData"].VR = "OW" if values.dtype.itemsize > 1 else "OB"


def _short(values: Sequence[float]) -> list[str]:
    return [f"{value:.10g}"[:16] for value in values]


def all_planes(reader: Any, *, mask: bool = False) -> npt.NDArray[Any]:
    """Every plane across the third axis of a reader, stacked; grey values without their channel axis."""
    read = reader.mask_slice if mask else lambda k: reader.slice(k)[..., 0]
    return np.stack([read(k) for k in range(reader.header().shape[2])], axis=2)
