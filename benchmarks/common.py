"""What every benchmark writes: files under benchmarks/results, in the form of `pfedsam.report.result_file`."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from pfedsam.report import result_file
from pfedsam.report.result_file import machine, markdown

__all__ = ["RESULTS", "gpu_name", "machine", "markdown", "write_result"]

RESULTS = Path(__file__).parent / "results"


def write_result(
    name: str, *, command: str, seeds: Sequence[int], figures: Mapping[str, float | None], table: str, **more: object
) -> None:
    """`benchmarks/results/NAME.json` and `NAME.md`; the arguments are those of `pfedsam.report.result_file.write_result`."""
    result_file.write_result(RESULTS, name, command=command, seeds=seeds, figures=figures, table=table, **more)


def gpu_name() -> str:
    """What a GPU is called in the names of files: `h200` for an NVIDIA H200."""
    found = re.search(r"\b[A-Z]+\d+\w*", torch.cuda.get_device_name())
    return found.group().lower() if found else "gpu"
