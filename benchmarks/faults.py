"""Faults that users and attackers make, counted where they do harm in silence.

    python benchmarks/faults.py [FIGURE ...]

One function a figure. Needs no data: the generators lie in the tests. Writes benchmarks/results/faults.json.
"""

import importlib.util
import json
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

from pfedsam.core import atomic
from pfedsam.report.result_file import commit, machine

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks" / "results" / "faults.json"


def silent_data_faults() -> dict[str, Any]:
    """Data that are wrong and well-formed, and that `data check` says nothing about; clean sites that it warns of."""
    faulty = _from_tests("data/faulty_sites.py")
    silent = []
    for name, fault in faulty.FAULTS.items():
        with tempfile.TemporaryDirectory() as folder:
            if not faulty.is_told(fault, Path(folder)):
                silent.append(name)
    with tempfile.TemporaryDirectory() as folder:
        faulty.clean_study(Path(folder))
        report = faulty.read_and_check(Path(folder))
    return {
        "silent_data_faults": len(silent),
        "silent_data_faults_tried": len(faulty.FAULTS),
        "silent_data_faults_names": silent,
        "warnings_of_clean_sites": len(report.warnings) + len(report.problems),
    }


def silent_damage() -> dict[str, Any]:
    """Damages (cut, flipped, zeroed, missing) to any file that a run or study is resumed from that end with other bits and no word."""
    return _recorded("tests/engine/test_damage.py", "silent_damage", "damages")


def orphan_processes() -> dict[str, Any]:
    """Processes that are left 15 s after `pfedsam site start` was killed while it and its job's process started, over ten kills."""
    return _recorded("tests/system/test_orphans.py", "orphan_processes", "kills_during_start")


FIGURES: dict[str, Callable[[], dict[str, Any]]] = {
    "silent_data_faults": silent_data_faults,
    "silent_damage": silent_damage,
    "orphan_processes": orphan_processes,
}


def _recorded(path: str, *names: str) -> dict[str, Any]:
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


def _from_tests(path: str) -> ModuleType:
    """A module of the tests that needs no pytest.

    Raises:
        FileNotFoundError: there is none.
    """
    file = ROOT / "tests" / path
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module
    spec.loader.exec_module(module)
    return module


def main() -> None:
    """Make the figures that are named, or all of them; the others stay."""
    for name in sys.argv[1:] or list(FIGURES):
        content = json.loads(RESULT.read_text("utf-8")) if RESULT.exists() else {"figures": {}, "made_by": {}}
        content["figures"] |= FIGURES[name]()
        content["made_by"][name] = {
            "command": f"python benchmarks/faults.py {name}",
            "commit": commit(),
            "date": datetime.now(UTC).date().isoformat(),
            "machine": machine(),
        }
        atomic.write_json(RESULT, content, mode=0o644)


if __name__ == "__main__":
    main()
