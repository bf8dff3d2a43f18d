"""Train a compact SAM from random weights on generated scenes, so that something useful ships without a download.

Three tasks share every batch: a single object from its box (mask token 0), a single object from one point inside it (the best of
the three multi-mask tokens, as Kirillov et al., 2023, sec. 3), and the whole foreground kind without any prompt (mask token 0,
no prompt tokens). The last one is what prompt-free fine-tuning starts from: without it fine-tuning sits on a plateau of empty
masks for its first hundred steps. A fourth task keeps colours and thin structures in the image embedding: a linear layer, which is not
part of the model, has to give the image back from it at half its resolution.
"""

import json
import multiprocessing
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Self

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
import torch.nn.functional as F
from monai.losses.dice import DiceLoss
from pydantic import Field, model_validator
from torch import Tensor, nn
from transformers import SamModel

from pfedsam.core import rng, tensors
from pfedsam.core.options import Device, Options
from pfedsam.model.backbones.checkpoint import load_network
from pfedsam.model.backbones.compact import compact_config, new_network
from pfedsam.model.backbones.encoder import encode, use_fast_blocks
from pfedsam.model.numerics import configure_numerics, fast_bfloat16
from pfedsam.training.optimizer import pack, unpack
from pretraining.dead_leaves import Scene, scene
from pretraining.muon import Muon

PATCH = 16
"""Pixels per token side, as in every SAM."""
CHECKPOINT = "checkpoint.safetensors"
SMALLEST_OBJECT = 24
"""Visible pixels below which an object is not used as a target."""
BOX_JITTER = 0.02
"""Standard deviation of a box's sides, in its lengths. With 0.06 the model learnt not to trust its box and spilt over it."""

Coordinates = npt.NDArray[np.float32]
_TENSORS = ("pixels", "boxes", "points", "objects", "foreground")


class PretrainOptions(Options):
    """How a compact SAM is trained from scratch."""

    size: str = Field(default="sam-tiny", description="Which compact SAM: sam-tiny or sam-toy.")
    steps: int = Field(default=2000, ge=1, description="Optimiser steps in all.")
    batch_size: int = Field(default=8, ge=1, description="Scenes per step and process.")
    crop: int = Field(
        default=128, ge=16, description="Side in pixels of the crops that the first part of the training sees."
    )
    crop_steps: int = Field(
        default=1400,
        ge=0,
        description="Of these, first steps on crops, the rest being on whole scenes; a step sees 2 x batch_size crops. A quarter of "
        "the tokens costs a quarter of the time, and objects keep their size.",
    )
    prompts: int = Field(default=4, ge=1, description="Objects per scene that are prompted, by box and by point.")
    learning_rate: float = Field(
        default=8e-4,
        gt=0,
        description="Peak of AdamW's learning rate (biases, norms, embeddings, convolutions); cosine to 1 % of it after the warm-up.",
    )
    matrix_learning_rate: float = Field(
        default=2e-3, gt=0, description="Peak of Muon's learning rate (weight matrices); the same schedule."
    )
    start_from: str | None = Field(
        default=None, description="Shipped name or folder of the weights to go on from; empty = random weights."
    )
    warmup: int = Field(default=100, ge=0, description="Steps over which the learning rate rises from 0.")
    weight_decay: float = Field(default=0.05, ge=0, description="Weight decay of both.")
    free_weight: float = Field(
        default=1.0, ge=0, description="Weight of the prompt-free task; the prompted ones have 1."
    )
    appearance_weight: float = Field(
        default=1.0, ge=0, description="Weight of giving the image back from its embedding (mean absolute error)."
    )
    clip: float = Field(default=1.0, gt=0, description="Largest norm of the gradient.")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto",
        description="Of the products; weights, losses and optimisers are fp32. auto: bfloat16 where the processor has instructions for it.",
    )
    save_every: int = Field(
        default=100, ge=1, description="Steps between checkpoints; a resumed run repeats at most this many."
    )
    workers: int = Field(default=1, ge=1, description="Processes, each with its own batch; gradients are averaged.")
    device: Device = Field(default="cpu", description="auto, cpu, cuda or cuda:<n>.")
    seed: int = Field(default=0, ge=0, description="Seed of weights and scenes.")

    @model_validator(mode="after")
    def _check_steps(self) -> Self:
        if self.crop_steps > self.steps:
            raise ValueError(f"of {self.steps} steps {self.crop_steps} cannot be on crops; set crop_steps, such as 0.")
        return self


