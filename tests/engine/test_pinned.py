"""What a change of structure must not change: parameters and scores of every method, as commit f36e821 computed them.

`pinned.json` was written by that commit, before its two round loops became one, with its defaults, which the options here repeat;
`pfedsam-defaults` was added with the defaults of `docs/decisions/0020`. The digests do not depend on the names of tensors, so
that a component may be renamed. On the processor that made them the values are equal to the bit; elsewhere floating-point rounding
differs, so there the norms have to agree.
"""

import hashlib
import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from pfedsam.core import tensors
from pfedsam.core.tensors import NamedTensors
from pfedsam.data.synthetic import LABELS, PATIENT_PATTERN
from pfedsam.engine.run import run
from pfedsam.engine.server_files import NOTHING, SERVER
from pfedsam.experiment.options import RunOptions
from pfedsam.federation.site_store import SiteStore
from pfedsam.report.summary_file import read_summary

PINNED = json.loads((Path(__file__).parent / "pinned.json").read_text())
pytestmark = pytest.mark.slow


def processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def pinned_options(toy_folder: Path, name: str) -> RunOptions:
    """The options of the pinned run called `name`: a method's own, pfedsam in decoupled rounds, and pfedsam with sam-tiny and int4.

    All have the defaults of the commit that wrote the file, but for `pfedsam-defaults`, which has sam-tiny and today's.
    """
    sites = {path.name: str(path) for path in sorted((toy_folder / "sites").iterdir()) if path.is_dir()}
    training: dict[str, Any] = {
        "rounds": 4,
        "steps_per_round": 2,
        "batch_size": 2,
        "phases": "coupled",
        "optimizer": {"learning_rate": 0.04, "pretrained_fraction": 0.025},
    }
    content: dict[str, Any] = {
        "name": "pinned",
        "seed": 3,
        "method": name,
        "data": {
            "sites": sites,
            "classes": {label: list(ids) for label, ids in LABELS.items()},
            "patient_pattern": PATIENT_PATTERN,
            "augment": {"views": 2},
        },
        "model": {
            "backbone": str(toy_folder / "backbone"),
            "adapt_last": 1,
            "lora": {"rank": 2},
            "experts": {"count": 2, "width": 4, "top_k": 1},
            "image_skip": {"channels": None},
        },
        "training": training,
        "evaluation": {"validate_every": 1, "choose_model": False},
        "communication": {"codec": "fp32"},
        "runtime": {"device": "cpu"},
    }
    if name == "pfedsam-decoupled":
        content["method"] = "pfedsam"
        training |= {"phases": "decoupled", "final_steps": 1}
    if name == "pfedsam-sam-tiny":
        training["optimizer"] |= {"learning_rate": 0.004}
        content |= {"method": "pfedsam", "model": {"image_skip": {"channels": None}}, "communication": {}}
    if name == "pfedsam-defaults":
        training.pop("phases")
        training.pop("optimizer")
        content |= {"method": "pfedsam", "model": {}, "communication": {}}
    return RunOptions.model_validate(content)


def fingerprint(values: Mapping[str, Tensor]) -> dict[str, Any]:
    """A digest of the values that does not depend on their names, and their norm."""
    kept = [value for name, value in values.items() if name not in NOTHING]
    rows = sorted(
        hashlib.sha256(str(tuple(value.shape)).encode() + value.contiguous().numpy().tobytes()).hexdigest()
        for value in kept
    )
    norm = float(sum(value.double().square().sum() for value in kept) ** 0.5)
    return {"digest": hashlib.sha256("".join(rows).encode()).hexdigest(), "norm": norm}


def check(found: NamedTensors, pinned: Mapping[str, Any]) -> None:
    here = fingerprint(found)
    assert here["norm"] == pytest.approx(pinned["norm"], rel=1e-3)
    if processor() == PINNED["cpu"]:
        assert here["digest"] == pinned["digest"]


@pytest.mark.parametrize("name", PINNED["found"])
def test_nothing_that_is_trained_has_changed(name: str, toy_folder: Path, tmp_path: Path) -> None:
    run(pinned_options(toy_folder, name), tmp_path / "run")
    pinned = PINNED["found"][name]
    check(tensors.load(tmp_path / "run" / SERVER)[0], pinned["shared"])
    for site, expected in pinned["local"].items():
        state = SiteStore(tmp_path / "run" / "sites" / site / "state").load()
        assert (state is None) == (expected is None)
        if state is not None:
            check(state.local, expected)
    summary = read_summary(tmp_path / "run" / "summary.json")
    for site, models in pinned["dice"].items():
        found = {model: getattr(summary.sites[site], model) for model in ("personal", "shared")}
        dice = {model: entry.dice for model, entry in found.items() if entry is not None}
        # Scores were sums in float32 then, and are quotients of whole numbers now.
        assert dice == pytest.approx(models, abs=1e-6 if processor() == PINNED["cpu"] else 0.02)
