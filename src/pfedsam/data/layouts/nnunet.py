"""nnU-Net's raw data (version 2): `Dataset001_Name/{imagesTr,labelsTr}` with `dataset.json`."""

import json
import re
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from pfedsam.core.errors import DataError
from pfedsam.data.layouts.base import Classes, FoundCase, Layout, site_name

MAX_CHANNELS = 3
_PICTURES = (".png", ".bmp", ".tif", ".tiff", ".jpg", ".jpeg")
_NUMBER = re.compile(r"^Dataset\d{3}_(?=.)")


def read_description(source: Path, key: str) -> Mapping[str, Any]:
    """The content of `dataset.json` if it has this key, otherwise an empty mapping.

    Raises:
        DataError: the file is no JSON.
    """
    path = source / "dataset.json"
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path.name!r} in {source.name!r} is no JSON; restore it from the data set") from error
    return content if isinstance(content, dict) and key in content else {}


def find(source: Path) -> Iterator[FoundCase]:
    """The labelled cases; of more than three channels the first three are taken. The layout has no patients, so each case is one.

    Raises:
        DataError: a label file has no image.
    """
    description = read_description(source, "file_ending")
    if not description:
        return
    ending = str(description["file_ending"])
    site = site_name(_NUMBER.sub("", source.name)).lower()
    channels = 1 if _is_colour(source, ending) else min(len(description.get("channel_names", {"0": ""})), MAX_CHANNELS)
    for mask in sorted((source / "labelsTr").glob(f"*{ending}")):
        if mask.name.startswith("."):
            continue
        case = mask.name.removesuffix(ending)
        images = tuple(source / "imagesTr" / f"{case}_{number:04d}{ending}" for number in range(channels))
        missing = [image.name for image in images if not image.is_file()]
        if missing:
            raise DataError(f"case {case!r} has a label file but no image {missing[0]!r} in imagesTr; restore it")
        yield FoundCase(site, case, case, images, mask)


def _is_colour(source: Path, ending: str) -> bool:
    """Whether each case has one picture in colour, for which nnU-Net lists the channels R, G and B: no file has another number than 0."""
    return ending in _PICTURES and not any((source / "imagesTr").glob(f"*_0001{ending}"))


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
    for name, value in read_description(source, "file_ending").get("labels", {}).items():
        ids = value if isinstance(value, list) else [value]
        if not ids or not all(isinstance(one, int) and not isinstance(one, bool) for one in ids):
            raise DataError(
                f"dataset.json gives the label {name!r} as {value!r}; it must be an id, or a list of ids for a region"
            )
        found[name] = ids
    return found


LAYOUT = Layout(
    "nnunet",
    "nnU-Net raw data (version 2), one site; several such folders are several sites",
    "dataset.json with file_ending, imagesTr/<case>_0000<ending> and labelsTr/<case><ending>",
    find,
    classes,
    options,
)
