"""The result files of a measurement: JSON with command, commit, date, machine, versions, seeds and figures, and Markdown."""

import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch

from pfedsam.core import atomic
from pfedsam.report.summary_file import collect_versions


def write_result(
    folder: Path,
    name: str,
    *,
    command: str,
    seeds: Sequence[int],
    figures: Mapping[str, float | None],
    table: str,
    **more: object,
) -> None:
    """Write `NAME.json` and `NAME.md` to a folder, which is created if it does not exist.

    Args:
        folder: folder for the files.
        name: name of the files.
        command: the command that reproduces the files, with DIR for the data folder.
        seeds: the seeds of the runs.
        figures: the headline numbers; None where a number was not measured.
        table: the tables in Markdown.
        more: further entries of the JSON.

    Raises:
        StoreError: a file could not be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    result = {
        "command": command,
        "commit": commit(),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        "versions": collect_versions(),
        "seeds": list(seeds),
        "figures": dict(figures),
        **more,
    }
    atomic.write_json(folder / f"{name}.json", result, mode=0o644)
    atomic.write_text(folder / f"{name}.md", table.rstrip() + "\n", mode=0o644)


def commit() -> str | None:
    """The commit of the running source code; None outside a repository."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return found.stdout.strip() or None


def machine() -> str:
    """Processor, number of cores, instruction sets that affect matrix products, and GPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    facts = dict(line.split(":", 1) for line in lines if ":" in line)
    facts = {key.strip(): value.strip() for key, value in facts.items()}
    flags = {"avx2", "avx512f", "avx512_bf16", "amx_bf16"} & set(facts.get("flags", "").split())
    processor = facts.get("model name", platform.processor() or platform.machine())
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{processor}, {os.cpu_count()} cores, {' '.join(sorted(flags))}; {gpu}"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
