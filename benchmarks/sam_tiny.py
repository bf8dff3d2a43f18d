"""Measures the shipped compact SAM on real images: without training, prompted by boxes, and as the start of prompt-free fine-tuning.

    python benchmarks/sam_tiny.py --data DIR/nuclei

DIR/nuclei has one folder per site with images/ and masks/ (id 1 = nucleus). Writes benchmarks/results/BACKBONE.json and .md, with these
figures:

* `box_dice`: single nuclei (connected components of at least 64 pixels of the native image) from their boxes; mean over nuclei per
  site, then over sites. The boxes come from the ground truth, so that this is the score of a prompted model, not that of a federation.
* `gain_over_scratch`: validation Dice points that prompt-free fine-tuning of a site alone gains by starting from the backbone instead of
  from random weights, in a run of 20 steps; `gain_over_scratch.60` in one of 60. Both train the same parameters by the method local-only
  with its usual schedule (warm-up, cosine). `gain_over_all_trained` compares with random weights all of which are trained.
* `steps_to_dice_0_3`: steps of the shorter run until validation Dice exceeds 0.3, the slowest site's and the median.
"""

import argparse
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from common import NUCLEI_PATIENTS, markdown, write_result
from scipy.ndimage import find_objects, label
from transformers import SamModel

from pfedsam.core import rng
from pfedsam.data.examples import Example
from pfedsam.data.images import ImageOptions
from pfedsam.data.labels import LabelMap
from pfedsam.data.loader import load_examples, load_truth
from pfedsam.data.manifest import Site, read_site
from pfedsam.data.split import SplitOptions, split_site
from pfedsam.data.transforms import AugmentOptions, logits_to_native
from pfedsam.evaluation.predict import predict
from pfedsam.federation.methods import find_method
from pfedsam.model.backbones.checkpoint import load_backbone, load_network
from pfedsam.model.backbones.compact import compact_config, new_network
from pfedsam.model.backbones.encoder import encode, use_fast_blocks
from pfedsam.model.build import build_personal
from pfedsam.model.numerics import configure_numerics
from pfedsam.model.options import ModelOptions
from pfedsam.model.partition import Partition
from pfedsam.model.personal import PersonalSam
from pfedsam.model.prefix import PrefixCache, PrefixOptions
from pfedsam.training.client_round import ClientState, client_round
from pfedsam.training.options import TrainingOptions
from pfedsam.training.site_data import SiteData

LABELS = LabelMap({"nucleus": [1]})
IMAGES = ImageOptions(contrast="percentile")
SMALLEST = 64
"""Smallest number of pixels of a nucleus in the native image."""
RUNS = (20, 60)
"""Numbers of steps of the two runs of fine-tuning."""
CHECKS = (0, 4, 8, 12, 20, 40, 60)
"""Numbers of steps after which the runs are validated."""
Mask = npt.NDArray[np.bool_]
Curve = dict[int, float]
"""Validation Dice by number of steps."""


@dataclass(frozen=True)
class Start:
    """From which weights fine-tuning starts, and which parameters it trains."""

    pretrained: bool
    method: str = "local-only"
    """`fedsam` at a single site trains every weight."""
    pretrained_fraction: float = 0.1
    """`training.optimizer.pretrained_fraction`: SAM's own weights get a rate of 4e-4; 3e-4 and 1e-3 were not better."""


Curves = dict[str, dict[int, dict[str, list[Curve]]]]
"""The curves of all seeds, by start, number of steps of the run, and site."""
STARTS = {"pretrained": Start(True), "scratch": Start(False), "scratch, all trained": Start(False, "fedsam")}


def read_sites(data: Path) -> dict[str, Site]:
    """Every site, split by patient with seed 0."""
    folders = sorted(folder for folder in data.iterdir() if folder.is_dir())
    sites = (read_site(f.name, f, patient_pattern=NUCLEI_PATIENTS) for f in folders)
    return {site.name: split_site(site, SplitOptions(), 0) for site in sites}


def dice(found: Mask, true: Mask) -> float:
    """2 |A and B| / (|A| + |B|)."""
    return float(2 * (found & true).sum() / max(1, found.sum() + true.sum()))


def nuclei(truth: npt.NDArray[np.uint8]) -> Iterator[tuple[Mask, tuple[float, float, float, float]]]:
    """Each component `[H, W]` of at least `SMALLEST` pixels, with its box (left, top, right, bottom) in native pixels."""
    numbered, _ = label(truth > 0)
    for number, (rows, columns) in enumerate(find_objects(numbered), start=1):
        mask = numbered == number
        if mask.sum() >= SMALLEST:
            yield mask, (columns.start, rows.start, columns.stop, rows.stop)


