"""First comparison on real multi-site data: four methods on the nuclei sites, one seed.

    python benchmarks/first_nuclei.py --data DIR/nuclei --out runs/first-nuclei

DIR/nuclei has one folder per site with images/ and masks/ (id 1 = nucleus). Writes benchmarks/results/first-nuclei.json and .md.
Resumable: run the same command again.
"""

import argparse
from pathlib import Path

from common import NUCLEI_PATIENTS, markdown, write_result

from pfedsam.engine.run import run
from pfedsam.experiment.options import RunOptions
from pfedsam.model.options import ModelOptions
from pfedsam.report.page import write_comparison
from pfedsam.report.summary_file import Summary, read_summary

METHODS = ("local-only", "fedavg", "pfedsam", "centralized")
STEPS = 16
"""Steps of a round, and of the last phase."""


def options(data: Path, method: str, out: Path, rounds: int) -> RunOptions:
    """The configuration of one method; the fluorescence sites are dark, so contrast is stretched everywhere."""
    sites = {folder.name: str(folder.resolve()) for folder in sorted(data.iterdir()) if folder.is_dir()}
    return RunOptions.model_validate(
        {
            "name": "first-nuclei",
            "seed": 0,
            "method": method,
            "data": {
                "sites": sites,
                "classes": {"nucleus": [1]},
                "patient_pattern": NUCLEI_PATIENTS,
                "image": {"contrast": "percentile"},
            },
            "training": {"rounds": rounds, "patience": None, "steps_per_round": STEPS, "final_steps": STEPS},
            "evaluation": {"validate_every": 4},
            "runtime": {"workers": 2, "cache_folder": str(out.resolve() / "cache")},
        }
    )


def figures(runs: dict[str, Summary]) -> dict[str, float | None]:
    """The headline numbers, Dice in 0..1."""
    numbers: dict[str, float | None] = {}
    for method, summary in runs.items():
        mean = summary.mean.in_use
        worst = summary.sites[summary.worst_site].in_use if summary.worst_site else None
        numbers[f"dice_mean.{method}"] = mean.dice if mean else None
        numbers[f"dice_worst_site.{method}"] = worst.dice if worst else None
        numbers[f"seconds.{method}"] = summary.seconds["total"]
        numbers[f"up_bytes.{method}"] = summary.communication.up_bytes_per_site_round
    return numbers


def table(runs: dict[str, Summary]) -> str:
    """Sites x methods, Dice of the model in use; mean and worst site below."""
    rows = []
    for site in next(iter(runs.values())).sites:
        entries = [summary.sites[site].in_use for summary in runs.values()]
        rows.append([site, *(f"{e.dice:.3f}" if e and e.dice is not None else "-" for e in entries)])
    numbers = figures(runs)
    for row, key in (("**mean**", "dice_mean"), ("worst site", "dice_worst_site")):
        rows.append([row, *(f"{numbers[f'{key}.{m}']:.3f}" for m in runs)])
    rows.append(["up, kB a site and round", *(f"{numbers[f'up_bytes.{m}'] / 1000:.0f}" for m in runs)])  # type: ignore[operator]
    rows.append(["seconds", *(f"{numbers[f'seconds.{m}']:.0f}" for m in runs)])
    return markdown(["site", *runs], rows)


def main() -> None:
    """Run what is missing, then write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=8)
    arguments = parser.parse_args()
    runs: dict[str, Summary] = {}
    for method in METHODS:
        folder = arguments.out / method
        if not (folder / "summary.json").exists():
            configured = options(arguments.data, method, arguments.out, arguments.rounds)
            run(configured, folder, resume=(folder / "config.yaml").exists(), progress=lambda e: print(e, flush=True))
        runs[method] = read_summary(folder / "summary.json")
        write_results(runs, arguments.rounds)
    write_comparison({method: arguments.out / method for method in runs}, arguments.out / "comparison.html")


def write_results(runs: dict[str, Summary], rounds: int) -> None:
    """JSON and Markdown under benchmarks/results."""
    write_result(
        "first-nuclei",
        command=f"python benchmarks/first_nuclei.py --data DIR/nuclei --out runs/first-nuclei --rounds {rounds}",
        seeds=[0],
        figures=figures(runs),
        table=table(runs),
        settings={
            "rounds": rounds,
            "steps_per_round": STEPS,
            "final_steps": STEPS,
            "backbone": ModelOptions().backbone,
        },
        sites={m: {n: e.in_use.dice if e.in_use else None for n, e in s.sites.items()} for m, s in runs.items()},
    )


if __name__ == "__main__":
    main()
