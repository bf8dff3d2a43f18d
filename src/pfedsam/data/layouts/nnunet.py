"""nnU-Net's raw data (version 2): `Dataset001_Name/{imagesTr,labelsTr}` with `dataset.json`."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from pfedsam.core.errors import DataError
from pfedsam.core.files import RepeatedNameError, read_regular, without_duplicates
from pfedsam.core.text import short_repr, some_of
from pfedsam.data.entries import VOLUME_ENDINGS
from pfedsam.data.layouts.base import Classes, FoundCase, Layout, site_name
from pfedsam.data.readers import PICTURES

MAX_CHANNELS = 3
_NUMBER = re.compile(r"^Dataset\d{3}_(?=.)")
_ENDING = re.compile(r"\.[A-Za-z0-9.]+")


def read_description(source: Path, key: str) -> Mapping[str, Any]:
    """The content of `dataset.json` if it has this key, otherwise an empty mapping.

    Raises:
        DataError: the file is no JSON, or has a key twice.
    """
    path = source / "dataset.json"
    if not path.is_file():
        return {}
    try:
        content = json.loads(read_regular(path).decode("utf-8-sig"), object_pairs_hook=without_duplicates)
    except RepeatedNameError as error:
        raise DataError(
            f"dataset.json has the key {short_repr(error.name)} twice; restore it from the data set"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path.name!r} in {source.name!r} is no JSON; restore it from the data set") from error
    return content if isinstance(content, dict) and key in content else {}


def read_table(description: Mapping[str, Any], key: str, default: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The value of a key of `dataset.json` that has names with values.

    Raises:
        DataError: the key has another value, or is missing and has no default.
    """
    value = description.get(key, default)
    if not isinstance(value, dict) or not value:
        raise DataError(
            f"dataset.json gives {key} as {short_repr(value)}; it must be names with values in braces; restore it from the data set"
        )
    return value


def find(source: Path) -> Iterator[FoundCase]:
    """The labelled cases, and the images without labels; of more than three channels the first three are taken.

    The layout does not name patients: a case may be one of several scans of a patient.

    Raises:
        DataError: a label file has no image, a case has several pictures, or `dataset.json` has another form.
    """
    description = read_description(source, "file_ending")
    if not description:
        return
    ending = _ending(description)
    site = site_name(_NUMBER.sub("", source.name)).lower()
    channels = 1 if _is_colour(source, ending) else min(len(_channels(description)), MAX_CHANNELS)
    if channels > 1 and ending.lower() in PICTURES:
        raise DataError(
            f"imagesTr has {channels} pictures ({ending}) for each case, and only volumes can have several channel files; write the "
            "channels of a case as the colours of one picture, <case>_0000"
        )
    yield from numbered_cases(source, site, ending, channels)


def numbered_cases(source: Path, site: str, ending: str, channels: int) -> Iterator[FoundCase]:
    """The cases whose images have the number of their channel in their names, `<case>_0000` and so on.

    Raises:
        DataError: a label file has no image.
    """
    masks = {path.name.removesuffix(ending): path for path in _visible(source / "labelsTr", ending)}
    endings = tuple(f"_{number:04d}" for number in range(channels))
    for case in dict.fromkeys([*masks, *_stems(source / "imagesTr", f"_0000{ending}")]):
        images = tuple(source / "imagesTr" / f"{case}{one}{ending}" for one in endings)
        missing = [image.name for image in images if not image.is_file()]
        if missing and case in masks:
            raise DataError(f"case {case!r} has a label file but no image {missing[0]!r} in imagesTr; restore it")
        yield FoundCase(site, case, None, images, masks.get(case), endings=endings)


def _stems(folder: Path, ending: str) -> list[str]:
    return [path.name.removesuffix(ending) for path in _visible(folder, ending)]


def _visible(folder: Path, ending: str) -> list[Path]:
    """The files in a folder with this ending, sorted, without hidden ones."""
    return sorted(path for path in folder.glob(f"*{ending}") if not path.name.startswith("."))


