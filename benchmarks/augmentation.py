"""The cost in Dice of a fixed number of stored views per image, compared with views that are drawn anew in every step.

    python benchmarks/augmentation.py --data DIR/nuclei

DIR/nuclei is as for `sam_tiny.py`. Single sites are fine-tuned alone for the same number of steps, and validated. The views of an image are
stored in the cache of frozen features, so that their number determines the size of the cache. With `fresh` there are so many views that
hardly any is drawn twice, and nothing is stored.
Writes benchmarks/results/augmentation.json and .md.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
from common import markdown, write_result
from sam_tiny import fine_tune, read_sites

from pfedsam.data.transforms import AugmentOptions
from pfedsam.model.backbones.checkpoint import load_backbone
from pfedsam.model.numerics import configure_numerics
from pfedsam.model.options import ModelOptions

VIEWS = {"1": 1, "4": 4, "fresh": 100_000}
SITES = ("fluo_696", "histo_violet")
STEPS = 80


def main() -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    arguments = parser.parse_args()
    configure_numerics(1)
    sites = read_sites(arguments.data)
    found: dict[str, dict[str, list[float]]] = {label: {name: [] for name in SITES} for label in VIEWS}
    with tempfile.TemporaryDirectory() as folder:
        for seed in arguments.seeds:
            for name in SITES:
                for label, views in VIEWS.items():
                    sam = load_backbone(ModelOptions().backbone, image_size=None)
                    augment = AugmentOptions(views=views)
                    kept = 0.0 if label == "fresh" else 2.0
                    curve = fine_tune(
                        sam,
                        sites[name],
                        Path(folder) / name,
                        seed,
                        steps=STEPS,
                        augment=augment,
                        checks=(),
                        cache_gigabytes=kept,
                    )
                    found[label][name].append(100 * curve[STEPS])
                    print(f"seed {seed} {name} {label} views: {found[label][name][-1]:.1f}", flush=True)
    report(found, arguments.seeds)


def report(found: dict[str, dict[str, list[float]]], seeds: list[int]) -> None:
    """Write the JSON file and the table."""
    means = {label: {name: float(np.mean(values)) for name, values in by.items()} for label, by in found.items()}
    over = {label: float(np.mean(list(by.values()))) for label, by in means.items()}
    rows = [[label, *(f"{means[label][name]:.1f}" for name in SITES), f"{over[label]:.1f}"] for label in VIEWS]
    write_result(
        "augmentation",
        command=f"python benchmarks/augmentation.py --data DIR/nuclei --seeds {' '.join(map(str, seeds))}",
        seeds=seeds,
        figures={f"dice_{label}_views": value for label, value in over.items()}
        | {"cost_of_4_views": over["fresh"] - over["4"]},
        table=markdown(["views of an image", *SITES, "mean"], rows),
        settings={"steps": STEPS, "batch_size": 8, "method": "local-only", "part": "validation"},
    )


if __name__ == "__main__":
    main()
