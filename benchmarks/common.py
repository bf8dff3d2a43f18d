"""What every benchmark writes: files under benchmarks/results, in the form of `pfedsam.report.result_file`."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from pfedsam.report import result_file
from pfedsam.report.result_file import machine, markdown

__all__ = ["RESULTS", "machine", "markdown", "write_result"]

RESULTS = Path(__file__).parent / "results"


def write_result(
    name: str, *, command: str, seeds: Sequence[int], figures: Mapping[str, float | None], table: str, **more: object
) -> None:
    """`benchmarks/results/NAME.json` and `NAME.md`; the arguments are those of `pfedsam.report.result_file.write_result`."""
    result_file.write_result(RESULTS, name, command=command, seeds=seeds, figures=figures, table=table, **more)
