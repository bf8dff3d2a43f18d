"""Dice against the bytes of an update: pFedSAM on the nuclei sites with every codec.

    python benchmarks/communication.py --data DIR/nuclei --out runs/communication

DIR/nuclei has one folder per site with images/ and masks/ (id 1 = nucleus). Writes benchmarks/results/communication-nuclei.json, .md
and .png. Resumable: run the same command again. Seconds count only where a run was not interrupted. Dice is the mean over sites of the
mean over cases; validation is that after the last aggregation, before the last local phase, and is what a choice may be made by.
"""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from math import isclose
from pathlib import Path
from statistics import fmean

from common import RESULTS, markdown, write_result
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pfedsam.experiment.options import RunOptions
from pfedsam.report.figures import PERSONAL, SHARED
from pfedsam.report.records import read_records
from pfedsam.report.summary_file import Summary, read_summary
from pfedsam.runtime.in_process import run

NAME = "communication-nuclei"
EXACT = "fp32"
ALLOWED_LOSS = 0.3
"""Points of Dice that the default codec may cost."""

VARIANTS: Mapping[str, Mapping[str, object]] = {
    "fp32": {"communication": {"codec": "fp32"}},
    "fp16": {"communication": {"codec": "fp16"}},
    "int8": {"communication": {"codec": "int8"}},
    "int4": {"communication": {"codec": "int4"}},
    "int4-no-feedback": {"communication": {"codec": "int4", "error_feedback": False}},
    "int8-2-blocks": {"communication": {"codec": "int8"}, "model": {"adapt_last": 2}},
    "int8-own-output": {"communication": {"codec": "int8"}, "model": {"output_layers": "local"}},
    "int8-no-decoder-lora": {"communication": {"codec": "int8"}, "model": {"lora": {"decoder": False}}},
    "int4-own-output": {"communication": {"codec": "int4"}, "model": {"output_layers": "local"}},
}
CODECS = tuple(VARIANTS)[:5]
"""The variants that are run unless others are named; the rest share fewer parameters."""


@dataclass(frozen=True)
class Point:
    """One variant: means over the seeds, Dice in points."""

    up_bytes: float
    seconds: float
    dice: Mapping[tuple[str, str], float | None]
    """By part (val, test) and model (personal, shared)."""


def options(data: Path, out: Path, variant: str, arguments: argparse.Namespace, seed: int) -> RunOptions:
    """The configuration of one run; the fluorescence sites are dark, so contrast is stretched everywhere."""
    sites = {folder.name: str(folder.resolve()) for folder in sorted(data.iterdir()) if folder.is_dir()}
    return RunOptions.model_validate(
        {
            "name": NAME,
            "seed": seed,
            "method": "pfedsam",
            "data": {
                "sites": sites,
                "classes": {"nucleus": [1]},
                "patient_pattern": r"^(.+)_t\d$",
                "image": {"contrast": "percentile"},
            },
            "training": {
                "rounds": arguments.rounds,
                "steps_per_round": arguments.steps,
                "final_steps": arguments.steps,
            },
            "evaluation": {"validate_every": arguments.rounds},
            "runtime": {"workers": arguments.workers, "cache_folder": str(out.resolve() / f"cache-{seed}")},
            **VARIANTS[variant],
        }
    )


def validation(folder: Path) -> dict[str, float]:
    """Mean over sites of the last validation's Dice, by model."""
    rows = [r for r in read_records(folder / "records.jsonl") if r["kind"] == "validation" and r["dice"] is not None]
    last = max((row["round"] for row in rows), default=-1)
    by_model: dict[str, list[float]] = {}
    for row in rows:
        if row["round"] == last:
            by_model.setdefault(row["model"], []).append(row["dice"])
    return {model: fmean(found) for model, found in by_model.items()}


def point(folders: list[Path]) -> Point:
    """A variant's mean over its runs, one folder a seed."""
    summaries = [read_summary(folder / "summary.json") for folder in folders]
    validated = [validation(folder) for folder in folders]
    dice = {}
    for model in ("personal", "shared"):
        dice["val", model] = mean([found.get(model) for found in validated])
        dice["test", model] = mean([test_dice(summary, model) for summary in summaries])
    return Point(
        up_bytes=fmean(s.communication.up_bytes_per_site_round for s in summaries),
        seconds=fmean(s.seconds["total"] for s in summaries),
        dice=dice,
    )


def test_dice(summary: Summary, model: str) -> float | None:
    """The mean over sites in a summary."""
    entry = summary.mean.personal if model == "personal" else summary.mean.shared
    return entry.dice if entry else None


