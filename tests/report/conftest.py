"""A finished run with plausible numbers and pictures, as the experiment would leave it; no model is trained.

`python tests/report/conftest.py FOLDER` writes such runs with their pages into a folder, for looking at.
"""

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from pfedsam.evaluation.scores import CaseScores, ClassScores, Presence
from pfedsam.evaluation.summary import SiteSummary, summarize_site
from pfedsam.report.accuracy import Cost, RunScores
from pfedsam.report.overlays import OverlayItem, write_overlays
from pfedsam.report.records import RecordWriter
from pfedsam.report.summary_file import Communication, PartSizes, Summary, build_summary, write_summary

SITES = ("amsterdam", "bologna", "coimbra", "dresden", "eindhoven", "firenze")
ROUNDS = 12
LEVEL = {"pfedsam": 0.82, "fedavg": 0.72, "local-only": 0.77, "centralized": 0.84}
CONFIG = """\
method: pfedsam
seed: 1
rounds: 12
data:
  sites:
    amsterdam: {folder: /srv/hospital/secret/amsterdam}
model:
  backbone: compact
  lora: {rank: 4}
  experts: {number: 4, top_k: 2}
"""


def case_scores(
    case: str, classes: dict[str, ClassScores], presence: dict[str, Presence], *, unit: str = "mm", patient: str = ""
) -> CaseScores:
    """A case of an image, and of a patient by itself if none is named."""
    return CaseScores(case, patient or case, classes, presence, unit, "px" if unit == "px" else "mm2")


def site_scores(level: float, *, cases: int, seed: int, unit: str = "mm") -> SiteSummary:
    generator = np.random.default_rng(seed)
    scores = []
    for index in range(cases):
        organ, lesion = np.clip(generator.normal((level + 0.06, level - 0.06), 0.05), 0.02, 0.98)
        classes = {
            name: ClassScores(dice, dice / (2 - dice), 30 * (1 - dice), 8 * (1 - dice))
            for name, dice in (("organ", float(organ)), ("lesion", float(lesion)))
        }
        if index % 7 == 3:
            classes["lesion"] = ClassScores(None, None, None, None)
        presence = {name: "both" if scored.dice is not None else "absent" for name, scored in classes.items()}
        scores.append(case_scores(str(index), classes, presence, unit=unit))
    return summarize_site(scores)


def make_summary(
    method: str = "pfedsam", sites: tuple[str, ...] = SITES, *, seed: int = 1, unit: str = "mm"
) -> Summary:
    own = np.random.default_rng(sum(method.encode())).normal(0, 0.025, len(sites))

    def model(level: float, spread: float) -> dict[str, SiteSummary]:
        return {
            name: site_scores(
                level - spread * ((index * 5) % 6) / 5 + float(own[index]),
                cases=8 + index,
                seed=100 * seed + index,
                unit=unit,
            )
            for index, name in enumerate(sites)
        }

    sends = method in ("pfedsam", "fedavg")
    return build_summary(
        date="2026-11-28",
        sizes={name: PartSizes(20 + index, 4) for index, name in enumerate(sites)},
        method=method,
        backbone="compact",
        seed=seed,
        rounds=ROUNDS,
        personal=model(LEVEL[method], 0.1) if method in ("pfedsam", "local-only") else None,
        shared=None
        if method == "local-only"
        else model(0.84 if method == "centralized" else 0.72, 0.12 if method == "centralized" else 0.22),
        communication=Communication(
            up_bytes_per_site_round=412_000 if sends else 0,
            down_bytes_per_site_round=408_000 if sends else 0,
            by_component={
                "encoder LoRA": 201_000,
                "decoder LoRA": 96_000,
                "class head": 110_000,
                "class tokens": 1_024,
            },
        ),
        seconds={"total": 612.0, "training": 540.0, "evaluation": 41.0},
        versions={"python": "3.11", "pfedsam": "0.1.0", "torch": "2.13.0"},
    )


def make_records(folder: Path, sites: tuple[str, ...] = SITES, *, rounds: int = ROUNDS) -> None:
    generator = np.random.default_rng(3)
    with RecordWriter(folder / "records.jsonl") as writer:
        for round_ in range(rounds):
            for index, site in enumerate(sites):
                for phase, height in (("global", 0.9), ("local", 0.6)):
                    loss = height * math.exp(-(round_ + 1) / (4 + index)) + 0.15 + 0.02 * index
                    writer.write({"kind": "round", "round": round_, "site": site, "phase": phase, "loss": loss})
                for model, top in (("personal", 0.84), ("shared", 0.72 - 0.03 * index)):
                    dice = top * (1 - math.exp(-(round_ + 1) / (2 + 0.4 * index))) + float(generator.normal(0, 0.012))
                    writer.write({"kind": "validation", "round": round_, "site": site, "model": model, "dice": dice})
                for block in (8, 9, 10, 11):
                    usage = generator.dirichlet([4.0] * 4).tolist()
                    writer.write({"kind": "experts", "round": round_, "site": site, "block": block, "usage": usage})
            up = dict.fromkeys(sites, 412_000)
            writer.write({"kind": "aggregate", "round": round_, "accepted": [*sites], "rejected": {}, "up_bytes": up})
            writer.write({"kind": "timing", "round": round_, "seconds": 40.0 + round_})


