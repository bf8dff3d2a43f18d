"""Compares the time and the memory of a client's training step with the `segment-anything` package, in one run with random ViT-B weights.

    python benchmarks/speed.py                                            # CPU: one thread, process CPU time
    python benchmarks/speed.py --device cuda --size 1024 --batch 1 2 4 8  # GPU: wall time of finished work

Writes benchmarks/results/speed-cpu.json and .md, or speed-<gpu>. The subjects (`speed_subjects.py`) do one step each in turn, for several
rounds; figures are ratios of medians. The reference uses torch's default settings, and ours those of `configure_numerics`. Memory is the
amount by which five steps increase the peak of the resident set, each subject in a process of its own; on a GPU, the amount by which one
step increases the memory that torch has allocated.
"""

import argparse
import ctypes
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import gpu_name, write_result
from speed_figures import GOALS, GPU_GOALS, Times, figures_of, gpu_figures, of_fedmsa, table_of
from speed_subjects import (
    LORA_ONLY,
    OurStep,
    Setting,
    Subject,
    our_encoder,
    reference_encoder,
    reference_step,
    write_weights,
)

from pfedsam.core import rng
from pfedsam.model.numerics import configure_numerics, fast_bfloat16, faster_precision

BF16 = {"precision": "bfloat16"}
ALL = {**LORA_ONLY, "adapt_last": None}
STEPS: Mapping[str, Callable[[Setting], Subject]] = {
    "FedSAM": partial(reference_step, kind="FedSAM"),
    "FedMSA": partial(reference_step, kind="FedMSA"),
    "LoRA": partial(reference_step, kind="LoRA"),
    "two models": partial(reference_step, kind="two models"),
    "our LoRA, 12 blocks": partial(OurStep, phase="global", changes=ALL),
    "our LoRA, 12 blocks, bf16": partial(OurStep, phase="global", changes={**ALL, **BF16}),
    "our LoRA, last 4, no cache": partial(
        OurStep, phase="global", changes={**LORA_ONLY, "adapt_last": 4}, cached=False
    ),
    "global step": partial(OurStep, phase="global", changes={}),
    "global step, bf16": partial(OurStep, phase="global", changes=BF16),
    "global step, recomputed": partial(OurStep, phase="global", changes={"recompute": True}),
    "personal step": partial(OurStep, phase="local", changes={}),
    "personal step, bf16": partial(OurStep, phase="local", changes=BF16),
    "personal step, teacher's logits": partial(OurStep, phase="local", changes={}, later=False),
    "coupled step": partial(OurStep, phase="coupled", changes={}),
    "coupled step, bf16": partial(OurStep, phase="coupled", changes=BF16),
}
"""`coupled step`: the default model (last 4 blocks, cache, LoRA in the decoder, output layers, 4 experts); both models learn from the whole
batch. `global step` and `personal step` are those of two decoupled phases; the latter uses the shared model's logits, which were stored
when the image was drawn for the first time."""
EXPERTS: Mapping[str, Callable[[Setting], Subject]] = {
    "without experts": partial(OurStep, phase="everything", changes={"experts": None}),
    "with experts": partial(OurStep, phase="everything", changes={}),
}
MEMORY_STEPS = 5
IN_MEMORY = (
    "FedSAM",
    "FedMSA",
    "LoRA",
    "two models",
    "global step",
    "global step, recomputed",
    "global step, bf16",
    "personal step",
    "coupled step",
)


def interleave(subjects: Mapping[str, Subject], repeats: int) -> Times:
    """Seconds of every subject, one after the other, `repeats` times; a first round is not counted."""
    times: Times = {name: [] for name in subjects}
    for number in range(repeats + 1):
        for name, subject in subjects.items():
            try:
                seconds = subject()
            except torch.OutOfMemoryError:
                print(f"  {name}: out of memory, not measured", flush=True)
                continue
            if number:
                times[name].append(seconds)
        print(f"  round {number} of {repeats}, {time.process_time():.0f} s of CPU time so far", flush=True)
    return times


def encoders(setting: Setting) -> dict[str, Subject]:
    """The forward passes of the encoder."""
    subjects = {
        "encoder": reference_encoder(setting),
        "encoder, faster products": reference_encoder(setting, "medium"),
        "our encoder": our_encoder(setting, "float32")[0],
    }
    if setting.device == "cuda" or fast_bfloat16():
        subjects["our encoder, bf16"] = our_encoder(setting, "bfloat16")[0]
    return subjects


