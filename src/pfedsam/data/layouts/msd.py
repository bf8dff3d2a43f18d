"""Tasks of the Medical Segmentation Decathlon (Antonelli et al., 2022): `Task04_Hippocampus/{imagesTr,labelsTr}` with `dataset.json`."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pfedsam.core.errors import DataError
from pfedsam.data.layouts.base import Classes, FoundCase, Layout, site_name, stem_of, volumes
from pfedsam.data.layouts.nnunet import read_description


def find(source: Path) -> Iterator[FoundCase]:
    """The labelled cases; every case is a patient. The files in the folders are used, not the paths in the JSON file.

    Raises:
        DataError: a label file has no image.
    """
    description = read_description(source, "training")
    if not description:
        return
    site = site_name(str(description.get("name", source.name))).lower()
    images = {stem_of(path): path for path in volumes(source / "imagesTr")}
    for mask in volumes(source / "labelsTr"):
        case = stem_of(mask)
        if case not in images:
            raise DataError(f"case {case!r} has a label file but no image of that name in imagesTr; restore it")
        yield FoundCase(site, case, case, (images[case],), mask)


def classes(source: Path) -> Classes:
    """The labels of `dataset.json`, which maps numbers to names.

    Raises:
        DataError: a key is no number.
    """
    labels = read_description(source, "training").get("labels", {})
    wrong = [number for number in labels if not str(number).isdecimal()]
    if wrong:
        raise DataError(f"dataset.json numbers a label {wrong[0]!r}; it must be 0, 1, 2 and so on")
    return {str(name): [int(number)] for number, name in labels.items() if int(number)}


def options(source: Path) -> Mapping[str, Any]:
    """For tasks with several sequences in one 4-D file, the option that the first one is read; the user can change it in the study."""
    modalities = read_description(source, "training").get("modality", {})
    return {"volume": {"frame": 0}} if len(modalities) > 1 else {}


LAYOUT = Layout(
    "msd",
    "a task of the Medical Segmentation Decathlon, one site",
    "dataset.json with training, imagesTr/<case>.nii.gz and labelsTr/<case>.nii.gz",
    find,
    classes,
    options,
)
