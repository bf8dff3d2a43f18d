"""A federation on a GPU computes what it computes on the CPU, up to rounding. Skipped if torch finds no GPU."""

from pathlib import Path

import pytest
import torch

from pfedsam.core import rng
from pfedsam.core.tensors import load
from pfedsam.engine.opened import open_run
from pfedsam.engine.run import run
from pfedsam.engine.server_files import SERVER
from pfedsam.experiment.build import build_model
from pfedsam.experiment.options import RunOptions
from pfedsam.model.backbones.compact import compact_config, new_network
from pfedsam.model.backbones.encoder import encode, use_fast_blocks
from pfedsam.model.numerics import configure_numerics
from pfedsam.report.summary_file import read_summary
from pretraining.pretrain import PretrainOptions, pretrain

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU here")


def on(device: str, options: RunOptions, **changes: object) -> RunOptions:
    runtime = options.runtime.model_copy(update={"device": device, **changes})
    return options.model_copy(update={"runtime": runtime})


@pytest.mark.parametrize("name", ["sam-toy", "sam-tiny"])
def test_an_embedding_is_the_cpus(name: str) -> None:
    configure_numerics(1, "cuda")
    sam = use_fast_blocks(new_network(compact_config(name), rng.generator(0, "gpu")))
    side = sam.config.vision_config.image_size
    pixels = torch.rand(2, 3, side, side, generator=rng.generator(0, "pixels"))
    with torch.no_grad():
        expected = encode(sam, pixels)
        found = encode(sam.to("cuda"), pixels.to("cuda")).cpu()
    assert (found - expected).abs().max() < 1e-4


@pytest.mark.parametrize("method", ["pfedsam", "fedprox", "fedsam", "ditto"])
def test_a_run_ends_where_that_on_the_cpu_does(tmp_path: Path, toy_options: RunOptions, method: str) -> None:
    options = toy_options.model_copy(update={"method": method})
    # Two steps of a small rate: rounding is not yet blown up by training.
    optimizer = options.training.optimizer.model_copy(update={"learning_rate": 1e-3})
    training = options.training.model_copy(update={"rounds": 1, "shared_warmup_rounds": 0, "optimizer": optimizer})
    options = options.model_copy(update={"training": training})
    shared = {}
    for device in ("cpu", "cuda"):
        run(on(device, options), tmp_path / device)
        shared[device] = load(tmp_path / device / SERVER)[0]
    start = build_model(options).start("shared")
    for name, value in shared["cpu"].items():
        moved = (value - start[name]).abs().max()
        assert (shared["cuda"][name] - value).abs().max() <= 0.05 * moved + 1e-5, name


def test_a_gpus_run_is_resumed_predicted_from_and_its_state_used_on_the_cpu(
    tmp_path: Path, toy_options: RunOptions
) -> None:
    folder = tmp_path / "run"
    run(on("auto", toy_options, workers=2), folder)
    (folder / "summary.json").unlink()
    run(on("cpu", toy_options), folder, resume=True)
    site = next(iter(toy_options.data.sites))
    image = next((toy_options.data.sites[site] / "images").iterdir())
    assert open_run(folder).site(site).predict(image).ndim == 2
    assert read_summary(folder / "summary.json").method == "pfedsam"


def test_bf16_runs_on_the_gpu(tmp_path: Path, toy_options: RunOptions) -> None:
    model = toy_options.model.model_copy(update={"precision": "bfloat16"})
    summary = run(on("cuda", toy_options.model_copy(update={"model": model})), tmp_path / "run")
    assert set(summary.sites) == set(toy_options.data.sites)


def test_pretraining_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    for steps in (2, 4):
        options = PretrainOptions(size="sam-toy", steps=steps, crop_steps=0, batch_size=2, warmup=0, device="cuda")
        model = pretrain(options, tmp_path)
    assert model.vision_encoder.pos_embed.device.type == "cuda"
    assert len((tmp_path / "curve.jsonl").read_text().splitlines()) == 4
