"""Counts the faults of users and attackers that do harm without a message.

    python benchmarks/faults.py [FIGURE ...]

There is one function for each figure. No data are needed, because the tests generate them. Writes benchmarks/results/faults.json.
"""

import importlib.util
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import fault_studies as faults
import torch
from common import write_part

from pfedsam.engine import rounds, run_end
from pfedsam.federation.bounds import change_norm

ROOT = Path(__file__).resolve().parent.parent
SEED = 0


def silent_data_faults() -> dict[str, Any]:
    """The kinds of wrong but well-formed data that `data check` does not report, and the number of its warnings about clean sites."""
    faulty = _from_tests("helpers/faulty_sites.py")
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


def crafted_replies_that_end_a_study() -> dict[str, Any]:
    """How many of the crafted replies of one of four sites end the study; it should be none."""
    ended = []
    with tempfile.TemporaryDirectory() as root:
        recording = faults.record(Path(root))
        for number, (what, (_, change)) in enumerate(faults.CRAFTED.items()):
            try:
                with _no_page():
                    faults.replay(recording, Path(root) / f"replay{number}", change)
            except Exception as error:  # noqa: BLE001 - whatever ended the study is the finding
                ended.append(f"{what}: {type(error).__name__}")
    return {"crafted_replies_that_end_a_study": len(ended), "crafted_replies": len(faults.CRAFTED), "ended_by": ended}


def max_shift_of_one_site() -> dict[str, Any]:
    """The largest change of the shared parameters that one of four sites causes in a round, divided by that of four honest sites."""
    largest, by = 0.0, ""
    for codec in ("fp32", "int4"):
        with tempfile.TemporaryDirectory() as root:
            recording = faults.record(Path(root), codec=codec)
            honest = _shift(recording, Path(root) / "honest", faults.honest)
            for number, (what, change) in enumerate(attacks(recording).items()):
                found = _shift(recording, Path(root) / f"attack{number}", change) / honest
                if found > largest:
                    largest, by = found, f"{codec}, {what}"
    return {"max_shift_of_one_site": round(largest, 3), "max_shift_by": by}


def attacks(recording: faults.Recording) -> dict[str, faults.Change]:
    """Changed updates of several sizes and directions, each with the site's true number of cases, the smallest and the largest."""
    generator = torch.Generator().manual_seed(SEED)
    bound = recording.manifest.max_change

    def scaled(factor: float) -> Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
        return lambda change: {name: factor * value for name, value in change.items()}

    def of_norm(norm: float, sign: float) -> Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
        def make(change: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            zeros = {name: torch.zeros_like(value) for name, value in change.items()}
            return scaled(sign * norm / change_norm(zeros, change))(change)

        return make

    def random_of_norm(norm: float) -> Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
        return lambda change: of_norm(norm, 1.0)(
            {name: torch.randn(value.shape, generator=generator) for name, value in change.items()}
        )

    changes = {
        "nothing": scaled(0.0),
        "sign turned": scaled(-1.0),
        "times 100": scaled(100.0),
        "a constant of 9e5": lambda change: {name: torch.full_like(value, 9e5) for name, value in change.items()},
    }
    for part in (0.01, 0.1, 0.3, 0.9999):
        changes |= {
            f"{part} of the bound, forwards": of_norm(part * bound, 1.0),
            f"{part} of the bound, backwards": of_norm(part * bound, -1.0),
            f"{part} of the bound, at random": random_of_norm(part * bound),
        }
    return {
        f"{what}, {'its own count' if cases is None else f'{cases} cases'}": faults.crafted_update(
            recording, change, cases
        )
        for what, change in changes.items()
        for cases in (None, 1, 1_000_000)
    }


def _shift(recording: faults.Recording, folder: Path, change: faults.Change) -> float:
    with _no_page():
        study = faults.replay(recording, folder, change)
    return change_norm(recording.start, faults.shared_after(study))


@contextmanager
def _no_page() -> Iterator[None]:
    """Write no page and no adapter, which take longer than the rest of a study."""
    with (
        mock.patch.object(run_end, "write_page", lambda folder: folder),
        mock.patch.object(rounds, "export_adapter", return_value=None),
        mock.patch.object(rounds, "build_model", return_value=None),
    ):
        yield


def silent_damage() -> dict[str, Any]:
    """The damages (cut, flipped, zeroed, missing) to files from which a run or study is resumed that silently change its result."""
    return _recorded("tests/engine/test_damage.py", "silent_damage", "damages")


def orphan_processes() -> dict[str, Any]:
    """The processes that still run 15 s after `pfedsam site start` was killed while it or its job's process started, over ten kills."""
    return _recorded("tests/system/test_orphans.py", "orphan_processes", "kills_during_start")


def server_memory_for_hostile_message_mb() -> dict[str, Any]:
    """Growth of the coordinator's resident memory while a member sends messages of 800 MB and holds 600 idle connections."""
    name = "server_memory_for_hostile_message_mb"
    return _recorded("tests/system/test_long_messages.py", name)


FIGURES: dict[str, Callable[[], dict[str, Any]]] = {
    "silent_data_faults": silent_data_faults,
    "crafted_replies_that_end_a_study": crafted_replies_that_end_a_study,
    "max_shift_of_one_site": max_shift_of_one_site,
    "silent_damage": silent_damage,
    "orphan_processes": orphan_processes,
    "server_memory_for_hostile_message_mb": server_memory_for_hostile_message_mb,
}


def _recorded(path: str, *names: str) -> dict[str, Any]:
    """The sums of the values that the tests of a file recorded under these names, whether or not the tests passed.

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
    """Measure the named figures, or all of them; the other figures in the file are kept."""
    for name in sys.argv[1:] or list(FIGURES):
        write_part("faults", name, FIGURES[name](), command=f"python benchmarks/faults.py {name}")


if __name__ == "__main__":
    main()
