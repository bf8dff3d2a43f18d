"""Dice against the bytes of an update: pFedSAM on the sites of a suite with every codec, and with fewer shared parameters.

    python benchmarks/communication.py --data DIR --suite retina --out runs/retina --set model.precision=auto

DIR has one folder per site of the suite. Writes benchmarks/results/communication-SUITE.json, .md and .svg. After an interruption, run the
same command again. If --out is the folder of an earlier `pfedsam bench accuracy` with the same --set, its run with fp32 is used. Dice is
that of the model in use, which each site chooses on its validation part.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isclose
from pathlib import Path
from statistics import fmean

from common import RESULTS, markdown, write_result
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pfedsam.bench.plan import Outcome, Plan, Step, run_plan
from pfedsam.experiment.suite import Entry, choose_entries, load_suite
from pfedsam.report.figures import PERSONAL, SHARED

EXACT = "pfedsam"
"""The label of the run with the codec of the suite, which is fp32 in the shipped suites."""
ALLOWED_LOSS = 0.3
"""The largest loss that the default codec may have, in points of Dice."""

VARIANTS: Mapping[str, Mapping[str, object]] = {
    "fp16": {"communication.codec": "fp16"},
    "int8": {"communication.codec": "int8"},
    "int4": {"communication.codec": "int4"},
    "int4-no-feedback": {"communication.codec": "int4", "communication.error_feedback": False},
    "int8-2-blocks": {"communication.codec": "int8", "model.adapt_last": 2},
    "int8-own-output": {"communication.codec": "int8", "model.output_layers": "local"},
    "int8-no-decoder-lora": {"communication.codec": "int8", "model.lora.decoder": False},
    "int4-own-output": {"communication.codec": "int4", "model.output_layers": "local"},
}


@dataclass(frozen=True)
class Point:
    """The means of one variant over its seeds; Dice is in points of 100."""

    up_bytes: float
    """Bytes that a site sends in a round."""
    dice_val: float
    dice_test: float


def points_of(outcome: Outcome) -> dict[str, Point]:
    """The point of each variant that has been run."""
    points = {}
    for label, seeds in outcome.runs.items():
        runs = list(seeds.values())
        points["fp32" if label == EXACT else label] = Point(
            fmean(run.summary.communication.up_bytes_per_site_round for run in runs),
            fmean(fmean(run.validation.values()) for run in runs),
            100
            * fmean(dice for run in runs if (entry := run.summary.mean.in_use) and (dice := entry.dice) is not None),
        )
    return points


def smallest(points: Mapping[str, Point]) -> str | None:
    """The variant with the fewest bytes that loses at most `ALLOWED_LOSS` points on validation; None without a run with fp32."""
    if "fp32" not in points:
        return None
    good = {name: p.up_bytes for name, p in points.items() if p.dice_val >= points["fp32"].dice_val - ALLOWED_LOSS}
    return min(good, key=lambda name: good[name])


def table(points: Mapping[str, Point]) -> str:
    """The table with a row for each variant."""
    header = ["variant", "kB up, a site and round", "validation Dice", "test Dice"]
    rows = [[n, f"{p.up_bytes / 1000:.1f}", f"{p.dice_val:.1f}", f"{p.dice_test:.1f}"] for n, p in points.items()]
    note = (
        f"Fewest bytes at no more than {ALLOWED_LOSS} points lost on validation: {smallest(points) or 'not measured'}."
    )
    return markdown(header, rows) + "\n\n" + note


def draw(points: Mapping[str, Point], path: Path) -> None:
    """Draw the Dice of the validation and the test part against the bytes.

    The name of a variant is above its validation Dice, or below its test Dice if another variant sends about as many bytes.
    """
    figure = Figure(figsize=(8.6, 5.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    named: list[float] = []
    for name, point in sorted(points.items(), key=lambda item: item[1].up_bytes):
        x = point.up_bytes / 1000
        axes.plot([x, x], [point.dice_test, point.dice_val], color="0.8", zorder=1)
        below = any(isclose(x, other, rel_tol=0.1) for other in named)
        named.append(x)
        at, angle, place = (point.dice_test, -35, (2, -6)) if below else (point.dice_val, 35, (2, 6))
        axes.annotate(
            name,
            (x, at),
            xytext=place,
            textcoords="offset points",
            fontsize=8,
            rotation=angle,
            rotation_mode="anchor",
            va="top" if below else "bottom",
        )
    sizes = [point.up_bytes / 1000 for point in points.values()]
    for part, field, colour, marker in (("test", "dice_test", PERSONAL, "o"), ("validation", "dice_val", SHARED, "s")):
        dice = [getattr(point, field) for point in points.values()]
        axes.scatter(sizes, dice, color=colour, marker=marker, label=part, zorder=2)
    ticks: list[float] = []
    for size in sorted(sizes):
        if not ticks or not isclose(size, ticks[-1], rel_tol=0.12):
            ticks.append(size)
    axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{size:.0f}" for size in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("kB sent by a site in a round")
    axes.set_ylabel("Dice of the models in use, points")
    axes.grid(alpha=0.3)
    axes.margins(x=0.15, y=0.3)
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(path)


def write(plan: Plan, outcome: Outcome, command: str) -> None:
    """Write JSON, Markdown and SVG under benchmarks/results."""
    points, name = points_of(outcome), f"communication-{plan.suite.name}"
    if not points:
        return
    figures = {f"{entry}.{label}": value for label, one in points.items() for entry, value in asdict(one).items()}
    write_result(
        name,
        command=command,
        seeds=plan.seeds,
        figures=figures,
        table=table(points),
        smallest_within_allowed_loss=smallest(points),
        failed=dict(outcome.kinds),
    )
    draw(points, RESULTS / f"{name}.svg")
    print(table(points), flush=True)


def plan_of(arguments: argparse.Namespace) -> Plan:
    """The comparison of the suite's pfedsam with the requested variants."""
    suite = load_suite(arguments.suite)
    more = {name: {"method": "pfedsam", **changes} for name, changes in VARIANTS.items()}
    suite = suite.model_copy(update={"variants": more})
    entries: Sequence[Entry] = choose_entries(suite, [EXACT], arguments.variants)
    return Plan(suite, entries, arguments.seeds, arguments.data, arguments.out, arguments.set, arguments.workers)


def tell(step: Step) -> None:
    """Print a line when a run has ended."""
    if step.event is None:
        print(f"{step.done} of {step.total}: {step.label}, seed {step.seed}", flush=True)


def main() -> None:
    """Run the missing runs, and write the results after each of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--suite", default="nuclei", help="nuclei, retina, or a suite file")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument(
        "--variants", nargs="+", choices=list(VARIANTS), default=["fp16", "int8", "int4", "int4-no-feedback"]
    )
    parser.add_argument("--set", action="append", default=[], help="override a key for every run")
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    overrides = "".join(f" --set {text}" for text in arguments.set)
    command = (
        f"python benchmarks/communication.py --data DIR --suite {arguments.suite} --out runs/{arguments.suite} "
        f"--seeds {' '.join(map(str, arguments.seeds))} --variants {' '.join(arguments.variants)}{overrides}"
    )
    plan = plan_of(arguments)
    run_plan(plan, tell, lambda outcome: write(plan, outcome, command))


if __name__ == "__main__":
    main()
