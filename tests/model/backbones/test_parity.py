"""Our backbone computes what the `segment-anything` package computes from the same file."""

import logging
from pathlib import Path

import pytest
import torch
from reference.segment_anything_modeling import OFFICIAL, SMALL, build_reference, randomise
from torch import Tensor, nn
from transformers import SamModel

from pfedsam.model.backbones.base import standardise
from pfedsam.model.backbones.checkpoint import load_network
from pfedsam.model.backbones.encoder import encode, use_fast_blocks

TOLERANCE = 1e-4
BOXES = torch.tensor([[20.0, 30.0, 200.0, 180.0], [1.0, 2.0, 60.0, 250.0]])  # XYXY in pixels of the model's input
POINTS = torch.tensor([[[50.0, 60.0], [120.0, 90.0]], [[10.0, 250.0], [0.0, 0.0]]])  # two prompts of two points, XY
LABELS = torch.tensor([[1, 0], [1, 1]])


def embed(ours: SamModel, reference: nn.Module, side: int) -> tuple[Tensor, Tensor]:
    pixels = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(5))
    return ours.get_image_embeddings(pixels), reference.image_encoder(pixels)


def logits(
    ours: SamModel, reference: nn.Module, embedding: Tensor, *, prompt: str, multimask: bool
) -> tuple[Tensor, Tensor]:
    """Mask logits [P, C, S/4, S/4] of both for P prompts on one image."""
    scale = reference.image_encoder.img_size / 256
    points = (POINTS * scale, LABELS) if "points" in prompt else None
    boxes = BOXES * scale if "boxes" in prompt else None
    sparse, dense = reference.prompt_encoder(points=points, boxes=boxes, masks=None)
    theirs, _ = reference.mask_decoder(
        image_embeddings=embedding,
        image_pe=reference.prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=multimask,
    )
    result = ours(
        image_embeddings=embedding,
        input_points=None if points is None else points[0][None],
        input_labels=None if points is None else points[1][None],
        input_boxes=None if boxes is None else boxes[None],
        multimask_output=multimask,
    )
    return result.pred_masks[0], theirs


def assert_equal(ours: Tensor, theirs: Tensor) -> None:
    assert ours.shape == theirs.shape
    assert theirs.std() > 0.05, "the weights make nothing happen, so the comparison says nothing"
    difference = (ours - theirs).abs().max().item()
    logging.getLogger(__name__).info("largest difference %.1e at standard deviation %.2f", difference, theirs.std())
    assert difference <= TOLERANCE


@pytest.fixture
def small(small_official: Path) -> tuple[SamModel, nn.Module]:
    """Ours and the reference with the weights of the same file."""
    reference = build_reference(**SMALL, image_size=256)
    reference.load_state_dict(torch.load(small_official))
    return load_network(small_official), reference


def test_image_embedding(small: tuple[SamModel, nn.Module]) -> None:
    assert_equal(*embed(*small, 256))


@pytest.mark.parametrize("prompt", ["boxes", "points", "points and boxes", "none"])
@pytest.mark.parametrize("multimask", [True, False])
@torch.no_grad()
def test_mask_logits(small: tuple[SamModel, nn.Module], prompt: str, multimask: bool) -> None:
    _, embedding = embed(*small, 256)
    assert_equal(*logits(*small, embedding, prompt=prompt, multimask=multimask))