def _ending(description: Mapping[str, Any]) -> str:
    """The ending of the files.

    Raises:
        DataError: it cannot be one, or files with it are not read.
    """
    ending = description["file_ending"]
    if not isinstance(ending, str) or not _ENDING.fullmatch(ending):
        raise DataError(
            f"dataset.json gives file_ending as {short_repr(ending)}; it must be an ending such as '.nii.gz'; restore it from the data set"
        )
    allowed = (*sorted(PICTURES), *VOLUME_ENDINGS)
    if ending.lower() not in allowed:
        raise DataError(
            f"dataset.json gives file_ending as {short_repr(ending)}, and such files are not read; allowed: {', '.join(allowed)}. Convert "
            "the images and labels, pictures to .png and volumes to .nii.gz, and write the new ending into dataset.json"
        )
    return ending


def _channels(description: Mapping[str, Any]) -> dict[str, Any]:
    """The names of the channels by their numbers.

    Raises:
        DataError: they have another form.
    """
    return read_table(description, "channel_names", {"0": ""})


def _is_colour(source: Path, ending: str) -> bool:
    """Whether each case has one picture in colour, for which nnU-Net lists the channels R, G and B: no file has another number than 0."""
    return ending.lower() in PICTURES and not any((source / "imagesTr").glob(f"*_0001{ending}"))


def classes(source: Path) -> Classes:
    """The labels of `dataset.json` without background and `ignore`; a region has several ids.

    Raises:
        DataError: a label is neither an id nor a list of ids.
    """
    return {name: ids for name, ids in _labels(source).items() if name not in ("background", "ignore")}


def options(source: Path) -> Mapping[str, Any]:
    """The ids of `ignore`, and that classes overlap if the labels are regions that share ids.

    Raises:
        DataError: a label is neither an id nor a list of ids.
    """
    found = list(chain.from_iterable(classes(source).values()))
    ignored = _labels(source).get("ignore")
    return {
        **({"ignore": ignored} if ignored else {}),
        **({"overlap": True} if len(set(found)) < len(found) else {}),
    }


def _labels(source: Path) -> dict[str, list[int]]:
    """The ids of each label of `dataset.json`.

    Raises:
        DataError: a label is neither an id nor a list of ids.
    """
    found: dict[str, list[int]] = {}
    for name, value in read_table(read_description(source, "file_ending"), "labels").items():
        ids = value if isinstance(value, list) else [value]
        if not ids or not all(isinstance(one, int) and not isinstance(one, bool) for one in ids):
            raise DataError(
                f"dataset.json gives the label {short_repr(name)} as {short_repr(value)}; it must be an id, or a list of ids for a region"
            )
        found[name] = ids
    return found


def notes(source: Path) -> list[str]:
    """The channels after the third, and the test part.

    Raises:
        DataError: `dataset.json` has another form.
    """
    description = read_description(source, "file_ending")
    return [*further_channels(list(map(str, _channels(description).values()))), *left_out_test_part(source)]


def further_channels(names: Sequence[str]) -> list[str]:
    """The note about the channels after the third, given the names of all; empty if there are none."""
    if len(names) <= MAX_CHANNELS:
        return []
    return [
        f"of {len(names)} channels the first {MAX_CHANNELS} are taken; left out: {some_of(names[MAX_CHANNELS:], 5)}"
    ]


def left_out_test_part(source: Path) -> list[str]:
    """The note about the folders of a test part, which are not read; empty if there is nothing in them."""
    numbers = {name: len(_visible(source / name, "")) for name in ("imagesTs", "labelsTs")}
    found = [f"{number} file(s) in {name}" for name, number in numbers.items() if number]
    if not found:
        return []
    return [
        f"the test part is left out ({' and '.join(found)}); to use its labelled cases, move them to imagesTr and labelsTr"
    ]


LAYOUT = Layout(
    "nnunet",
    "nnU-Net raw data (version 2), one site; several such folders are several sites",
    "dataset.json with file_ending, imagesTr/<case>_0000<ending> and labelsTr/<case><ending>",
    find,
    classes,
    options,
    notes,
)
