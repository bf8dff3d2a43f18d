"""The subjects of `benchmarks/speed.py`: training steps of the reference and of pFedSAM. Each call does one step and returns its seconds.

Ours train a `PersonalSam` by `run_phase` with batches from `SiteData.draw`, as in a round at a site, so that augmentation, hashes and the
cache of frozen features are included.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from reference.fine_tuning import add_experts, add_lora, add_msa, logits, make_step, train_all
from reference.segment_anything_modeling import OFFICIAL, build_reference, randomise
from torch import Tensor, nn

from pfedsam.core import rng
from pfedsam.data.loader import Example
from pfedsam.data.manifest import Case
from pfedsam.data.transforms import AugmentOptions, Frame
from pfedsam.federation.methods.pfedsam import METHOD
from pfedsam.model.backbones.base import standardise
from pfedsam.model.backbones.checkpoint import load_backbone, load_network
from pfedsam.model.backbones.encoder import encode
from pfedsam.model.build import build_personal
from pfedsam.model.numerics import faster_precision
from pfedsam.model.options import ModelOptions
from pfedsam.model.partition import Partition
from pfedsam.model.personal import PersonalSam
from pfedsam.model.prefix import PrefixCache, PrefixOptions
from pfedsam.training.distillation import DistillationOptions, distillation_loss
from pfedsam.training.losses import segmentation_loss
from pfedsam.training.options import TrainingOptions
from pfedsam.training.phases import OptimizerOptions, PhaseSpec, run_phase
from pfedsam.training.site_data import Batch, SiteData

Subject = Callable[[], float]
"""A function that does the work once and returns the seconds that it took."""
EVERYTHING = PhaseSpec("everything", trains=("shared", "local"), supervised=("personal",))
"""Trains the personal model alone, because beside the pass of the shared model the share of the experts would seem half as large."""
LORA_ONLY = {"experts": None, "output_layers": "frozen", "lora": {"decoder": False}}
"""Options with which ours trains the same parameters as the reference's LoRA: only low-rank updates of the encoder's attention."""


@dataclass(frozen=True)
class Setting:
    """The settings that all subjects have in common."""

    weights: Path
    """A file in the official format with random weights of ViT-B for 1024 px."""
    size: int
    """S, the side of the images in pixels."""
    batch: int
    device: str

    def data(self) -> tuple[Tensor, Tensor]:
        """Pixels `[B, 3, S, S]` of noise in 0..1 and labels `[B, S, S]` of a disc, on the CPU."""
        generator = rng.generator(0, "speed")
        place = torch.linspace(-1, 1, self.size)
        disc = (place[:, None] ** 2 + place**2 < 0.3).to(torch.uint8)
        return torch.rand(self.batch, 3, self.size, self.size, generator=generator), disc.repeat(self.batch, 1, 1)

    def now(self) -> float:
        """The time in seconds: CPU time of the process, or on a GPU wall time after all work has ended."""
        if self.device == "cpu":
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()


def write_weights(path: Path) -> None:
    """Write random weights of ViT-B in the official format."""
    torch.save(randomise(build_reference(**OFFICIAL["ViT-B"]), seed=0).state_dict(), path)


@lru_cache(maxsize=1)
def _weights_at(weights: Path, size: int) -> dict[str, Tensor]:
    """The tensors of the file, with the positional embeddings that our loader interpolates for `size`."""
    state = torch.load(weights, weights_only=True)
    ours = load_network(weights, image_size=size).vision_encoder
    state["image_encoder.pos_embed"] = ours.pos_embed.data
    for i, axis in ((i, axis) for i in range(len(ours.layers)) for axis in "hw"):
        state[f"image_encoder.blocks.{i}.attn.rel_pos_{axis}"] = getattr(ours.layers[i].attn, f"rel_pos_{axis}").data
    return state


def reference_sam(setting: Setting) -> nn.Module:
    """ViT-B of the `segment-anything` package at the size of the setting, with the same weights as ours."""
    sam = build_reference(**OFFICIAL["ViT-B"], image_size=setting.size)
    sam.load_state_dict(_weights_at(setting.weights, setting.size))
    return sam.to(setting.device)


def timed(setting: Setting, precision: str, work: Callable[[], object]) -> Subject:
    """`work` as a subject, with this precision of torch's fp32 matrix products."""

    def subject() -> float:
        torch.set_float32_matmul_precision(precision)
        start = setting.now()
        work()
        return setting.now() - start

    return subject


