"""Compares federations whose sites annotate different classes with full annotation, and with training missing classes as background.

    python benchmarks/partial_labels.py DIR --runs RUNS

DIR holds cardiac_mri/ (three sites; 1 = left ventricle, 2 = myocardium, 3 = right ventricle) and nuclei/ (1 = nucleus). The middle of each
image is used, so that a small input of the model is enough. Nuclei are divided into two classes: the rim, `RIM` pixels wide, and the core.
There are two studies of nuclei: in `nuclei` no histology site annotates the rim, and in `nuclei-4` one does.
RUNS is the folder of the prepared sites and the trained runs. Each study is trained with pfedsam in four ways, with three seeds:

* full: every site annotates every class;
* partial: two sites lack a class (`data.sites.<name>.not_annotated`), which is background in their masks;
* background: the same masks without `not_annotated`, so that the missing class is trained as background;
* untaught: like partial, without `training.distillation.missing_classes`.

Only the labels of the training and validation parts are partial: the model that a site uses is scored on the site's test part with every
class annotated. Writes benchmarks/results/partial-labels.json and .md again after each run. After an interruption, run the same command
again.
"""

import argparse
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from common import RESULTS, markdown, middle
from PIL import Image
from scipy import ndimage

from pfedsam.core import atomic
from pfedsam.data.loader import load_case_truth
from pfedsam.engine.model_selection import models_of
from pfedsam.engine.opened import open_run
from pfedsam.engine.run import is_finished, run
from pfedsam.engine.site_session import SiteScorer
from pfedsam.evaluation.scores import score_case
from pfedsam.experiment.build import build_images, build_sites
from pfedsam.experiment.options import RunOptions
from pfedsam.report.result_file import write_result

SEEDS = (0, 1, 2)
SIDE = 160
"""Side of the model's input in pixels; it is small, so that the benchmark takes less than an hour on one core."""
CROPS = {"heart": 128, "nuclei": 160}
"""Side of the middle of an image that is used, in pixels; it holds 99 % of the labelled pixels of the hearts."""
RIM = 4
"""Width of the rim of a nucleus in pixels."""
MOST = 40
"""Largest number of pictures of a site of nuclei; the first ones by name are used."""
ARMS = ("full", "partial", "background", "untaught")
GOALS = {"gap_to_full": 0.02, "gain_over_background": 0.2}
Ids = npt.NDArray[np.integer[Any]]
Dice = dict[str, dict[str, float]]
"""Dice by site and class."""


@dataclass(frozen=True)
class PartialStudy:
    """A study, and what its sites do not annotate in the arms other than full."""

    name: str
    folder: str
    """The name of its folder in the data folder."""
    classes: Mapping[str, int]
    missing: Mapping[str, str]
    """Site -> the class that it does not annotate."""
    complete: Sequence[str]
    """The sites that annotate every class."""
    options: Mapping[str, Any]
    prepare: Callable[[Path, Path, int | None], None]
    """Function that writes a site from its folder in the data, without the class of this id; None for all classes."""

    @property
    def sites(self) -> tuple[str, ...]:
        """All sites."""
        return (*self.missing, *self.complete)


def prepare_volumes(source: Path, to: Path, absent: int | None) -> None:
    """Write the middle of each volume, with masks without one id."""
    for path in sorted((source / "masks").iterdir()):
        image, mask = (
            middle(nib.load(folder / path.name), CROPS["heart"]) for folder in (source / "images", source / "masks")
        )
        nib.save(image, to / "images" / path.name)
        ids = np.asarray(mask.dataobj).astype(np.uint8)
        nib.save(
            nib.Nifti1Image(without(ids, absent), mask.affine, mask.header, dtype=np.uint8), to / "masks" / path.name
        )


def prepare_nuclei(source: Path, to: Path, absent: int | None) -> None:
    """Write the middle of each picture, with masks of core and rim, one of which may be absent."""
    for path in sorted((source / "masks").iterdir())[:MOST]:
        image, mask = Image.open(source / "images" / path.name), Image.open(path)
        side = CROPS["nuclei"]
        left, top = (image.width - side) // 2, (image.height - side) // 2
        box = (left, top, left + side, top + side)
        image.crop(box).save(to / "images" / path.name)
        Image.fromarray(without(core_and_rim(np.asarray(mask))[box[1] : box[3], box[0] : box[2]], absent)).save(
            to / "masks" / path.name
        )


def core_and_rim(mask: Ids) -> Ids:
    """Labels [H, W]: 1 in the core of a nucleus, 2 in its rim, 0 elsewhere."""
    inside = mask > 0
    core = ndimage.binary_erosion(inside, iterations=RIM, border_value=1)
    return np.where(core, 1, np.where(inside, 2, 0)).astype(np.uint8)


def without(ids: Ids, absent: int | None) -> Ids:
    """The mask with the class of one id turned into background, in the same shape."""
    return np.where(ids == absent, 0, ids).astype(np.uint8)


