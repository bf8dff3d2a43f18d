"""Tasks of the Medical Segmentation Decathlon (Antonelli et al., 2022): `Task04_Hippocampus/{imagesTr,labelsTr}` with `dataset.json`.

Version 1 of nnU-Net has the same description, but a file for each channel of an image, `<case>_0000.nii.gz`; it is read too.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pfedsam.core.errors import DataError
from pfedsam.core.text import short_repr
from pfedsam.data.layouts.base import Classes, FoundCase, Layout, by_stem, site_name, volumes
from pfedsam.data.layouts.nnunet import (
    MAX_CHANNELS,
    further_channels,
    left_out_test_part,
    numbered_cases,
    read_description,
    read_table,
)

_NNUNET_ENDING = ".nii.gz"
"""The only ending of files in version 1 of nnU-Net."""
_ID = re.compile(r"[0-9]{1,9}")


def find(source: Path) -> Iterator[FoundCase]:
    """The labelled cases, and the images without labels; the layout does not name patients.

    The files in the folders are used, not the paths in the JSON file.

    Raises:
        DataError: a label file has no image, or two files have the same name.
    """
    description = read_description(source, "training")
    if not description:
        return
    site = site_name(str(description.get("name", source.name))).lower()
    if _is_nnunet(source):
        yield from numbered_cases(source, site, _NNUNET_ENDING, min(len(_sequences(source)), MAX_CHANNELS))
        return
    images, masks = by_stem(volumes(source / "imagesTr")), by_stem(volumes(source / "labelsTr"))
    for case in dict.fromkeys([*masks, *images]):
        if case not in images:
            raise DataError(f"case {case!r} has a label file but no image of that name in imagesTr; restore it")
        yield FoundCase(site, case, None, (images[case],), masks.get(case))


def _is_nnunet(source: Path) -> bool:
    """Whether the images are those of version 1 of nnU-Net, with the number of their channel in their names."""
    labels = (path.name.removesuffix(_NNUNET_ENDING) for path in volumes(source / "labelsTr"))
    return any((source / "imagesTr" / f"{case}_0000{_NNUNET_ENDING}").is_file() for case in labels)


def classes(source: Path) -> Classes:
    """The labels of `dataset.json`, which maps numbers to names.

    Raises:
        DataError: a key is not a number, or a name is not text.
    """
    found: dict[str, list[int]] = {}
    for number, name in read_table(read_description(source, "training"), "labels").items():
        if not _ID.fullmatch(number):
            raise DataError(f"dataset.json numbers a label {short_repr(number)}; it must be 0, 1, 2 and so on")
        if not isinstance(name, str):
            raise DataError(f"dataset.json calls the label {number} {short_repr(name)}; it must be a name in quotes")
        if int(number):
            found.setdefault(name, []).append(int(number))
    return found


def options(source: Path) -> Mapping[str, Any]:
    """For tasks with several sequences in one 4-D file, the option that the first one is read; the user can change it in the study."""
    return {"volume": {"frame": 0}} if len(_sequences(source)) > 1 and not _is_nnunet(source) else {}


def _sequences(source: Path) -> list[str]:
    """The names of the sequences.

    Raises:
        DataError: they have another form.
    """
    return list(map(str, read_table(read_description(source, "training"), "modality", {"0": ""}).values()))


def notes(source: Path) -> list[str]:
    """The sequences after the first, or in a folder of nnU-Net the channels after the third, and the test part.

    Raises:
        DataError: `dataset.json` has another form.
    """
    first, *others = _sequences(source)
    if _is_nnunet(source):
        return [*further_channels([first, *others]), *left_out_test_part(source)]
    if not others:
        return left_out_test_part(source)
    return [
        f"of {len(others) + 1} sequences the first ({first}) is read; data.volume.frame in the study chooses another one",
        *left_out_test_part(source),
    ]


LAYOUT = Layout(
    "msd",
    "a task of the Medical Segmentation Decathlon, or of nnU-Net version 1, one site",
    "dataset.json with training, imagesTr/<case>.nii.gz (nnU-Net: <case>_0000.nii.gz) and labelsTr/<case>.nii.gz",
    find,
    classes,
    options,
    notes,
)
