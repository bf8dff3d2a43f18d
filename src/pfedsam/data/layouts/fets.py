"""FeTS (Pati et al., 2021): brain tumours by institution; folders of a patient with four sequences, and a table of partitions."""

from collections.abc import Iterator
from pathlib import Path

from pfedsam.core.errors import DataError
from pfedsam.data.layouts.base import Classes, FoundCase, Layout, read_rows, site_name

SEQUENCES = ("t1ce", "t2", "flair")
"""The three sequences that become the channels; T1 without contrast agent is left out."""


def find(source: Path) -> Iterator[FoundCase]:
    """Every patient of `partitioning_*.csv` whose folder exists; the site is the institution.

    Raises:
        DataError: a patient's folder has not all sequences.
    """
    for patient, institution in _partition(source):
        folder = source / patient
        if not folder.is_dir():  # not every downloaded part has every patient of the table
            continue
        images = tuple(folder / f"{patient}_{sequence}.nii.gz" for sequence in SEQUENCES)
        mask = folder / f"{patient}_seg.nii.gz"
        missing = [image.name for image in images if not image.is_file()]
        if missing:
            raise DataError(
                f"patient {patient!r} has no {missing[0]!r} in its folder; restore it, or remove the folder"
            )
        site = site_name(f"institution_{institution}")
        endings = tuple(f"_{sequence}" for sequence in SEQUENCES)
        yield FoundCase(site, patient, patient, images, mask if mask.is_file() else None, endings=endings)


def _partition(source: Path) -> Iterator[tuple[str, str]]:
    """Patient and institution of each complete row of the table."""
    for table in sorted(source.glob("partitioning_1.csv")) or sorted(source.glob("partitioning*.csv"))[:1]:
        for row in read_rows(table):
            patient, institution = row.get("Subject_ID"), row.get("Partition_ID")
            if patient and institution:
                yield patient, institution


def masks(source: Path) -> list[Path]:
    """All masks in folders of patients, also of those that are not in the table."""
    return sorted(source.glob("*/*_seg.nii.gz"))


def classes(_: Path) -> Classes:
    """The three labels of BraTS, which exclude each other."""
    return {"necrotic_core": [1], "edema": [2], "enhancing_tumour": [4]}


LAYOUT = Layout(
    "fets",
    "FeTS: brain tumours by institution (Pati et al., 2021)",
    "partitioning_1.csv with Partition_ID and Subject_ID, and <Subject_ID>/<Subject_ID>_{t1ce,t2,flair,seg}.nii.gz",
    find,
    classes,
    masks=masks,
)
