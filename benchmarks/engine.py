"""What the one engine costs: a round and its memory, against the two federations that it replaced.

    python benchmarks/engine.py DATA [--before COMMIT] [--repeats 5]

DATA is the folder of the suite nuclei. The same study runs by turns with the source of COMMIT and with this one, each run a process of its
own. Writes benchmarks/results/engine.json: medians over the repeats, and their ratios (now / before). Measure on a machine that does
nothing else.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import yaml
from common import NUCLEI_PATIENTS, write_result

ROOT = Path(__file__).resolve().parent.parent
BEFORE = "f36e821"
ROUNDS = 6
SITES = ("brightfield_cyto", "fluo_256", "fluo_360")
PROGRAM = "import sys; from pfedsam.cli.main import main; sys.exit(main())"
MIB = 1024.0


@contextmanager
def source_of(revision: str) -> Iterator[Path]:
    """The folder `src` of another commit."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--detach", str(tree), revision], check=True, capture_output=True)
        try:
            yield tree / "src"
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=True, capture_output=True)


def write_study(data: Path, path: Path) -> None:
    """A study that both sources read: the suite's training, without validation, at a few sites."""
    content = {
        "name": "engine",
        "data": {
            "sites": {name: str((data / name).resolve()) for name in SITES},
            "classes": {"nucleus": [1]},
            "patient_pattern": NUCLEI_PATIENTS,
            "image": {"contrast": "percentile"},
        },
        "training": {"rounds": ROUNDS, "steps_per_round": 4, "batch_size": 4},
        "evaluation": {"validate_every": 0},
        "runtime": {"threads": 1, "workers": 1, "device": "cpu", "cache_folder": str(path.parent / "cache")},
    }
    path.write_text(yaml.safe_dump(content))


def measure(source: Path, study: Path, out: Path) -> tuple[float, float]:
    """Seconds a round, and the largest resident memory of the process in MiB, of one run.

    Raises:
        SystemExit: the run failed.
    """
    environment = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PROGRAM, "run", str(study), "--out", str(out)]
    with (out.parent / "messages.txt").open("wb") as messages:
        process = subprocess.Popen(command, env=environment, stdout=messages, stderr=messages)
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit((out.parent / "messages.txt").read_text()[-2000:])
    seconds = json.loads((out / "summary.json").read_text("utf-8"))["seconds"]["train"]
    return seconds / ROUNDS, usage.ru_maxrss / MIB


def main() -> None:
    """Measure by turns and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--before", default=BEFORE, help="commit of the source that is compared with")
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    found: dict[str, list[tuple[float, float]]] = {"before": [], "now": []}
    with source_of(given.before) as old, tempfile.TemporaryDirectory() as folder:
        study, sources = Path(folder) / "study.yaml", {"before": old, "now": ROOT / "src"}
        write_study(given.data, study)
        for name, source in sources.items():  # fills the cache of frozen features
            measure(source, study, Path(folder) / f"first-{name}")
        for repeat in range(given.repeats):
            for name, source in sources.items():
                found[name].append(measure(source, study, Path(folder) / f"{name}{repeat}"))
                print(name, repeat, *found[name][-1], flush=True)
    round_s = {name: median(seconds for seconds, _ in runs) for name, runs in found.items()}
    memory = {name: median(mib for _, mib in runs) for name, runs in found.items()}
    rows = [f"| {name} | {round_s[name]:.2f} | {memory[name]:.0f} |" for name in found]
    write_result(
        "engine",
        command=f"python benchmarks/engine.py DATA --before {given.before} --repeats {given.repeats}",
        seeds=[0],
        figures={
            "round_time_ratio": round(round_s["now"] / round_s["before"], 3),
            "memory_ratio": round(memory["now"] / memory["before"], 3),
            **{f"round_s.{name}": round(value, 3) for name, value in round_s.items()},
            **{f"memory_mib.{name}": round(value, 1) for name, value in memory.items()},
        },
        table="\n".join(["| source | seconds a round | MiB |", "|---|---|---|", *rows]),
        before=given.before,
        rounds=ROUNDS,
        sites=list(SITES),
        runs={name: [[round(a, 3), round(b, 1)] for a, b in runs] for name, runs in found.items()},
    )


if __name__ == "__main__":
    main()
