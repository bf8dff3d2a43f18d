"""Functions that the benchmarks share; they write files under benchmarks/results in the form of `pfedsam.report.result_file`."""

import json
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from pfedsam.core import atomic
from pfedsam.experiment.suite import load_suite
from pfedsam.report import result_file
from pfedsam.report.result_file import commit, machine, markdown

if TYPE_CHECKING:
    import nibabel as nib

__all__ = ["NUCLEI_PATIENTS", "RESULTS", "gpu_name", "machine", "markdown", "middle", "write_part", "write_result"]

RESULTS = Path(__file__).parent / "results"
NUCLEI_PATIENTS: str = load_suite("nuclei").options["data"]["patient_pattern"]
"""The regular expression of the shipped suite that finds the patient in the name of a file of nuclei."""


def write_result(
    name: str, *, command: str, seeds: Sequence[int], figures: Mapping[str, float | None], table: str, **more: object
) -> None:
    """Write `benchmarks/results/NAME.json` and `NAME.md`; the arguments are those of `pfedsam.report.result_file.write_result`."""
    result_file.write_result(RESULTS, name, command=command, seeds=seeds, figures=figures, table=table, **more)


def write_part(name: str, part: str, figures: Mapping[str, object], *, command: str, **more: object) -> None:
    """Put the figures of one part of a benchmark into `benchmarks/results/NAME.json`; those of the other parts are kept.

    Args:
        name: the name of the file without its ending.
        part: the name of the part.
        figures: the figures of the part by name.
        command: the command that measures this part alone.
        more: further entries of the file.
    """
    path = RESULTS / f"{name}.json"
    content = json.loads(path.read_text("utf-8")) if path.exists() else {"figures": {}, "made_by": {}}
    content |= more
    content["figures"] |= figures
    content["made_by"][part] = {
        "command": command,
        "commit": commit(),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
    }
    atomic.write_json(path, content, mode=0o644)


def middle(volume: "nib.Nifti1Image", side: int) -> "nib.Nifti1Image":
    """The volume with its slices cropped to the middle `side` x `side` pixels; an axis that is shorter is not cropped."""
    starts = [max(0, (size - side) // 2) for size in volume.shape[:2]]
    return volume.slicer[starts[0] : starts[0] + side, starts[1] : starts[1] + side]


def gpu_name() -> str:
    """The name of the GPU in the names of files, such as `h200` for an NVIDIA H200."""
    found = re.search(r"\b[A-Z]+\d+\w*", torch.cuda.get_device_name())
    return found.group().lower() if found else "gpu"
