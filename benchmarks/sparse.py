"""Whether training on a structure that fills a small part of the image collapses to empty masks: grey matter of the spinal cord.

    python benchmarks/sparse.py DIR --runs RUNS

DIR holds spinal_gm/, whose sites have one volunteer each. They are combined into two sites of three volunteers, of whom one is in the test
part, and the middle of each slice is used, `CROP` pixels wide. pfedsam is trained with three seeds in two ways:

* sparse: with `training.loss: focal_tversky`, and with grey matter in at least half of the slices of a batch, on average;
* plain: with `training.loss: dice_ce`, and with slices that are drawn at random.

A seed has collapsed at a site if all predicted masks of the test part are empty. Writes benchmarks/results/sparse.json and .md again after
each run. After an interruption, run the same command again.
"""

import argparse
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from common import RESULTS, markdown, middle

from pfedsam.engine.run import is_finished, run
from pfedsam.experiment.options import RunOptions
from pfedsam.report.result_file import write_result
from pfedsam.report.summary_file import Summary, read_summary

SEEDS = (0, 1, 2)
SITES = {"first": ("ceitec", "juntendo", "milan"), "second": ("nwu", "philips", "ucl")}
CROP = 192
SIDE = 192
ARMS: Mapping[str, tuple[str, float]] = {"sparse": ("focal_tversky", 0.5), "plain": ("dice_ce", 0.0)}
"""The loss, and the least share of the slices of a batch that contain the class."""


def main() -> None:
    """Train the missing runs, and write the results after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    share = prepare(given.data / "spinal_gm", given.runs / "sites")
    found: dict[str, dict[int, Summary]] = {}
    for arm in ARMS:
        for seed in SEEDS:
            folder = given.runs / f"seed{seed}" / arm
            options = options_of(arm, seed, given.runs)
            if not is_finished(options, folder):
                run(options, folder, resume=folder.exists())
            found.setdefault(arm, {})[seed] = read_summary(folder / "summary.json")
            write(given.out, found, share)


def prepare(data: Path, to: Path) -> float:
    """Write the sites, and return the share of their voxels that is grey matter."""
    shares = []
    for site, hospitals in SITES.items():
        for part in ("images", "masks"):
            (to / site / part).mkdir(parents=True, exist_ok=True)
        for hospital in hospitals:
            for path in sorted((data / hospital / "masks_gm").iterdir()):
                image, mask = (middle(nib.load(one), CROP) for one in (data / hospital / "images" / path.name, path))
                name = f"{hospital}-{path.name}"
                ids = (np.asarray(mask.dataobj) > 0.5).astype(np.uint8)
                nib.save(image, to / site / "images" / name)
                nib.save(nib.Nifti1Image(ids, image.affine), to / site / "masks" / name)
                shares.append(float(ids.mean()))
    return statistics.fmean(shares)


def options_of(arm: str, seed: int, runs: Path) -> RunOptions:
    """The configuration of one run."""
    loss, share = ARMS[arm]
    sites = {site: str(runs.resolve() / "sites" / site) for site in SITES}
    return RunOptions.model_validate(
        {
            "name": f"sparse-{arm}",
            "seed": seed,
            "data": {
                "sites": sites,
                "classes": {"grey_matter": [1]},
                "volume": {"axis": "axial", "foreground_share": share},
                "split": {"train": 0.65, "val": 0.0, "test": 0.35},
            },
            "model": {"image_size": SIDE},
            "training": {"rounds": 24, "steps_per_round": 4, "final_steps": 8, "batch_size": 4, "loss": loss},
            "communication": {"codec": "fp32"},
            "evaluation": {"validate_every": 0},
            "runtime": {"cache_folder": str(runs.resolve() / "cache")},
        }
    )


def write(out: Path, found: Mapping[str, Mapping[int, Summary]], share: float) -> None:
    """Write the result files from the runs that exist so far."""
    rows: list[dict[str, Any]] = []
    for arm, runs in found.items():
        for seed, summary in runs.items():
            for site, entry in summary.sites.items():
                used = entry.in_use
                if used is not None:
                    collapsed = used.missed == used.present
                    rows.append({"arm": arm, "seed": seed, "site": site, "dice": used.dice, "collapsed": collapsed})
    figures: dict[str, float | None] = {"foreground_share": share}
    for arm, runs in found.items():
        mine = [row for row in rows if row["arm"] == arm]
        figures[f"{arm}.seeds"] = len(runs)
        figures[f"{arm}.collapsed_seeds"] = len({row["seed"] for row in mine if row["collapsed"]})
        figures[f"{arm}.dice"] = statistics.fmean(row["dice"] or 0.0 for row in mine)
    lines = [
        [
            row["arm"],
            str(row["seed"]),
            row["site"],
            f"{100 * (row['dice'] or 0):.1f}",
            "yes" if row["collapsed"] else "no",
        ]
        for row in rows
    ]
    write_result(
        out,
        "sparse",
        command="python benchmarks/sparse.py DIR --runs RUNS",
        seeds=sorted({row["seed"] for row in rows}),
        figures=figures,
        table=f"Grey matter fills {100 * share:.2f} % of the voxels. Dice in points of 100, of the model that each site uses.\n\n"
        + markdown(["way", "seed", "site", "Dice", "collapsed"], lines),
        rows=rows,
    )


if __name__ == "__main__":
    main()
