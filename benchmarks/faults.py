"""Figures on faults and attacks, one function each, merged into `benchmarks/results/faults.json`.

python benchmarks/faults.py [FIGURE ...]
"""

import json
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from pfedsam.core import atomic
from pfedsam.report.result_file import commit, machine

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "faults.json"


def silent_damage() -> dict[str, int]:
    """Damages (cut, flipped, zeroed, missing) to any file that a run or study is resumed from that end with other bits and no word."""
    return _from_tests("tests/engine/test_damage.py", "silent_damage", "damages")


def orphan_processes() -> dict[str, int]:
    """Processes that are left 15 s after `pfedsam site start` was killed while it and its job's process started, over ten kills."""
    return _from_tests("tests/system/test_orphans.py", "orphan_processes", "kills_during_start")


FIGURES: dict[str, Callable[[], dict[str, int]]] = {
    "silent_damage": silent_damage,
    "orphan_processes": orphan_processes,
}


def _from_tests(path: str, *names: str) -> dict[str, int]:
    """The sums of what the tests of a file recorded under these names, whether or not they passed.

    Raises:
        SystemExit: a test recorded nothing.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-m", "", f"--junitxml={report}", path]
        subprocess.run(command, cwd=ROOT, check=False)
        found = [(one.get("name"), int(one.get("value") or 0)) for one in ElementTree.parse(report).iter("property")]
    missing = set(names) - {name for name, _ in found}
    if missing:
        raise SystemExit(f"{path} recorded no {', '.join(sorted(missing))}: see what its tests say above.")
    return {name: sum(value for one, value in found if one == name) for name in names}


def main() -> None:
    """Make the figures that are named, or all of them."""
    wanted = sys.argv[1:] or list(FIGURES)
    for name in wanted:
        content = json.loads(RESULT.read_text()) if RESULT.exists() else {"figures": {}, "made_by": {}}
        content["figures"] |= FIGURES[name]()
        today = datetime.now(UTC).date().isoformat()
        content["made_by"][name] = {
            "command": f"python benchmarks/faults.py {name}",
            "commit": commit(),
            "date": today,
            "machine": machine(),
        }
        atomic.write_json(RESULT, content, mode=0o644)


if __name__ == "__main__":
    main()
