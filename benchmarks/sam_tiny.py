"""What the shipped compact SAM knows of real images: zero-shot with boxes, and as a start for prompt-free fine-tuning.

    python benchmarks/sam_tiny.py --data DIR/nuclei

DIR/nuclei has one folder per site with images/ and masks/ (id 1 = nucleus). Writes benchmarks/results/sam-tiny.json and .md:

* `box_dice`: single nuclei (connected components of at least 64 pixels of the native image) from their boxes; mean over nuclei per
  site, then over sites. The boxes come from the ground truth: this measures a prompted model, no product figure.
* `gain_over_scratch`: validation Dice points after equal steps of prompt-free fine-tuning, from sam-tiny minus from random weights;
  `gain_after.<n>` is the same after n steps.
* `steps_to_dice_0_3`: steps until validation Dice exceeds 0.3, the slowest site's and the mean.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from common import markdown, write_result
from scipy.ndimage import find_objects, label
from transformers import SamModel

from pfedsam.core import rng
from pfedsam.data.images import ImageOptions
from pfedsam.data.labels import LabelMap
from pfedsam.data.loader import Example, load_examples, load_truth
from pfedsam.data.manifest import Site, read_site
from pfedsam.data.split import SplitOptions, split_site
from pfedsam.data.transforms import AugmentOptions, logits_to_native
from pfedsam.evaluation.predict import predict
from pfedsam.federation.methods import find_method
from pfedsam.model.backbone import compact_config, new_backbone
from pfedsam.model.checkpoint import load_backbone
from pfedsam.model.encoder import encode, use_fast_blocks
from pfedsam.model.numerics import configure_numerics
from pfedsam.model.partition import Partition
from pfedsam.model.personal import ModelOptions, PersonalSam
from pfedsam.model.prefix import PrefixCache, PrefixOptions
from pfedsam.training.client_round import ClientState, client_round
from pfedsam.training.options import TrainingOptions
from pfedsam.training.site_data import SiteData

LABELS = LabelMap({"nucleus": [1]})
IMAGES = ImageOptions(contrast="percentile")
SMALLEST = 64
"""Pixels of a nucleus at 384 px."""
CHECKS = (0, 5, 10, 15, 20, 30, 40, 60)
"""Steps after which fine-tuning is validated."""
Mask = npt.NDArray[np.bool_]


def read_sites(data: Path) -> dict[str, Site]:
    """Every site, split by patient with seed 0."""
    folders = sorted(folder for folder in data.iterdir() if folder.is_dir())
    sites = (read_site(f.name, f, patient_pattern=r"^(.+)_t\d$") for f in folders)
    return {site.name: split_site(site, SplitOptions(), 0) for site in sites}


def dice(found: Mask, true: Mask) -> float:
    """2 |A and B| / (|A| + |B|)."""
    return float(2 * (found & true).sum() / max(1, found.sum() + true.sum()))


def nuclei(truth: npt.NDArray[np.uint8]) -> Iterator[tuple[Mask, tuple[float, float, float, float]]]:
    """Each large enough component `[H, W]` and its box (left, top, right, bottom) in native pixels."""
    numbered, _ = label(truth > 0)
    for number, (rows, columns) in enumerate(find_objects(numbered), start=1):
        mask = numbered == number
        if mask.sum() >= SMALLEST:
            yield mask, (columns.start, rows.start, columns.stop, rows.stop)


@torch.inference_mode()
def box_scores(sam: SamModel, example: Example, limit: int) -> list[float]:
    """Dice of each of an image's nuclei from its box (at most `limit` of them)."""
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
    """Per site mean Dice over nuclei, and how many there were."""
    sam = use_fast_blocks(load_backbone(backbone, image_size=size))
    result = {}
    for name, site in sites.items():
        examples = load_examples(site.cases[:images], labels=LABELS, image=IMAGES, side=size)
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
    augment: AugmentOptions = AugmentOptions(),  # noqa: B008 - frozen
    checks: tuple[int, ...] = CHECKS,
    cache_gigabytes: float = 0.0,
) -> dict[int, float]:
    """Validation Dice of prompt-free fine-tuning alone at one site, after each of these numbers of steps."""
    method, options = find_method("local-only"), TrainingOptions(rounds=1, final_steps=0)
    model = PersonalSam(sam, method.adapt(ModelOptions()), 1, rng.generator(seed, "model"))
    partition = Partition.of(model, model.components(), method.placement(ModelOptions()))
    load = {"labels": LABELS, "image": IMAGES, "side": model.image_size}
    train, held_out = load_examples(site.of("train"), **load), load_examples(site.of("val"), **load)
    cache = PrefixCache(folder, "sam", model.prefix_shape, PrefixOptions(max_gigabytes=cache_gigabytes))
    data = SiteData(site.name, train, cache, augment, seed)
    state, done, curve = ClientState(partition.select(model, "local")), 0, {}
    for check in checks:
        if check > done:
            steps = options.model_copy(update={"steps_per_round": check - done})
            result = client_round(
                model,
                partition,
                data,
                method.phases(steps),
                shared={},
                state=state,
                round_=0,
                options=steps,
                balance=0.01,
            )
            state, done = result.state, check
        # Rounds of one run keep the optimiser's state; `round_=0` keeps the learning rate at its peak.
        curve[check] = validate(model, held_out)
    return curve


