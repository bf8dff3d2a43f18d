"""nnU-Net's raw data (version 2): `Dataset001_Name/{imagesTr,labelsTr}` with `dataset.json`."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pfedsam.core.errors import DataError
from pfedsam.data.layouts.base import Classes, FoundCase, Layout, site_name

MAX_CHANNELS = 3
_NUMBER = re.compile(r"^Dataset\d{3}_(?=.)")


def read_description(source: Path, key: str) -> Mapping[str, Any]:
    """The content of `dataset.json` if it has this key, otherwise an empty mapping.

    Raises:
        DataError: The file is no JSON.
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
        DataError: A label file has no image.
    """
    description = read_description(source, "file_ending")
    if not description:
        return
    ending = str(description["file_ending"])
    site = site_name(_NUMBER.sub("", source.name)).lower()
    channels = min(len(description.get("channel_names", {"0": ""})), MAX_CHANNELS)
    for mask in sorted((source / "labelsTr").glob(f"*{ending}")):
        case = mask.name.removesuffix(ending)
        images = tuple(source / "imagesTr" / f"{case}_{number:04d}{ending}" for number in range(channels))
        missing = [image.name for image in images if not image.is_file()]
        if missing:
            raise DataError(f"case {case!r} has a label file but no image {missing[0]!r} in imagesTr; restore it")
        yield FoundCase(site, case, case, images, mask)


def classes(source: Path) -> Classes:
    """The labels of `dataset.json`; `ignore` is left out, and regions (several ids for one label) are refused.

    Raises:
        DataError: A label is no id, or a region.
    """
    labels = read_description(source, "file_ending").get("labels", {})
    found: dict[str, list[int]] = {}
    for name, value in labels.items():
        if name in ("background", "ignore"):
            continue
        if isinstance(value, bool) or not isinstance(value, int):
            raise DataError(
                f"dataset.json gives the label {name!r} as {value!r}; regions of several ids are not imported: write data.classes by hand"
            )
        found[name] = [value]
    return found


LAYOUT = Layout(
    "nnunet",
    "nnU-Net raw data (version 2), one site; several such folders are several sites",
    "dataset.json with file_ending, imagesTr/<case>_0000<ending> and labelsTr/<case><ending>",
    find,
    classes,
)
