"""Makes the table of differences at the top of docs/evidence.md from the result files of `pfedsam bench accuracy`.

    python benchmarks/overview.py

Writes benchmarks/results/overview.md. Nothing is computed: each number stands in one of the files that `TABLES` names.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common import RESULTS, markdown

from pfedsam.core import atomic

TABLES = {
    "accuracy-retina-4": ("retina", "4 labels"),
    "accuracy-retina-8": ("retina", "8 labels"),
    "accuracy-retina": ("retina", "all, 400 steps"),
    "accuracy-nuclei-4": ("nuclei", "4 labels"),
    "accuracy-nuclei-8": ("nuclei", "8 labels"),
    "accuracy-nuclei": ("nuclei", "all, 400 steps"),
    "accuracy-disc-4": ("optic disc", "4 labels"),
    "accuracy-disc-8": ("optic disc", "8 labels"),
    "accuracy-disc": ("optic disc", "all, 400 steps"),
    "accuracy-disc-fedmsa": ("optic disc", "all, 400 steps, a second time"),
    "accuracy-cardiac": ("cardiac MRI", "all, 800 steps"),
    "accuracy-cardiac-1600": ("cardiac MRI", "all, 1,600 steps"),
}
"""Result file -> the data, and the labelled images of a site."""
METHODS = {
    "local-only": ("local-only",),
    "fedavg": ("fedavg",),
    "fedavg-finetuned": ("fedavg-finetuned",),
    "fedmsa": ("fedmsa",),
    "fedbn": ("fedbn",),
    "local U-Net": ("unet-local-4e-3", "unet-local"),
}
"""Column -> the names of its method in the files; the first one that a file has."""


def row(content: Mapping[str, Any]) -> list[str]:
    """The cells of a result file: pfedsam's Dice with the worst site, and its differences from the other methods.

    A difference whose interval excludes 0 is bold; the cell of a method that was not run is empty.
    """
    figures, comparisons = content["figures"], content["comparisons"]
    cells = [f"{figures['dice_mean.pfedsam']:.1f} ({figures['dice_worst_site.pfedsam']:.1f})"]
    for names in METHODS.values():
        found = next((comparisons[name] for name in names if name in comparisons), None)
        cells.append(_difference(found) if found else "")
    return cells


def _difference(comparison: Mapping[str, Any]) -> str:
    low, high = comparison["interval"]
    text = f"{comparison['difference']:+.1f}"
    return text if low <= 0 <= high else f"**{text}**"


def table(results: Path) -> str:
    """The table in Markdown, from the files in a folder."""
    head = ["data", "labelled images of a site", "pfedsam (worst site)", *METHODS]
    rows = [[*named, *row(json.loads((results / f"{file}.json").read_text("utf-8")))] for file, named in TABLES.items()]
    return markdown(head, rows)


if __name__ == "__main__":
    atomic.write_text(RESULTS / "overview.md", table(RESULTS) + "\n", mode=0o644)