TRAINING = {"patience": None, "steps_per_round": 4, "final_steps": 8, "batch_size": 4}
NUCLEI = PartialStudy(
    name="nuclei",
    folder="nuclei",
    classes={"core": 1, "rim": 2},
    missing={"histo_white": "rim", "fluo_256": "core"},
    complete=("fluo_360",),
    options={
        "data": {"image": {"contrast": "percentile"}},
        "training": {"rounds": 24, **TRAINING},
        "evaluation": {"validate_every": 8},
    },
    prepare=prepare_nuclei,
)
STUDIES = (
    PartialStudy(
        name="cardiac",
        folder="cardiac_mri",
        classes={"left_ventricle": 1, "myocardium": 2, "right_ventricle": 3},
        missing={"c1": "right_ventricle", "c2": "left_ventricle"},
        complete=("acdc",),
        options={
            "data": {"volume": {"axis": "axial", "neighbours": 1, "spacing_unknown": ["c1", "c2"]}},
            "training": {"rounds": 36, **TRAINING},
            "evaluation": {"validate_every": 18},
        },
        prepare=prepare_volumes,
    ),
    NUCLEI,
    replace(NUCLEI, name="nuclei-4", complete=("fluo_360", "histo_violet")),
)


def main() -> None:
    """Train the missing runs, score them, and write the results after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument(
        "--studies", nargs="+", default=[one.name for one in STUDIES], help="to train only some of them, in this order"
    )
    parser.add_argument(
        "--arms", nargs="+", choices=ARMS, default=list(ARMS), help="to train and show only some of the ways"
    )
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    studies = [study for name in given.studies for study in STUDIES if study.name == name]
    for study in studies:
        for lacking in (False, True):
            prepare(study, given.data, given.runs / "sites" / study.name, lacking=lacking)
    found: dict[str, dict[str, dict[str, Dice]]] = {}
    plan = [(study, arm, seed) for study in studies for seed in given.seeds for arm in given.arms]
    for study, arm, seed in sorted(plan, key=lambda one: one[1] == "untaught"):  # last, because no goal needs it
        scores = one_run(study, arm, seed, given.runs)
        found.setdefault(study.name, {}).setdefault(arm, {})[str(seed)] = scores
        write(given.out, found)


def prepare(study: PartialStudy, data: Path, to: Path, *, lacking: bool) -> None:
    """Write the sites of a study into a folder, with every class or without those that they do not annotate."""
    for site in study.sites:
        folder = site_folder(to, site, lacking=lacking)
        if not folder.exists():
            absent = study.classes[study.missing[site]] if lacking and site in study.missing else None
            new = folder.with_suffix(".new")
            for part in ("images", "masks"):
                (new / part).mkdir(parents=True, exist_ok=True)
            study.prepare(data / study.folder / site, new, absent)
            new.rename(folder)


def site_folder(folder: Path, site: str, *, lacking: bool) -> Path:
    """The folder of a prepared site."""
    return folder / ("partial" if lacking else "full") / site


def options_of(study: PartialStudy, arm: str, seed: int, runs: Path) -> RunOptions:
    """The configuration of one run."""
    folder, lacking = runs.resolve() / "sites" / study.name, arm != "full"
    sites: dict[str, Any] = {site: {"folder": str(site_folder(folder, site, lacking=lacking))} for site in study.sites}
    if arm in ("partial", "untaught"):
        for site, name in study.missing.items():
            sites[site]["not_annotated"] = [name]
    content = {name: dict(value) for name, value in study.options.items()}
    content["data"] |= {"sites": sites, "classes": {name: [number] for name, number in study.classes.items()}}
    if arm == "untaught":
        content["training"]["distillation"] = {"missing_classes": False}
    cache = runs.resolve() / "cache" / study.name  # images and views are the same in every arm
    return RunOptions.model_validate(
        {
            "name": f"{study.name}-{arm}",
            "seed": seed,
            "method": "pfedsam",
            "model": {"image_size": SIDE},
            "communication": {"codec": "fp32"},
            "runtime": {"cache_folder": str(cache)},
            **content,
        }
    )


def one_run(study: PartialStudy, arm: str, seed: int, runs: Path) -> Dice:
    """The test scores of one run; it is trained if it does not exist yet."""
    options, folder = options_of(study, arm, seed, runs), runs / study.name / f"seed{seed}" / arm
    kept = folder / "complete-scores.json"
    if not is_finished(options, folder):
        run(options, folder, resume=folder.exists())
    if not kept.exists():
        atomic.write_json(kept, scores_with_every_class(folder, options_of(study, "full", seed, runs)))
    scores: Dice = json.loads(kept.read_text())
    return scores


def scores_with_every_class(folder: Path, full: RunOptions) -> Dice:
    """The mean Dice over the test cases of each site and class, of the model that the site uses, with every class annotated.

    Raises:
        RuntimeError: a test part is not the one of the run.
    """
    opened, found = open_run(folder), {}
    for name, site in build_sites(full).items():
        used, cases = opened.site(name), site.of("test")
        tested = json.loads((folder / "sites" / name / "split.json").read_text())["test"]
        if sorted(case.id for case in cases) != sorted(tested):
            raise RuntimeError(f"the test part of {name} in {folder} is another one")
        labels = full.data.label_map(name)
        scorer = SiteScorer(full, name, opened.built)
        examples = build_images(full, cases, opened.built.model.image_size)
        model = next(iter(models_of(full, opened.built).values()))
        predicted = scorer.predict(examples, model, used.parameters)
        rows = []
        for case, labelled in zip(cases, predicted, strict=True):
            truth = load_case_truth(case, labels, full.data.image, full.data.volume).classes
            score = score_case(
                case.id,
                labelled.reshape(truth.shape),
                truth,
                class_names=labels.names,
                spacing_mm=None,
                distances=False,
            )
            rows.append(score.classes)
        found[name] = {
            one: statistics.fmean(row[one].dice for row in rows if row[one].dice is not None) for one in labels.names
        }
    return found


Found = Mapping[str, Mapping[str, Mapping[str, Dice]]]
"""Study -> arm -> seed -> Dice."""


def mean_dice(found: Found, study: str, arm: str, site: str, name: str) -> float | None:
    """The mean Dice of a class at a site over the seeds; None without a run."""
    runs = found.get(study, {}).get(arm, {})
    return statistics.fmean(one[site][name] for one in runs.values()) if runs else None


def differences(found: Found, study: PartialStudy) -> list[dict[str, Any]]:
    """For each site and class the mean Dice of each arm, and the differences of `partial` to `full` and to `background`."""
    rows = []
    for site in study.sites:
        for name in study.classes:
            dice = {arm: mean_dice(found, study.name, arm, site, name) for arm in ARMS}
            partial, full, background = dice["partial"], dice["full"], dice["background"]
            rows.append(
                {
                    "study": study.name,
                    "site": site,
                    "class": name,
                    "annotated": study.missing.get(site) != name,
                    "dice": dice,
                    "gap_to_full": None if partial is None or full is None else full - partial,
                    "gain_over_background": None if partial is None or background is None else partial - background,
                }
            )
    return rows


def figures_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """The largest gap over sites and classes, and the least gain where a class is not annotated; over all studies and of each."""
    figures = {}
    for study in ("", *(one.name for one in STUDIES)):
        chosen = [row for row in rows if study in ("", row["study"])]
        gaps = [row["gap_to_full"] for row in chosen if row["gap_to_full"] is not None]
        missing = [row for row in chosen if not row["annotated"]]
        gains = [row["gain_over_background"] for row in missing if row["gain_over_background"] is not None]
        key = f"{study}." if study else ""
        figures[f"{key}gap_to_full"] = max(gaps, default=None)
        figures[f"{key}mean_gap_to_full"] = statistics.fmean(gaps) if gaps else None
        figures[f"{key}gain_over_background"] = min(gains, default=None)
    return figures


def paired(found: Found) -> Found:
    """The scores of those seeds that all arms of a study have, without arms that have no run, so that differences are paired."""
    kept = {}
    for study, arms in found.items():
        begun = {arm: runs for arm, runs in arms.items() if runs}
        seeds = set.intersection(*map(set, begun.values())) if begun else set()
        kept[study] = {arm: {seed: one for seed, one in runs.items() if seed in seeds} for arm, runs in begun.items()}
    return kept


def write(out: Path, found: Found) -> None:
    """Write the result files from the runs that exist so far, with the seeds that all arms of a study have."""
    found = paired(found)
    arms = [arm for arm in ARMS if any(arm in runs for runs in found.values())]
    rows = [row for study in STUDIES if study.name in found for row in differences(found, study)]
    write_result(
        out,
        "partial-labels",
        command=f"python benchmarks/partial_labels.py DIR --runs RUNS --studies {' '.join(found)} --arms {' '.join(arms)}",
        seeds=sorted({int(seed) for arms in found.values() for runs in arms.values() for seed in runs}),
        figures=figures_of(rows),
        table=table(rows),
        goals=GOALS,
        rows=rows,
        scores=found,
    )


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table with a line for each study, site and class; classes that the site does not annotate are bold."""
    lines = [
        [
            row["study"],
            row["site"],
            row["class"] if row["annotated"] else f"**{row['class']}** (not annotated)",
            *(points(row["dice"][arm]) for arm in ARMS),
            points(row["gap_to_full"]),
            "" if row["annotated"] else points(row["gain_over_background"]),
        ]
        for row in rows
    ]
    header = ["study", "site", "class", *ARMS, "full - partial", "partial - background"]
    return (
        "Dice in points of 100, mean over the seeds, of the model that each site uses, scored with every class annotated.\n\n"
        + markdown(header, lines)
    )


def points(dice: float | None) -> str:
    """A Dice as text in points of 100."""
    return "-" if dice is None else f"{100 * dice:.1f}"


if __name__ == "__main__":
    main()
