"""M&Ms (Campello et al., 2021): cardiac MRI of several centres and vendors; one 4-D file per patient, of which two times are annotated."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np

from pfedsam.core.errors import DataError
from pfedsam.data.layouts.base import Classes, FoundCase, Layout, MadeFile, read_rows, site_name


def find(source: Path) -> Iterator[FoundCase]:
    """End-diastole and end-systole of every patient with image and mask; centre and times are in the table of patients."""
    rows = _table(source)
    if not rows:
        return
    for code, mask in _masks(source).items():
        image, row = _image_of(code, mask), rows.get(code)
        if row is None or not image.is_file():
            continue
        for phase in ("ED", "ES"):
            frame = row[phase] or ""
            yield FoundCase(
                site_name(f"centre_{row['Centre']}"),
                f"{code}_{phase}",
                code,
                (MadeFile(".nii.gz", partial(_write_frame, image, frame)),),
                MadeFile(".nii.gz", partial(_write_frame, mask, frame), (mask,)),
            )


def _masks(source: Path) -> dict[str, Path]:
    return {path.name.removesuffix("_sa_gt.nii.gz"): path for path in sorted(source.rglob("*_sa_gt.nii.gz"))}


def _image_of(code: str, mask: Path) -> Path:
    return mask.with_name(f"{code}_sa.nii.gz")


def masks(source: Path) -> list[Path]:
    """All masks; none if the table, and thus the data set, is missing."""
    return [*_masks(source).values()] if _table(source) else []


def _table(source: Path) -> dict[str, dict[str, str]]:
    """The rows of the data set's table by patient; empty if there is no such table."""
    for path in sorted(source.glob("*.csv")):
        rows = read_rows(path)
        if rows and {"External code", "Centre", "ED", "ES"} <= set(rows[0]):
            return {row["External code"]: row for row in rows}
    return {}


def _write_frame(source: Path, frame: str, target: Path) -> None:
    """Write one time of a 4-D file as a 3-D file with the same position in space.

    Raises:
        DataError: the file has no such time.
    """
    volume = nib.nifti1.Nifti1Image.from_filename(source)
    if not frame.strip().isdecimal() or len(volume.shape) != 4 or int(frame) >= volume.shape[3]:
        raise DataError(
            f"{source.name!r} has the shape {volume.shape} and no time {frame!r}, which the data set's table names"
        )
    data = np.asanyarray(volume.dataobj[..., int(frame)])
    header = volume.header.copy()  # type: ignore[no-untyped-call]
    header.set_data_shape(data.shape)
    header["pixdim"][4] = 0
    nib.save(nib.nifti1.Nifti1Image(data, volume.affine, header), target)  # type: ignore[no-untyped-call]


def classes(_: Path) -> Classes:
    """The ids of M&Ms."""
    return {"left_ventricle": [1], "myocardium": [2], "right_ventricle": [3]}


LAYOUT = Layout(
    "mms",
    "M&Ms: cardiac MRI of several centres (Campello et al., 2021)",
    "a table *.csv with External code, Centre, ED and ES, and below it <code>/<code>_sa.nii.gz and <code>_sa_gt.nii.gz",
    find,
    classes,
    masks=masks,
)