@torch.no_grad()
def bf16_dice(setting: Setting, images: int = 4) -> float:
    """Dice between the prompt-free masks of the encoder in bf16 and in fp32, cut at the median logit: random weights give no object."""
    models = [our_encoder(setting, precision)[1] for precision in ("float32", "bfloat16")]
    found = []
    for number in range(images):
        pixels = torch.rand(1, 3, setting.size, setting.size, generator=rng.generator(number, "dice")).to(
            setting.device
        )
        logits = [model(pixels) for model in models]
        masks = [z > logits[0].median() for z in logits]
        found.append((2 * (masks[0] & masks[1]).sum() / (masks[0].sum() + masks[1].sum())).item())
    return statistics.mean(found)


def matrix_rates(device: str) -> dict[str, float]:
    """GFLOP/s of a matrix product of the encoder's size, rows x 768 by 768 x 3072: an upper bound of the speed of everything here.

    There are 512 rows on a processor. On a GPU there are those of 8 images of 1024 px, and ten products in a row are timed, so that the
    time to launch them does not matter.
    """
    rates = {}
    setting = Setting(Path(), 0, 0, device)
    for name, dtype, precision in (
        ("fp32", torch.float32, "highest"),
        ("fp32 medium", torch.float32, "medium"),
        ("bf16", torch.bfloat16, "medium"),
    ):
        torch.set_float32_matmul_precision(precision)
        rows, products = (512, 1) if device == "cpu" else (32768, 10)
        a, b = (torch.randn(shape, device=device).to(dtype) for shape in ((rows, 768), (768, 3072)))
        seconds = []
        for _ in range(12 if dtype == torch.float32 or device == "cuda" or fast_bfloat16() else 0):
            start = setting.now()
            for _ in range(products):
                a @ b
            seconds.append((setting.now() - start) / products)
        if seconds:
            rates[name] = 2 * rows * 768 * 3072 / statistics.median(seconds[2:]) / 1e9
    return rates


def memory_of(name: str, setting: Setting) -> tuple[float, float]:
    """MiB by which the first step, and `MEMORY_STEPS` steps, increase the peak of the resident set of this process.

    Activations and the moments of the optimiser are in memory at the same time only from the second step on.
    """
    torch.set_float32_matmul_precision(
        faster_precision(torch.device("cpu"))
    )  # as in our steps; the cache is filled below
    subject = STEPS[name](setting)
    if isinstance(subject, OurStep):
        list(
            subject.data.draw(subject.model, round_=0, phase="speed", batch_size=setting.batch, steps=1)
        )  # fills the cache
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before, peaks = _status("VmRSS"), []
    for _ in range(MEMORY_STEPS):
        subject()
        peaks.append(_status("VmHWM") - before)
    return peaks[0], peaks[-1]


def _status(entry: str) -> float:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[entry].split()[0]) / 1024


def memory(setting: Setting) -> dict[str, dict[str, float]]:
    """The results of `memory_of` by subject, each measured in a process of its own."""
    found: dict[str, dict[str, float]] = {"mebibytes": {}, "mebibytes_first_step": {}}
    for name in _possible(IN_MEMORY):
        arguments = ["--size", str(setting.size), "--batch", str(setting.batch)]
        command = [sys.executable, __file__, "--memory-of", name, "--weights", str(setting.weights), *arguments]
        answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        first, peak = json.loads(answer.splitlines()[-1])
        found["mebibytes"][name], found["mebibytes_first_step"][name] = peak, first
        print(f"  {name}: {peak:.0f} MiB, the first step {first:.0f}", flush=True)
    return found


def gpu_memory(subject: Subject) -> float:
    """MiB by which one step increases the peak of the memory that torch has allocated on the GPU."""
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    subject()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def _possible(names: Iterable[str]) -> list[str]:
    """Those of the subjects that this processor supports."""
    return [name for name in names if "bf16" not in name or fast_bfloat16()]