def validate(model: PersonalSam, examples: list[Example]) -> float:
    """Mean Dice over cases."""
    scores = [
        dice(found > 0, load_truth(example.case, LABELS) > 0)
        for example, found in predict(model, examples, batch_size=4)
    ]
    return float(np.mean(scores))


def reaches(curve: dict[int, float], level: float) -> float | None:
    """The first step at which a curve is above the level; None when it never is."""
    return next((step for step, value in curve.items() if value > level), None)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument(
        "--backbone", default="sam-tiny", help="A folder with another model instead of the shipped one."
    )
    parser.add_argument("--size", type=int, default=384, help="Side of the model's input for the zero-shot figures.")
    parser.add_argument("--images", type=int, default=40, help="Images a site for the zero-shot figures.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--zero-shot-only", action="store_true", help="Print the box figures and stop; writes nothing.")
    arguments = parser.parse_args()
    configure_numerics(1)
    sites = read_sites(arguments.data)
    boxes = zero_shot(sites, arguments.backbone, arguments.images, arguments.size)
    box_dice = float(np.mean([value for value, _ in boxes.values()]))
    print(f"mean of sites: {box_dice:.3f}", flush=True)
    if arguments.zero_shot_only:
        return
    curves: dict[str, dict[str, list[dict[int, float]]]] = {"sam-tiny": {}, "scratch": {}}
    for seed in arguments.seeds:
        for name, site in sites.items():
            for start, found in curves.items():
                sam = (
                    load_backbone(arguments.backbone, image_size=None)
                    if start == "sam-tiny"
                    else new_backbone(compact_config("sam-tiny"), rng.generator(seed, "scratch"))
                )
                found.setdefault(name, []).append(fine_tune(sam, site, Path("unused"), seed))
                print(f"seed {seed} {name} from {start}: {found[name][-1]}", flush=True)
    report(boxes, box_dice, curves, arguments)


def site_means(curves: dict[str, dict[str, list[dict[int, float]]]], step: int) -> dict[str, dict[str, float]]:
    """Mean Dice over seeds by start and site."""
    return {
        start: {n: float(np.mean([c[step] for c in cs])) for n, cs in found.items()} for start, found in curves.items()
    }


def by_steps(means: dict[int, dict[str, float]]) -> str:
    """The table of both starts' means by steps."""
    rows = [[start, *(f"{m[start]:.3f}" for m in means.values())] for start in ("sam-tiny", "scratch")]
    gain = ["gain, points", *(f"{100 * (m['sam-tiny'] - m['scratch']):+.1f}" for m in means.values())]
    return markdown(["from", *(str(n) for n in means)], [*rows, gain])


def report(
    boxes: dict[str, tuple[float, int]],
    box_dice: float,
    curves: dict[str, dict[str, list[dict[int, float]]]],
    arguments: argparse.Namespace,
) -> None:
    """The JSON and the table."""
    last = CHECKS[-1]
    end = site_means(curves, last)
    steps = {n: [reaches(c, 0.3) for c in cs] for n, cs in curves["sam-tiny"].items()}
    known = [s for values in steps.values() for s in values]
    means = {n: {start: float(np.mean(list(v.values()))) for start, v in site_means(curves, n).items()} for n in CHECKS}
    mean = means[last]
    figures = {
        "box_dice": box_dice,
        **{f"box_dice.{name}": value for name, (value, _) in boxes.items()},
        "dice_from_sam_tiny": mean["sam-tiny"],
        "dice_from_scratch": mean["scratch"],
        "gain_over_scratch": 100 * (mean["sam-tiny"] - mean["scratch"]),
        **{f"gain_after.{n}": 100 * (m["sam-tiny"] - m["scratch"]) for n, m in means.items()},
        "steps_to_dice_0_3": None if None in known else max(known),
        "steps_to_dice_0_3_median": None if None in known else float(np.median(known)),
    }
    rows = [
        [
            name,
            f"{value:.3f} ({count})",
            f"{np.mean([c[0] for c in curves['sam-tiny'][name]]):.3f}",
            f"{end['sam-tiny'][name]:.3f}",
            f"{end['scratch'][name]:.3f}",
            ", ".join(f"{s:g}" if s is not None else f"> {last}" for s in steps[name]),
        ]
        for name, (value, count) in boxes.items()
    ]
    rows.append(["**mean**", f"{box_dice:.3f}", "", f"{mean['sam-tiny']:.3f}", f"{mean['scratch']:.3f}", ""])
    header = [
        "site",
        "box Dice (nuclei)",
        "prompt-free, 0 steps",
        f"{last} steps",
        f"{last} steps from random weights",
        "steps to 0.3",
    ]
    write_result(
        "sam-tiny",
        command=f"python benchmarks/sam_tiny.py --data DIR/nuclei --seeds {' '.join(map(str, arguments.seeds))}",
        seeds=arguments.seeds,
        figures=figures,
        table=markdown(header, rows)
        + "\nMean validation Dice of prompt-free fine-tuning, by steps:\n\n"
        + by_steps(means),
        settings={"image_size": arguments.size, "images_per_site": arguments.images, "steps": CHECKS[-1]},
        curves=curves,
    )


if __name__ == "__main__":
    main()
