"""The result of an onboarding, `onboarding.json`: the scores of each option on the new site's test cases; part of the site's report."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from pfedsam.core import sealed
from pfedsam.core.errors import StoreError
from pfedsam.report.format import format_value

RESULT: Final = "onboarding.json"
NOTHING, LOCAL_PART, EVERYTHING, ALONE = "nothing", "local part", "everything", "alone"
WAYS: Final = {
    NOTHING: "the shared model as it is",
    LOCAL_PART: "the local part trained, the shared part fixed",
    EVERYTHING: "everything trained from the shared start",
    ALONE: "everything trained from the backbone, without the federation",
}
_MEASURES: Final = {"dice": 3, "iou": 3, "hd95": 2, "assd": 2}
"""The measures in the order of the table, each with its number of digits."""


@dataclass(frozen=True)
class Onboarded:
    """The scores of each onboarding option on the new site's held-out cases."""

    ways: dict[str, dict[str, float | None]]
    """Onboarding option -> the measures of its model, Dice and IoU in 0..1; `nothing` only if the method has a shared model."""
    trained_on: int
    tested_on: int
    in_use: str
    """The onboarding option whose model the folder contains."""
    validated_on: int | None = None
    """Cases of the validation part, which are not used here; None in the results of earlier versions."""


@dataclass(frozen=True)
class WayRow:
    """An onboarding option as text."""

    way: str
    saved: bool
    """Whether the folder contains its model."""
    values: tuple[str, ...]
    """Dice, IoU, HD95, ASSD."""
    description: str


def way_rows(found: Onboarded) -> Iterator[WayRow]:
    """A row for each onboarding option."""
    for way, measures in found.ways.items():
        values = tuple(format_value(measures[measure], digits) for measure, digits in _MEASURES.items())
        yield WayRow(way, way == found.in_use, values, WAYS[way])


def write_onboarded(folder: Path, key: str, found: Onboarded) -> None:
    """Write the result into the folder of an onboarding.

    Args:
        folder: the folder.
        key: a digest of all that determines the result.
        found: the result.

    Raises:
        StoreError: the file could not be written.
    """
    sealed.write_json(folder / RESULT, {"schema": 1, "key": key, **asdict(found)})


def read_onboarded(folder: Path) -> Onboarded | None:
    """The result in a folder; None if the folder is not that of an onboarding, or it has no result yet.

    Raises:
        StoreError: the file is damaged.
    """
    if not (folder / RESULT).exists():
        return None
    remedy = "Remove it to repeat the onboarding."
    content = sealed.read_json(folder / RESULT, remedy)
    if not {"ways", "trained_on", "tested_on", "in_use"} <= set(content) or not set(content["ways"]) <= set(WAYS):
        raise StoreError(f"{RESULT} is damaged: a value is missing or not known. {remedy}")
    numbers = content["trained_on"], content["tested_on"], content["in_use"], content.get("validated_on")
    return Onboarded(content["ways"], *numbers)