def mean(values: list[float | None]) -> float | None:
    """The mean in points; None where a value is missing."""
    known = [value for value in values if value is not None]
    return 100 * fmean(known) if len(known) == len(values) and known else None


def smallest(points: Mapping[str, Point]) -> str | None:
    """The variant of fewest bytes whose personal model loses at most `ALLOWED_LOSS` points on validation."""
    key = ("val", "personal")
    exact = points[EXACT].dice[key] if EXACT in points else None
    if exact is None:
        return None
    good = {n: p.up_bytes for n, p in points.items() if (d := p.dice[key]) is not None and d >= exact - ALLOWED_LOSS}
    return min(good, key=lambda name: good[name])


def figures(points: Mapping[str, Point]) -> dict[str, float | None]:
    """The headline numbers: bytes, seconds, and Dice in points."""
    numbers: dict[str, float | None] = {}
    for name, one in points.items():
        numbers[f"up_bytes.{name}"] = one.up_bytes
        numbers[f"seconds.{name}"] = one.seconds
        for (part, model), value in one.dice.items():
            numbers[f"dice_{part}_{model}.{name}"] = value
    return numbers


def table(points: Mapping[str, Point]) -> str:
    """Variants by rows."""
    columns = [(part, model) for part in ("val", "test") for model in ("personal", "shared")]
    header = ["variant", "kB up a site and round", *(f"{part}, {model}" for part, model in columns), "seconds"]
    rows = [
        [name, f"{p.up_bytes / 1000:.1f}", *(_shown(p.dice[column]) for column in columns), f"{p.seconds:.0f}"]
        for name, p in points.items()
    ]
    note = f"Fewest bytes at no more than {ALLOWED_LOSS} points lost on validation (personal): {smallest(points) or 'not measured'}."
    return markdown(header, rows) + "\n\n" + note


def draw(points: Mapping[str, Point], path: Path) -> None:
    """Dice on the test part against bytes, personal and shared model, as PNG."""
    figure = Figure(figsize=(7.2, 4.4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for model, colour, marker in (("personal", PERSONAL, "o"), ("shared", SHARED, "s")):
        found = [(p.up_bytes / 1000, d, n) for n, p in points.items() if (d := p.dice["test", model]) is not None]
        axes.scatter([x for x, _, _ in found], [y for _, y, _ in found], color=colour, marker=marker, label=model)
        for x, y, name in found:
            higher = sum(1 for other, above, _ in found if isclose(other, x, rel_tol=0.05) and above > y)
            place = (4, -11 if higher else 5)  # of two that stand over each other the lower one is named below
            axes.annotate(name, (x, y), xytext=place, textcoords="offset points", fontsize=7, color=colour)
    sizes: list[float] = []
    for size in sorted(p.up_bytes / 1000 for p in points.values()):
        if not sizes or not isclose(size, sizes[-1], rel_tol=0.05):
            sizes.append(size)
    axes.set_xscale("log")
    axes.set_xticks(sizes, [f"{size:.0f}" for size in sizes])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("kB sent by a site in a round")
    axes.set_ylabel("Dice on the test part, points")
    axes.grid(alpha=0.3)
    axes.margins(x=0.2, y=0.15)
    axes.legend(frameon=False, loc="best")
    figure.savefig(path)


def main() -> None:
    """Run what is missing, writing the results after each variant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--steps", type=int, default=12, help="of a site in a round")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(CODECS))
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    points: dict[str, Point] = {}
    for variant in arguments.variants:
        folders = []
        for seed in arguments.seeds:
            folder = arguments.out / f"{variant}-seed{seed}"
            if not (folder / "summary.json").exists():
                configured = options(arguments.data, arguments.out, variant, arguments, seed)
                going = (folder / "config.yaml").exists()
                run(configured, folder, resume=going, progress=lambda event: print(event, flush=True))
            folders.append(folder)
        points[variant] = point(folders)
        write(points, arguments)
        print(table(points), flush=True)


def write(points: Mapping[str, Point], arguments: argparse.Namespace) -> None:
    """JSON, Markdown and PNG under benchmarks/results."""
    settings = {"rounds": arguments.rounds, "steps_per_round": arguments.steps, "final_steps": arguments.steps}
    seeds = " ".join(map(str, arguments.seeds))
    write_result(
        NAME,
        command=f"python benchmarks/communication.py --data DIR/nuclei --out runs/communication --rounds {arguments.rounds} "
        f"--steps {arguments.steps} --seeds {seeds} --variants {' '.join(points)}",
        seeds=arguments.seeds,
        figures=figures(points),
        table=table(points),
        settings=settings,
        smallest_within_allowed_loss=smallest(points),
    )
    draw(points, RESULTS / f"{NAME}.png")


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


if __name__ == "__main__":
    main()