def reference_step(setting: Setting, kind: str, precision: str = "highest") -> Subject:
    """A step of `FedSAM`, `FedMSA`, `LoRA` or `two models` (`reference/fine_tuning.py`), with torch's default settings."""
    pixels, labels = (tensor.to(setting.device) for tensor in setting.data())
    pixels, sam, teach = standardise(pixels), reference_sam(setting), None
    if kind == "two models":
        teacher = reference_sam(setting)
        add_lora(teacher)
        teacher.to(setting.device)
        teacher.requires_grad_(False)
        add_lora(sam)
        sam.requires_grad_(False)
        trained = add_experts(sam)

        def teach(found: Tensor) -> Tensor:
            with torch.no_grad():
                answer = logits(teacher, pixels)
            return distillation_loss(found, answer, labels, DistillationOptions())
    else:
        trained = {"FedSAM": train_all, "FedMSA": add_msa, "LoRA": add_lora}[kind](sam)
    sam.to(setting.device)  # also what was added
    return timed(setting, precision, make_step(sam, trained, pixels, labels, segmentation_loss, teach))


def reference_encoder(setting: Setting, precision: str = "highest") -> Subject:
    """The encoder's forward pass of the `segment-anything` package."""
    sam, pixels = reference_sam(setting), standardise(setting.data()[0]).to(setting.device)
    return timed(setting, precision, torch.no_grad()(lambda: sam.image_encoder(pixels)))


def our_model(setting: Setting, changes: dict[str, Any]) -> tuple[PersonalSam, Partition]:
    """The personal SAM, and the partition of its parameters by the method `pfedsam`."""
    options = ModelOptions.model_validate({"image_size": setting.size, **changes})
    sam = load_backbone(setting.weights, image_size=setting.size)
    model = build_personal(sam, options, 1, rng.generator(0, "model"), torch.device(setting.device)).eval()
    partition = Partition.of(model, model.components(), METHOD.placement(options))
    return model.requires_grad_(False), partition


def our_encoder(setting: Setting, precision: str) -> tuple[Subject, PersonalSam]:
    """Our encoder's forward pass over the same weights, and the model."""
    model, _ = our_model(setting, {**LORA_ONLY, "adapt_last": 1, "precision": precision, "image_skip": False})
    pixels = setting.data()[0].to(setting.device, model.frozen_dtype)

    @torch.no_grad()
    def work() -> Tensor:
        return encode(model.sam, pixels)

    return timed(setting, faster_precision(torch.device(setting.device)), work), model


class OurStep:
    """A step of a phase of a client round; with `later`, not the first step of the phase, which also computes the teacher's logits."""

    def __init__(
        self, setting: Setting, phase: str, changes: dict[str, Any], *, cached: bool = True, later: bool = True
    ) -> None:
        self.setting, self.later = setting, later
        self.model, self.partition = our_model(setting, changes)
        forms = (TrainingOptions(phases="coupled"), TrainingOptions(phases="decoupled"))
        phases = [*(spec for form in forms for spec in METHOD.phases(form)), EVERYTHING]
        self.spec = next(spec for spec in phases if spec.name == phase)
        self.names = self.partition.names(*self.spec.trains)
        self._folder = tempfile.TemporaryDirectory()
        prefix = PrefixOptions(
            max_gigabytes=4.0 if cached else 0.0,
            dtype="bfloat16" if self.model.frozen_dtype == torch.bfloat16 else "float32",
        )
        cache = PrefixCache(Path(self._folder.name), "speed", self.model.prefix_shape, prefix)
        pixels, labels = setting.data()
        frame = Frame.of((setting.size, setting.size), setting.size)
        examples = [
            Example(Case("speed", str(i), Path(), Path(), str(i)), x, y, frame)
            for i, (x, y) in enumerate(zip(pixels, labels, strict=True))
        ]
        self.data = SiteData("speed", examples, cache, AugmentOptions(views=1), 0)
        self._optimizer: dict[str, Tensor] = {}

    def __call__(self) -> float:
        """Do one step, and return its seconds."""
        torch.set_float32_matmul_precision(faster_precision(torch.device(self.setting.device)))
        times: list[float] = []
        result = run_phase(
            self.model,
            self._noting(self._batches(2 if self.later else 1), times),
            self.spec,
            names=self.names,
            learning_rates=[1e-4],
            optimizer_state=self._optimizer,
            options=OptimizerOptions(),
            distillation=DistillationOptions(),
            balance=0.01,
        )
        self._optimizer = result.optimizer
        return times[-1] - times[-2]

    def _batches(self, steps: int) -> Iterator[Batch]:
        if self.setting.device == "cpu":
            return self.data.draw(self.model, round_=0, phase="speed", batch_size=self.setting.batch, steps=steps)
        return iter([self._resident] * steps)

    @property
    def _resident(self) -> Batch:
        """The batch on a GPU, with its frozen features in GPU memory, so that the time to read them from the file is not included."""
        if not hasattr(self, "_kept"):
            pixels, labels = (tensor.to(self.setting.device) for tensor in self.setting.data())
            self._kept = Batch(self.model.prefix(pixels), labels, tuple((i, 0) for i in range(len(pixels))))
        return self._kept

    def _noting(self, batches: Iterator[Batch], times: list[float]) -> Iterator[Batch]:
        """The same batches; appends the time before each is drawn, and after the last, so that a step includes drawing its batch."""
        while True:
            times.append(self.setting.now())
            batch = next(batches, None)
            if batch is None:
                return
            yield batch
