"""Dice of single test cases, from the file that each site of a run writes at the end (`sites/<name>/scores.json`)."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pfedsam.core.errors import StoreError
from pfedsam.core.files import read_regular


@dataclass(frozen=True)
class CaseDice:
    """Dice of one case."""

    case: str
    patient: str
    dice: Mapping[str, float | None]
    """Dice in 0..1 by class; None where undefined."""


def read_case_dice(path: Path, model: str) -> list[CaseDice]:
    """Dice of a site's test cases, in the order of the file; in files of version 0.1, every case is a patient of its own.

    Args:
        path: the file.
        model: the name under which the model is reported, `personal` or `shared`.

    Raises:
        StoreError: the file cannot be read, or does not contain scores of this model.
    """
    try:
        cases = json.loads(read_regular(path))["models"][model]
        return [
            CaseDice(
                str(one["case"]),
                str(one.get("patient", one["case"])),
                {
                    name: None if scores["dice"] is None else float(scores["dice"])
                    for name, scores in one["classes"].items()
                },
            )
            for one in cases
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(
            f"sites/{path.parent.name}/{path.name} cannot be read as scores. Make it again with `pfedsam evaluate`."
        ) from error