def run_cpu(setting: Setting, repeats: int, name: str) -> None:
    """Measure everything at 256 px, and the encoder also at 1024 px; the results are written after each part."""
    one = Setting(setting.weights, setting.size, 1, "cpu")
    found = Found(matrix_rates("cpu"))
    for title, measure in {
        "encoder": lambda: {"times": interleave(encoders(one), repeats)},
        "steps": lambda: {"times": interleave({name: STEPS[name](setting) for name in _possible(STEPS)}, repeats)},
        "experts": lambda: {
            "times": interleave({name: make(setting) for name, make in EXPERTS.items()}, 2 * repeats + 1)
        },
        "masks in bf16": lambda: {"dice": bf16_dice(one) if fast_bfloat16() else None},
        "encoder at 1024 px": lambda: {
            "encoder_1024": interleave_once(encoders(Setting(setting.weights, 1024, 1, "cpu")), max(1, repeats // 2))
        },
        "memory": lambda: memory(setting),
    }.items():
        print(title, flush=True)
        found.add(**measure())
        gc.collect()
        found.write(repeats, name)


@dataclass
class Found:
    """The measurements of a run on the CPU so far."""

    gflops: dict[str, float]
    times: Times = field(default_factory=dict)
    encoder_1024: Times = field(default_factory=dict)
    mebibytes: dict[str, float] = field(default_factory=dict)
    mebibytes_first_step: dict[str, float] = field(default_factory=dict)
    dice: float | None = None

    def add(self, **measured: Any) -> None:  # noqa: ANN401 - of the fields
        """Add the measurements of a part."""
        self.times |= measured.pop("times", {})
        for name, value in measured.items():
            setattr(self, name, value)

    def write(self, repeats: int, name: str) -> None:
        """Write the JSON file and the table; parts that are not measured yet are shown as `not measured`."""
        figures = figures_of(self.times, self.encoder_1024, self.mebibytes, self.dice)
        figures["memory_first_step_vs_fedmsa"] = of_fedmsa(self.mebibytes_first_step, "global step")
        write_result(
            name,
            command=f"python benchmarks/speed.py --repeats {repeats} --name {name}",
            seeds=[0],
            figures=figures,
            table=table_of(figures, GOALS, self.times, self.mebibytes, self.gflops),
            goals=GOALS,
            load_average=os.getloadavg(),
            gflops=self.gflops,
            seconds=self.times,
            seconds_encoder_1024=self.encoder_1024,
            mebibytes_added=self.mebibytes,
            mebibytes_added_by_the_first_step=self.mebibytes_first_step,
        )


def interleave_once(subjects: Mapping[str, Subject], repeats: int) -> Times:
    """As `interleave`, but every round is counted: these passes take so long that the first one hardly differs."""
    times: Times = {name: [] for name in subjects}
    for _ in range(repeats):
        for name, subject in subjects.items():
            times[name].append(subject())
    return times


def run_gpu(settings: list[Setting], repeats: int) -> None:
    """Measure encoder and steps at each batch size, and write the results after each; the figures are those of the largest batch."""
    rates, by_batch = matrix_rates("cuda"), {}
    tables: dict[int, str] = {}
    for setting in settings:
        makers = {**STEPS, **EXPERTS}
        subjects = {name: make(setting) for name, make in makers.items()} | encoders(setting)
        times = interleave(subjects, repeats)
        mebibytes = {name: gpu_memory(subjects[name]) for name in IN_MEMORY if times[name]}
        del subjects
        gc.collect()
        torch.cuda.empty_cache()
        figures = gpu_figures(setting, times, mebibytes, rates)
        by_batch[setting.batch] = {"figures": figures, "seconds": times, "mebibytes_added": mebibytes}
        tables[setting.batch] = table_of(figures, GPU_GOALS, times, mebibytes, rates)
        largest = max(by_batch)
        sizes = " ".join(str(batch) for batch in sorted(by_batch))
        write_result(
            f"speed-{gpu_name()}",
            command=f"python benchmarks/speed.py --device cuda --size {setting.size} --batch {sizes}",
            seeds=[0],
            figures=by_batch[largest]["figures"],
            table="\n\n".join(f"Batch {batch}\n\n{tables[batch]}" for batch in sorted(tables, reverse=True)),
            goals=GPU_GOALS,
            by_batch=by_batch,
            gflops=rates,
            load_average=os.getloadavg(),
        )


def main() -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--size", type=int, default=256, help="Side of the images in pixels.")
    parser.add_argument("--batch", type=int, nargs="+", default=[2])
    parser.add_argument(
        "--repeats", type=int, default=5, help="Number of rounds, without the first one, which is not counted."
    )
    parser.add_argument("--name", default="speed-cpu", help="Name of the result files of a run on the CPU.")
    parser.add_argument("--weights", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--memory-of", choices=list(STEPS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    configure_numerics(1, arguments.device)
    with tempfile.TemporaryDirectory() as folder:
        weights = arguments.weights or Path(folder) / "vit_b.pth"
        settings = [Setting(weights, arguments.size, batch, arguments.device) for batch in arguments.batch]
        if arguments.memory_of:
            print(json.dumps(memory_of(arguments.memory_of, settings[0])))
            return
        write_weights(weights)
        if arguments.device == "cpu":
            run_cpu(settings[0], arguments.repeats, arguments.name)
        else:
            run_gpu(settings, arguments.repeats)


if __name__ == "__main__":
    main()