@pytest.mark.parametrize("side", [128, 512])
@torch.no_grad()
def test_another_image_size(small_official: Path, side: int) -> None:
    # segment-anything interpolates relative positions by itself when they do not fit; so its weights stay as they are,
    # and only the position embedding is interpolated here, as SAMed does.
    ours = load_network(small_official, image_size=side)
    reference = build_reference(**SMALL, image_size=side)
    for name, values in torch.load(small_official).items():
        owner, _, leaf = name.rpartition(".")
        getattr(reference.get_submodule(owner), leaf).data = values
    grid = reference.image_encoder.pos_embed.data.permute(0, 3, 1, 2)
    grid = nn.functional.interpolate(grid, (side // 16, side // 16), mode="bilinear", align_corners=False)
    reference.image_encoder.pos_embed.data = grid.permute(0, 2, 3, 1)
    ours_embedding, embedding = embed(ours, reference, side)
    assert_equal(ours_embedding, embedding)
    assert_equal(*logits(ours, reference, embedding, prompt="boxes", multimask=True))


@pytest.mark.parametrize("side", [256, 512])
def test_fast_blocks(small_official: Path, side: int) -> None:
    """Block for block on the same tokens, then the whole; 512 px are 1024 tokens, and with gradients another attention is chosen."""
    ours = use_fast_blocks(load_network(small_official, image_size=side))
    reference = build_reference(**SMALL, image_size=side)
    for name, values in torch.load(small_official).items():
        if "pos_embed" not in name:
            owner, _, leaf = name.rpartition(".")
            getattr(reference.get_submodule(owner), leaf).data = values
    tokens = torch.randn(2, side // 16, side // 16, SMALL["width"], generator=torch.Generator().manual_seed(6))
    for block, theirs in zip(ours.vision_encoder.layers, reference.image_encoder.blocks, strict=True):
        for gradients in (False, True):
            with torch.set_grad_enabled(gradients):
                found, expected = block(tokens.requires_grad_(gradients)), theirs(tokens)
            assert (found - expected).abs().max() <= 2e-6 * expected.abs().max()
        tokens = expected.detach()
    reference.image_encoder.pos_embed.data = ours.vision_encoder.pos_embed.data
    pixels = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        assert_equal(encode(ours, pixels), reference.image_encoder(standardise(pixels)))


@pytest.mark.parametrize("side", [256, 512])
def test_gradients_of_fast_blocks(small_official: Path, side: int) -> None:
    """Of the tokens and of every parameter, within 1e-6 of the largest."""
    ours = use_fast_blocks(load_network(small_official, image_size=side))
    reference = build_reference(**SMALL, image_size=side)
    names = {"layer_norm1": "norm1", "layer_norm2": "norm2"}  # those of a block that differ
    drawn = torch.Generator().manual_seed(6)
    tokens, target = (torch.randn(2, side // 16, side // 16, SMALL["width"], generator=drawn) for _ in range(2))
    for block, theirs in zip(ours.vision_encoder.layers, reference.image_encoder.blocks, strict=True):
        values = {name: p.detach().clone() for name, p in block.named_parameters()}
        theirs.load_state_dict({".".join(names.get(part, part) for part in n.split(".")): v for n, v in values.items()})
        gradients = []
        for each in (block, theirs):
            given = tokens.clone().requires_grad_()
            ((each.requires_grad_()(given) - target) ** 2).mean().backward()
            gradients.append([given.grad, *(parameter.grad for parameter in each.parameters())])
        for found, expected in zip(*gradients, strict=True):
            assert (found - expected).abs().max() <= 1e-6 * expected.abs().max()
        tokens = theirs(tokens).detach()


@pytest.mark.slow
@torch.no_grad()
def test_vit_b_at_1024(tmp_path: Path) -> None:
    reference = randomise(build_reference(**OFFICIAL["ViT-B"]), seed=1)
    torch.save(reference.state_dict(), tmp_path / "vit_b.pth")
    ours = load_network(tmp_path / "vit_b.pth")
    ours_embedding, embedding = embed(ours, reference, 1024)
    assert_equal(ours_embedding, embedding)
    pixels = torch.rand(1, 3, 1024, 1024, generator=torch.Generator().manual_seed(5))
    assert_equal(encode(use_fast_blocks(ours), pixels), reference.image_encoder(standardise(pixels)))
    for prompt in ("boxes", "points", "none"):
        assert_equal(*logits(ours, reference, embedding, prompt=prompt, multimask=True))
