"""The command of docs/official-weights.md, with random weights in the format of an official file."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pfedsam.core import rng
from pfedsam.data.synthetic import SyntheticOptions, write_sites
from pfedsam.experiment.suite import load_suite
from pfedsam.model.backbones.checkpoint import ARCHITECTURES, official_config
from pfedsam.model.backbones.compact import new_network
from pfedsam.model.backbones.key_map import to_official

ROOT = Path(__file__).parents[1]


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A ViT-B for images of 1024 pixels with random weights, as `torch.save` of the official code writes it."""
    config = official_config(ARCHITECTURES["ViT-B"], 1024)
    state = new_network(config, rng.generator(0)).state_dict()
    path = tmp_path / "sam_vit_b_random.pth"
    torch.save({official: tensor for name, tensor in state.items() if (official := to_official(name))}, path)
    return path


@pytest.mark.system
def test_one_command_makes_a_table_and_goes_on_where_it_stopped(tmp_path: Path, weights: Path) -> None:
    sites = write_sites(tmp_path / "generated", SyntheticOptions(sites=3, cases=6, side=64), seed=0)
    (tmp_path / "data" / "optic_disc").mkdir(parents=True)
    for site, name in zip(sites, load_suite("disc").sites, strict=True):
        site.folder.rename(tmp_path / "data" / "optic_disc" / name)
    options = [
        "training.rounds=2",
        "data.classes={disc: [1, 2]}",
        "evaluation.validate_every=0",
    ]
    command = [sys.executable, "benchmarks/official_weights.py", str(tmp_path / "data"), str(weights)]
    command += ["--runs", str(tmp_path / "runs"), "--tables", "accuracy", "--seeds", "0", "--methods", "fedavg"]
    command += ["--image-size", "64", *(word for option in options for word in ("--set", option))]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    for _ in range(2):
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        assert "The suite nuclei is left out: there is no folder 'nuclei' in DATA." in done.stdout
    result = json.loads((tmp_path / "runs" / "accuracy-disc-sam_vit_b_random.json").read_text())
    (method,) = result["methods"].values()
    assert (method["method"], method["seeds"], method["steps"]) == ("fedavg", [0], 8)
    summary = json.loads((tmp_path / "runs" / "disc" / "seed0" / "fedavg" / "summary.json").read_text())
    assert summary["backbone"] == "sam_vit_b_random.pth"