@dataclass(frozen=True)
class PromptBatch:
    """Scenes with their targets; P objects each."""

    pixels: Tensor
    """`[B, 3, S, S]` in 0..1."""
    boxes: Tensor
    """`[B, P, 4]` XYXY pixels."""
    points: Tensor
    """`[B, P, 1, 2]` XY pixels."""
    objects: Tensor
    """`[B, P, S, S]` float, 1 inside the object."""
    foreground: Tensor
    """`[B, 1, S, S]` float, 1 inside any object of the foreground kind."""
    origin: tuple[int, int] = (0, 0)
    """(row, column) in pixels of these crops in the model's frame; boxes and points are in that frame."""

    def to(self, device: torch.device) -> "PromptBatch":
        """The same on a device."""
        return replace(self, **{name: getattr(self, name).to(device) for name in _TENSORS})


def draw_batch(options: PretrainOptions, side: int, step: int, worker: int) -> PromptBatch:
    """The batch of this step and worker; a function of the seed alone, so that a resumed run sees the same one."""
    generator = rng.numpy_generator(options.seed, "pretrain", step, worker)
    cropped = step < options.crop_steps
    size, wanted = (options.crop, 2 * options.batch_size) if cropped else (side, options.batch_size)
    origin = (0, 0)
    if cropped:
        row, column = generator.integers(0, (side - size) // PATCH + 1, size=2)
        origin = (int(row) * PATCH, int(column) * PATCH)
    items: list[PromptBatch] = []
    while len(items) < wanted:
        drawn = scene(side, generator)
        for top in range(0, side, size):
            for left in range(0, side, size):
                part = (slice(top, top + size), slice(left, left + size))
                item = _prompted(Scene(drawn.pixels[part], drawn.instances[part]), options.prompts, origin, generator)
                items += [item] if item else []
    return _stack(items[:wanted])


def _prompted(
    drawn: Scene, prompts: int, origin: tuple[int, int], generator: np.random.Generator
) -> PromptBatch | None:
    """A scene with prompts for some of its objects, as a batch of one; None when no object is large enough."""
    areas = np.bincount(drawn.instances.ravel())
    usable = np.flatnonzero(areas >= SMALLEST_OBJECT)
    usable = usable[usable > 0]
    if not usable.size:
        return None
    chosen = generator.choice(usable, size=prompts, replace=usable.size < prompts)
    masks = drawn.instances[None] == chosen[:, None, None]
    shift = np.array([origin[1], origin[0]], dtype=np.float32)
    boxes, points = zip(*(_prompt(mask, generator) for mask in masks), strict=True)
    return PromptBatch(
        pixels=torch.from_numpy(drawn.pixels).permute(2, 0, 1)[None],
        boxes=torch.from_numpy(np.stack(boxes) + np.tile(shift, 2))[None],
        points=torch.from_numpy(np.stack(points) + shift)[None, :, None],
        objects=torch.from_numpy(masks).float()[None],
        foreground=torch.from_numpy(drawn.instances > 0).float()[None, None],
        origin=origin,
    )


def _prompt(mask: npt.NDArray[np.bool_], generator: np.random.Generator) -> tuple[Coordinates, Coordinates]:
    """A slightly wrong box `[4]` around a mask `[S, S]` and a point `[2]` inside it."""
    down, across = np.nonzero(mask)
    box = np.array([across.min(), down.min(), across.max() + 1, down.max() + 1], dtype=np.float32)
    jitter = BOX_JITTER * np.tile(box[2:] - box[:2], 2)
    box = np.clip(box + generator.normal(0, 1, 4).astype(np.float32) * jitter, 0, mask.shape[0])
    pick = int(generator.integers(down.size))
    return box, np.array([across[pick], down[pick]], dtype=np.float32)


def _stack(items: list[PromptBatch]) -> PromptBatch:
    """Batches of one as one batch."""
    return PromptBatch(**{n: torch.cat([getattr(item, n) for item in items]) for n in _TENSORS}, origin=items[0].origin)


def mask_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Dice + cross-entropy per mask: logits and target (0..1) `[N, M, h, w]` to `[N, M]`."""
    dice = DiceLoss(sigmoid=True, reduction="none", smooth_nr=1.0, smooth_dr=1.0)(logits, target).flatten(2).mean(2)
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none").flatten(2).mean(2)
    return dice + entropy  # type: ignore[no-any-return]


class Pretrained(nn.Module):
    """A SAM, and the layer that gives the image back from its embedding, which only the training needs."""

    def __init__(self, network: SamModel) -> None:
        """The layer starts at zero, that is, with a grey image."""
        super().__init__()
        self.network = network
        channels = int(network.config.vision_config.output_channels)  # type: ignore[union-attr]
        self.appearance = nn.Conv2d(channels, 3 * (PATCH // 2) ** 2, 1)
        nn.init.zeros_(self.appearance.weight)
        nn.init.constant_(self.appearance.bias, 0.5)  # type: ignore[arg-type]

    def image(self, embedding: Tensor) -> Tensor:
        """From the image embedding `[B, e, h, w]` to the image at half its resolution, `[B, 3, 8h, 8w]`."""
        return F.pixel_shuffle(self.appearance(embedding), PATCH // 2)


def objective(trained: Pretrained, batch: PromptBatch) -> dict[str, Tensor]:
    """The scalar losses of the four tasks and of the quality head: `box`, `point`, `free`, `appearance`, `quality`.

    Losses are taken at twice the decoder's resolution, on targets averaged down to it.
    """
    model = trained.network
    origin = (batch.origin[0] // PATCH, batch.origin[1] // PATCH)
    embedding = encode(model, batch.pixels, origin)
    side = 2 * 4 * embedding.shape[-1]
    objects = F.adaptive_avg_pool2d(batch.objects, side).flatten(0, 1)[:, None]
    by_box, box_quality = _decode(model, embedding, origin, boxes=batch.boxes)
    by_point, point_quality = _decode(model, embedding, origin, points=batch.points)
    free, _ = _decode(model, embedding, origin)
    point_losses = mask_loss(by_point, objects.expand_as(by_point))
    quality = F.mse_loss(box_quality, _overlap(by_box, objects)) + F.mse_loss(
        point_quality, _overlap(by_point, objects)
    )
    return {
        "box": mask_loss(by_box, objects).mean(),
        "point": point_losses.min(dim=1).values.mean(),
        "free": mask_loss(free, F.adaptive_avg_pool2d(batch.foreground, side)).mean(),
        "appearance": F.l1_loss(trained.image(embedding).float(), F.avg_pool2d(batch.pixels, 2)),
        "quality": quality,
    }


def _decode(
    model: SamModel,
    embedding: Tensor,
    origin: tuple[int, int],
    *,
    boxes: Tensor | None = None,
    points: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Masks `[B * P, M, 8h, 8w]` (M = 3 for points, else 1) and their predicted quality `[B * P, M]`; `origin` in tokens."""
    batch, _, height, width = embedding.shape
    labels = None if points is None else torch.ones(points.shape[:-1], device=points.device)
    sparse, dense = model.prompt_encoder(points, labels, boxes, None)
    position = model.get_image_wide_positional_embeddings().expand(batch, -1, -1, -1)
    masks, quality = model.mask_decoder(
        image_embeddings=embedding,
        image_positional_embeddings=position[:, :, origin[0] : origin[0] + height, origin[1] : origin[1] + width],
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense[:, :, :height, :width],
        multimask_output=points is not None,
    )
    masks = F.interpolate(masks.flatten(0, 1).float(), scale_factor=2, mode="bilinear", align_corners=False)
    return masks, quality.flatten(0, 1)


def _overlap(logits: Tensor, target: Tensor) -> Tensor:
    """Intersection over union of thresholded masks `[N, M, h, w]`: `[N, M]`."""
    with torch.no_grad():
        found, true = logits > 0, target > 0.5
        both = (found & true).flatten(2).sum(2)
        return both / (found | true).flatten(2).sum(2).clamp(min=1)


def schedule(options: PretrainOptions, step: int) -> float:
    """The part of the peak learning rates at a step: linear warm-up, then a cosine down to 1 %."""
    if step < options.warmup:
        return (step + 1) / options.warmup
    done = (step - options.warmup) / max(1, options.steps - options.warmup)
    return 0.01 + 0.99 * 0.5 * (1 + float(np.cos(np.pi * done)))


def pretrain(
    options: PretrainOptions,
    folder: Path,
    *,
    progress: Callable[[int, dict[str, float]], None] | None = None,
) -> SamModel:
    """Train, or go on training, the compact SAM in `folder`; the last checkpoint there is taken up.

    Args:
        options: the recipe; with more than one worker the others are started here, and gradients are averaged over all.
        folder: receives `checkpoint.safetensors` and `curve.jsonl`.
        progress: called after each step with the step's number and its losses.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if options.workers == 1:
        return _train(options, folder, 0, progress)
    meeting = f"file://{(folder / 'workers').resolve()}"
    (folder / "workers").unlink(missing_ok=True)
    others = [
        multiprocessing.get_context("spawn").Process(target=_join, args=(options, folder, rank, meeting), daemon=True)
        for rank in range(1, options.workers)
    ]
    for process in others:
        process.start()
    dist.init_process_group("gloo", init_method=meeting, rank=0, world_size=options.workers)
    try:
        return _train(options, folder, 0, progress)
    finally:
        for process in others:
            process.terminate()
        dist.destroy_process_group()
        (folder / "workers").unlink(missing_ok=True)


def _join(options: PretrainOptions, folder: Path, rank: int, meeting: str) -> None:
    """What a further process does."""
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=options.workers)
    _train(options, folder, rank, None)


def _train(
    options: PretrainOptions, folder: Path, worker: int, progress: Callable[[int, dict[str, float]], None] | None
) -> SamModel:
    """The training of one process; only worker 0 writes."""
    device = configure_numerics(1, options.device)
    network = _start(options)
    model = Pretrained(network).train().requires_grad_(True).to(device)
    weights = {"free": options.free_weight, "appearance": options.appearance_weight}
    side = int(network.config.vision_config.image_size)  # type: ignore[union-attr]
    in_bfloat16 = options.precision == "bfloat16" or (options.precision == "auto" and fast_bfloat16(device))
    optimizers = _optimizers(model, options)
    start = _resume(folder, model, optimizers)
    for step in range(start, options.steps):
        begin = time.monotonic()
        for optimizer, peak in zip(optimizers, (options.matrix_learning_rate, options.learning_rate), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = peak * schedule(options, step)
        batch = draw_batch(options, side, step, worker).to(device)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=in_bfloat16):
            losses = objective(model, batch)
        model.zero_grad()
        torch.stack([weights.get(name, 1.0) * loss.float() for name, loss in losses.items()]).sum().backward()
        _average_gradients(model, options.workers)
        torch.nn.utils.clip_grad_norm_(model.parameters(), options.clip)
        for optimizer in optimizers:
            optimizer.step()
        row = {name: round(loss.item(), 4) for name, loss in losses.items()}
        if progress:
            progress(step, row)
        if worker == 0:
            _log(folder, {"step": step, **row, "seconds": round(time.monotonic() - begin, 3)})
            if (step + 1) % options.save_every == 0 or step + 1 == options.steps:
                _checkpoint(folder, step + 1, model, optimizers)
    return network.eval()


def _start(options: PretrainOptions) -> SamModel:
    if options.start_from is not None:
        return use_fast_blocks(load_network(options.start_from))  # type: ignore[type-var,return-value]
    return use_fast_blocks(
        new_network(compact_config(options.size), rng.generator(options.seed, "pretrain", "weights"))
    )


def _optimizers(model: nn.Module, options: PretrainOptions) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
    """Muon for the weight matrices of linear layers, AdamW for everything else."""
    linear = [module.weight for module in model.modules() if isinstance(module, nn.Linear)]
    matrices = {id(weight) for weight in linear}
    others = [p for p in model.parameters() if id(p) not in matrices]
    return (
        Muon(linear, lr=options.matrix_learning_rate, weight_decay=options.weight_decay),
        torch.optim.AdamW(others, weight_decay=options.weight_decay, betas=(0.9, 0.95)),
    )


def _average_gradients(model: nn.Module, workers: int) -> None:
    """Average the gradients over the processes, as one flat tensor."""
    if workers == 1:
        return
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    for gradient, mean in zip(gradients, (flat / workers).split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def _log(folder: Path, row: dict[str, float]) -> None:
    with (folder / "curve.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")


def _checkpoint(folder: Path, step: int, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> None:
    parameters = dict(model.named_parameters())
    state = {f"model:{name}": value.detach().cpu() for name, value in parameters.items()}
    for optimizer in optimizers:
        state |= {f"optimizer:{name}": value for name, value in pack(optimizer, parameters).items()}
    tensors.save(folder / CHECKPOINT, state, {"step": str(step)})


def _resume(folder: Path, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> int:
    """Load the checkpoint in `folder`, if any; the number of steps already done."""
    path = folder / CHECKPOINT
    if not path.exists():
        return 0
    state, metadata = tensors.load(path, unsealed=("step",))
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(state[f"model:{name}"])
    for optimizer in optimizers:
        mine = {id(p) for group in optimizer.param_groups for p in group["params"]}
        packed = {
            key.removeprefix("optimizer:"): value
            for key, value in state.items()
            if key.startswith("optimizer:") and id(parameters[key.split(":")[1]]) in mine
        }
        unpack(optimizer, parameters, packed)
    return int(metadata["step"])