def make_overlay(seed: int, dice: float | None, *, dark: bool = False) -> OverlayItem:
    """An organ with a lesion, and a prediction that is a little off."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:96, :120] / 96
    center = generator.uniform(0.42, 0.58, 2)

    def ellipse(dy: float, dx: float, scale: float) -> np.ndarray:
        return ((y - center[0] - dy) / 0.3) ** 2 + ((x - center[1] - dx - 0.1) / 0.38) ** 2 < scale

    truth = ellipse(0, 0, 1).astype(np.uint8) + ellipse(0.05, 0.08, 0.12)
    off = 0.25 * (1 - (dice or 0))
    prediction = ellipse(off, -off / 2, 1 - off).astype(np.uint8) + ellipse(0.05 + off, 0.08, 0.14)
    texture = 0.25 + 0.3 * (truth > 0) + 0.2 * (truth == 2) + generator.normal(0, 0.02, truth.shape)
    image = np.clip(np.stack([texture * tint for tint in (1.0, 0.85, 0.9)], axis=-1), 0, 1).astype(np.float32)
    return OverlayItem(image * (0.1 if dark else 1.0), truth, prediction, dice)


def make_run(folder: Path, method: str = "pfedsam", sites: tuple[str, ...] = SITES) -> Path:
    folder.mkdir(parents=True)
    write_summary(folder / "summary.json", make_summary(method, sites))
    make_records(folder, sites)
    (folder / "config.yaml").write_text(CONFIG, "utf-8")
    for index, site in enumerate(sites):
        items = [make_overlay(index + k, dice, dark=index == 1) for k, dice in enumerate((0.55, 0.81, 0.93))]
        write_overlays(folder / "sites" / site / "overlays", items, ("organ", "lesion"))
    write_case_scores(folder, sites, make_summary(method, sites).mean.in_use.dice)
    return folder


def summary_of(scored: dict[str, SiteSummary], *, method: str = "m", shared_only: bool = False) -> Summary:
    """A short run with these scores."""
    return build_summary(
        date="2026-11-28",
        sizes={},
        method=method,
        backbone="b",
        seed=0,
        rounds=3,
        steps=20,
        personal=None if shared_only else scored,
        shared=scored if shared_only else None,
        communication=Communication(up_bytes_per_site_round=100, down_bytes_per_site_round=90, by_component={}),
        seconds={"total": 5.0},
        versions={},
    )


def write_case_scores(folder: Path, sites: tuple[str, ...], level: float) -> None:
    """Scores of single cases, two a patient, as a site keeps them: with them there are intervals."""
    for index, site in enumerate(sites):
        generator = np.random.default_rng(index)
        dice = np.clip(generator.normal(level - 0.02 * index, 0.08, (8 + index, 2)), 0, 1)
        cases = [
            {
                "case": f"case{n}",
                "patient": f"patient{n // 2}",
                "classes": {name: {"dice": float(value)} for name, value in zip(("organ", "lesion"), row, strict=True)},
            }
            for n, row in enumerate(dice)
        ]
        content = {"schema": 2, "models": {"personal": cases, "shared": cases}}
        (folder / "sites" / site).mkdir(parents=True, exist_ok=True)
        (folder / "sites" / site / "scores.json").write_text(json.dumps(content), "utf-8")


def run_scores(
    sites: dict[str, dict[str, float]], *, method: str = "m", shared_only: bool = False, units: Mapping[str, str] = {}
) -> RunScores:
    """A run from site to case to Dice in 0..1; IoU is half of it, HD95 4, ASSD 2, in the site's unit or in pixels."""
    scored = {
        site: summarize_site(
            [
                case_scores(case, {"n": ClassScores(d, d / 2, 4.0, 2.0)}, {"n": "both"}, unit=units.get(site, "px"))
                for case, d in cases.items()
            ]
        )
        for site, cases in sites.items()
    }
    summary = summary_of(scored, method=method, shared_only=shared_only)
    points = {site: {case: {"n": 100 * d} for case, d in cases.items()} for site, cases in sites.items()}
    return RunScores(summary, points, {"a": 50.0, "b": 70.0}, Cost(10.0, None))


@pytest.fixture(scope="session")
def fake() -> ModuleType:
    """This module: under pytest's importlib mode, test modules cannot import one another."""
    return sys.modules[__name__]


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "pfedsam", sites=SITES[:2])


if __name__ == "__main__":
    from pfedsam.report.page import write_comparison, write_page

    root = Path(sys.argv[1])
    folders = {method: make_run(root / method, method) for method in LEVEL}
    write_page(folders["pfedsam"], baseline=folders["local-only"])
    write_page(folders["fedavg"])
    write_comparison(folders, root / "comparison.html")
