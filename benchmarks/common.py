"""What every benchmark writes: one JSON with command, commit, date, machine, versions, seeds and figures, and a table beside it."""

import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path

from pfedsam.report.summary_file import collect_versions

RESULTS = Path(__file__).parent / "results"


def write_result(
    name: str, *, command: str, seeds: Sequence[int], figures: Mapping[str, float | None], table: str, **more: object
) -> None:
    """`benchmarks/results/NAME.json` and `NAME.md`.

    Args:
        name: of the files.
        command: that makes them, with DIR for the data folder.
        seeds: that were used.
        figures: the headline numbers; None where not measured.
        table: Markdown.
        more: further entries of the JSON, such as settings.
    """
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    result = {
        "command": command,
        "commit": commit,
        "date": date.today().isoformat(),
        "machine": machine(),
        "versions": collect_versions(),
        "seeds": list(seeds),
        "figures": dict(figures),
        **more,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
    (RESULTS / f"{name}.md").write_text(table.rstrip() + "\n")


def machine() -> str:
    """Processor, cores and instruction sets that matter for matrix products."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    facts = dict(line.split(":", 1) for line in lines if ":" in line)
    facts = {key.strip(): value.strip() for key, value in facts.items()}
    flags = {"avx2", "avx512f", "avx512_bf16", "amx_bf16"} & set(facts.get("flags", "").split())
    processor = facts.get("model name", platform.processor() or platform.machine())
    return f"{processor}, {os.cpu_count()} cores, {' '.join(sorted(flags))}; no GPU used"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