@torch.inference_mode()
def box_scores(sam: SamModel, example: Example, limit: int) -> list[float]:
    """Dice of the masks that SAM predicts from the boxes of an image's nuclei, of at most `limit` nuclei."""
    truth = load_truth(example.case, LABELS)
    chosen = list(nuclei(truth))
    if len(chosen) > limit:
        keep = np.random.default_rng(0).choice(len(chosen), limit, replace=False)
        chosen = [chosen[i] for i in keep]
    if not chosen:
        return []
    scale = example.frame.side / max(example.frame.native)
    boxes = torch.tensor([box for _, box in chosen])[None] * scale
    sparse, dense = sam.prompt_encoder(None, None, boxes.float(), None)
    masks, _ = sam.mask_decoder(
        image_embeddings=encode(sam, example.pixels[None]),
        image_positional_embeddings=sam.get_image_wide_positional_embeddings(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=False,
    )
    return [
        dice((logits_to_native(mask, example.frame)[0] > 0).numpy(), true)
        for mask, (true, _) in zip(masks[0], chosen, strict=True)
    ]


def zero_shot(sites: dict[str, Site], backbone: str, images: int, size: int) -> dict[str, tuple[float, int]]:
    """The mean Dice over the nuclei of each site, and their number."""
    sam = use_fast_blocks(load_network(backbone, image_size=size))
    result = {}
    for name, site in sites.items():
        examples = load_examples(site.cases[:images], labels={name: LABELS}, image=IMAGES, side=size)
        scores = [score for example in examples for score in box_scores(sam, example, limit=40)]
        result[name] = float(np.mean(scores)), len(scores)
        print(f"{name}: box Dice {result[name][0]:.3f} over {result[name][1]} nuclei", flush=True)
    return result


def fine_tune(
    sam: SamModel,
    site: Site,
    folder: Path,
    seed: int,
    *,
    steps: int,
    start: Start = STARTS["pretrained"],
    augment: AugmentOptions = AugmentOptions(),  # noqa: B008 - frozen
    checks: tuple[int, ...] = CHECKS,
    cache_gigabytes: float = 0.0,
) -> Curve:
    """Validation Dice of prompt-free fine-tuning at one site alone, after the steps in `checks` and after the last."""
    method, options = find_method(start.method), TrainingOptions()
    optimizer = options.optimizer.model_copy(update={"pretrained_fraction": start.pretrained_fraction})
    rounds = steps // options.steps_per_round
    options = options.model_copy(update={"rounds": rounds, "patience": None, "final_steps": 0, "optimizer": optimizer})
    model = build_personal(sam, method.adapt(ModelOptions()), 1, rng.generator(seed, "model"))
    partition = Partition.of(model, model.components(), method.placement(ModelOptions()))
    load = {"labels": {site.name: LABELS}, "image": IMAGES, "side": model.image_size}
    train, held_out = load_examples(site.of("train"), **load), load_examples(site.of("val"), **load)
    cache = PrefixCache(folder, "sam", model.prefix_shape, PrefixOptions(max_gigabytes=cache_gigabytes))
    data = SiteData(site.name, train, cache, augment, seed)
    shared, state = partition.select(model, "shared"), ClientState(partition.select(model, "local"))
    curve = {0: validate(model, held_out)} if 0 in checks else {}
    for round_ in range(rounds):
        result = client_round(
            model,
            partition,
            data,
            method.phases(options),
            shared=shared,
            state=state,
            round_=round_,
            options=options,
            balance=0.01,
        )
        shared, state, done = result.shared, result.state, (round_ + 1) * options.steps_per_round
        if done in checks or round_ + 1 == rounds:
            curve[done] = validate(model, held_out)
    return curve


def validate(model: PersonalSam, examples: list[Example]) -> float:
    """The mean Dice over the cases."""
    scores = [
        dice(found > 0, load_truth(example.case, LABELS) > 0)
        for example, found in predict(model, examples, batch_size=4)
    ]
    return float(np.mean(scores))


def reaches(curve: Curve, level: float) -> float | None:
    """The first step at which a curve is above a level; None if it never is."""
    return next((step for step, value in curve.items() if value > level), None)


def main() -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument(
        "--backbone", default=ModelOptions().backbone, help="A shipped edition, or a folder with another compact model."
    )
    parser.add_argument("--size", type=int, default=384, help="Side of the model's input for the zero-shot figures.")
    parser.add_argument("--images", type=int, default=40, help="Images a site for the zero-shot figures.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument(
        "--workers", type=int, default=2, help="Processes of fine-tuning; the result is the same with any number."
    )
    parser.add_argument("--zero-shot-only", action="store_true", help="Print the box figures and stop; writes nothing.")
    arguments = parser.parse_args()
    configure_numerics(1)
    sites = read_sites(arguments.data)
    boxes = zero_shot(sites, arguments.backbone, arguments.images, arguments.size)
    box_dice = float(np.mean([value for value, _ in boxes.values()]))
    print(f"mean of sites: {box_dice:.3f}", flush=True)
    if arguments.zero_shot_only:
        return
    curves: Curves = {start: {steps: {name: [] for name in sites} for steps in RUNS} for start in STARTS}
    runs = list(product(arguments.seeds, sites, RUNS, STARTS))
    with ProcessPoolExecutor(arguments.workers, get_context("spawn")) as pool:
        found = pool.map(partial(_run, arguments.backbone, sites), runs)
        for (seed, name, steps, start), curve in zip(runs, found, strict=True):
            curves[start][steps][name].append(curve)
            print(f"seed {seed} {name} {steps} steps from {start}: {curve}", flush=True)
    report(boxes, box_dice, curves, arguments)


def _run(backbone: str, sites: dict[str, Site], run: tuple[int, str, int, str]) -> Curve:
    """The curve of one run of fine-tuning, given by seed, site, steps and start; called in a process of its own."""
    configure_numerics(1)
    seed, name, steps, start = run[0], run[1], run[2], STARTS[run[3]]
    sam = (
        load_backbone(backbone, image_size=None)
        if start.pretrained
        else new_network(compact_config("sam-tiny"), rng.generator(seed, "scratch"))
    )
    return fine_tune(sam, sites[name], Path("unused"), seed, steps=steps, start=start)


def site_means(curves: Curves, start: str, steps: int, after: int) -> dict[str, float]:
    """The mean Dice over seeds by site, `after` steps of a run."""
    return {name: float(np.mean([curve[after] for curve in found])) for name, found in curves[start][steps].items()}


def overall(curves: Curves, start: str, steps: int, after: int) -> float:
    """The mean over sites of `site_means`."""
    return float(np.mean(list(site_means(curves, start, steps, after).values())))


def gain(curves: Curves, over: str, steps: int, after: int) -> float:
    """Dice points of fine-tuning from the backbone minus from another start, `after` steps of a run; the mean over sites and seeds."""
    return 100 * (overall(curves, "pretrained", steps, after) - overall(curves, over, steps, after))


def by_steps(curves: Curves, steps: int) -> str:
    """The table of the mean Dice of all starts in the course of a run."""
    checks = [check for check in CHECKS if check <= steps]
    rows = [[start, *(f"{overall(curves, start, steps, check):.3f}" for check in checks)] for start in STARTS]
    for start in list(STARTS)[1:]:
        rows.append([f"gain over {start}, points", *(f"{gain(curves, start, steps, check):+.1f}" for check in checks)])
    return f"A run of {steps} steps:\n\n" + markdown(["from", *map(str, checks)], rows)


def report(boxes: dict[str, tuple[float, int]], box_dice: float, curves: Curves, arguments: argparse.Namespace) -> None:
    """Write the JSON file and the tables."""
    first, last = RUNS
    until = {name: [reaches(c, 0.3) for c in cs] for name, cs in curves["pretrained"][first].items()}
    known = [step for values in until.values() for step in values]
    figures = {
        "box_dice": box_dice,
        **{f"box_dice.{name}": value for name, (value, _) in boxes.items()},
        "gain_over_scratch": gain(curves, "scratch", first, first),
        f"gain_over_scratch.{last}": gain(curves, "scratch", last, last),
        "gain_over_all_trained": gain(curves, "scratch, all trained", first, first),
        f"gain_over_all_trained.{last}": gain(curves, "scratch, all trained", last, last),
        "steps_to_dice_0_3": None if None in known else max(known),
        "steps_to_dice_0_3_median": None if None in known else float(np.median(known)),
    }
    shown = [("pretrained", first, 0), *((start, steps, steps) for steps in RUNS for start in STARTS)]
    by_site = [site_means(curves, *each) for each in shown]
    rows = [
        [
            name,
            f"{value:.3f} ({count})",
            *(f"{means[name]:.3f}" for means in by_site),
            ", ".join(f"{s:g}" if s is not None else f"> {first}" for s in until[name]),
        ]
        for name, (value, count) in boxes.items()
    ]
    rows.append(["**mean**", f"{box_dice:.3f}", *(f"{overall(curves, *each):.3f}" for each in shown), ""])
    ends = [f"{start}, {steps} steps" for steps in RUNS for start in STARTS]
    header = ["site", "box Dice (nuclei)", "prompt-free, 0 steps", *ends, "steps to 0.3"]
    tables = [markdown(header, rows), "Mean validation Dice of prompt-free fine-tuning, by steps."]
    name = Path(arguments.backbone).name
    write_result(
        name,
        command=f"python benchmarks/sam_tiny.py --data DIR/nuclei --backbone {name} --seeds {' '.join(map(str, arguments.seeds))}",
        seeds=arguments.seeds,
        figures=figures,
        table="\n\n".join([*tables, *(by_steps(curves, steps) for steps in RUNS)]),
        settings={"image_size": arguments.size, "images_per_site": arguments.images, "steps": RUNS},
        curves=curves,
    )


if __name__ == "__main__":
    main()
