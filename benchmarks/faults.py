"""Faults that users and attackers make, counted where they do harm in silence.

    python benchmarks/faults.py [FIGURE ...]

One function a figure. Needs no data: the generators lie in the tests. Writes benchmarks/results/faults.json.
"""

import importlib.util
import json
import sys
import tempfile
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


FIGURES: dict[str, Callable[[], dict[str, Any]]] = {"silent_data_faults": silent_data_faults}


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
