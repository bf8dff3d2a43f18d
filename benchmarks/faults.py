"""Figures of what faults and attacks can do, into `benchmarks/results/faults.json`; a figure that is made anew replaces the earlier one.

    .venv/bin/python benchmarks/faults.py [FIGURE ...]

Each function below makes one figure, or several that belong together, in a folder of its own; without names all are made.
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any
from unittest import mock

import fault_studies as faults
import torch

from pfedsam.engine import rounds, run_end
from pfedsam.federation.bounds import change_norm
from pfedsam.report.result_file import commit, machine
from pfedsam.report.summary_file import collect_versions

RESULT = Path(__file__).parent / "results" / "faults.json"
SEED = 0
Figures = dict[str, Any]


def crafted_replies_that_end_a_study(folder: Path) -> Figures:
    """Of all crafted replies of one of four sites, how many end the study; 0 is right."""
    recording = faults.record(folder)
    ended = []
    for number, (what, (_, change)) in enumerate(faults.CRAFTED.items()):
        try:
            with _no_page():
                faults.replay(recording, folder / f"replay{number}", change)
        except Exception as error:  # noqa: BLE001 - whatever ended the study is the finding
            ended.append(f"{what}: {type(error).__name__}")
    return {"crafted_replies_that_end_a_study": len(ended), "crafted_replies": len(faults.CRAFTED), "ended_by": ended}


def max_shift_of_one_site(folder: Path) -> Figures:
    """How far one of four sites moves the shared parameters in one round, as a multiple of the round in which all are honest."""
    largest, by = 0.0, ""
    for codec in ("fp32", "int4"):
        (folder / codec).mkdir()
        recording = faults.record(folder / codec, codec=codec)
        honest = _shift(recording, folder / codec / "honest", faults.honest)
        for number, (what, change) in enumerate(attacks(recording).items()):
            found = _shift(recording, folder / codec / f"attack{number}", change) / honest
            if found > largest:
                largest, by = found, f"{codec}, {what}"
    return {"max_shift_of_one_site": round(largest, 3), "max_shift_by": by}


def attacks(recording: faults.Recording) -> dict[str, faults.Change]:
    """Updates of any size and direction, each with the site's own count of cases, and with the smallest and the largest."""
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
    """Neither page nor exported adapter, which take longer than the rest."""
    with (
        mock.patch.object(run_end, "write_page", lambda folder: folder),
        mock.patch.object(rounds, "export_adapter", return_value=None),
        mock.patch.object(rounds, "build_model", return_value=None),
    ):
        yield


FIGURES: dict[str, Callable[[Path], Figures]] = {
    made.__name__: made for made in (crafted_replies_that_end_a_study, max_shift_of_one_site)
}


def write(figures: Figures, name: str) -> None:
    """Put figures into the result file, with what made them."""
    content: Figures = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    made = {"commit": commit(), "seed": SEED, "date": datetime.now(UTC).date().isoformat()}
    content |= figures | {"command": "benchmarks/faults.py", "machine": machine()}
    content["made"] = content.get("made", {}) | {name: made}
    content["versions"] = {**collect_versions(), "nvflare": metadata.version("nvflare")}
    RESULT.write_text(json.dumps(dict(sorted(content.items())), indent=2) + "\n")


def main() -> None:
    """Make the figures that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("figures", nargs="*", choices=[*FIGURES, []], help="all without a name")
    torch.set_num_threads(1)
    for name in parser.parse_args().figures or FIGURES:
        with tempfile.TemporaryDirectory() as folder:
            figures = FIGURES[name](Path(folder))
        write(figures, name)
        print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
