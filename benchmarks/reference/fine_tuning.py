"""Fine-tuning of SAM as in other works, on the `segment-anything` package; the speed of our training step is compared with it.

* FedSAM (Liu et al., 2024, "FedFMS"): every parameter is trained.
* FedMSA (the same paper, after Medical-SAM-Adapter, Wu et al., 2023): two adapters a block, and the whole decoder.
* LoRA (as SAMed, Zhang and Liu, 2023): rank 4 on queries and values of all blocks, nothing else.
* Two models: a second full SAM is the teacher of one with experts, which are computed one after the other on the tokens assigned to them.
"""

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Loss = Callable[[Tensor, Tensor], Tensor]
"""Logits [B, C, h, w] and labels [B, S, S] to a scalar."""


class Adapter(nn.Module):
    """Medical-SAM-Adapter's `Adapter`: down to a quarter, GELU, up."""

    def __init__(self, width: int, *, skip: bool) -> None:
        super().__init__()
        self.down, self.up, self.skip = nn.Linear(width, width // 4), nn.Linear(width // 4, width), skip

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens `[..., d]` to tokens `[..., d]`."""
        added = self.up(F.gelu(self.down(tokens)))
        return tokens + added if self.skip else added


class AdaptedAttention(nn.Module):
    """Attention followed by an adapter, inside the windows, as in Medical-SAM-Adapter's block."""

    def __init__(self, attention: nn.Module, width: int) -> None:
        super().__init__()
        self.attention, self.space_adapter = attention, Adapter(width, skip=True)

    def forward(self, tokens: Tensor) -> Tensor:
        """Windows `[G, h, w, d]` to windows."""
        return self.space_adapter(self.attention(tokens))


class AdaptedMlp(nn.Module):
    """MLP with an adapter beside it, times a half, as in Medical-SAM-Adapter's block."""

    def __init__(self, mlp: nn.Module, width: int) -> None:
        super().__init__()
        self.mlp, self.mlp_adapter = mlp, Adapter(width, skip=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens `[..., d]` to tokens `[..., d]`."""
        return self.mlp(tokens) + 0.5 * self.mlp_adapter(tokens)


class LoraQkv(nn.Module):
    """SAMed's `_LoRA_qkv`: low-rank updates of queries and values."""

    def __init__(self, qkv: nn.Linear, rank: int) -> None:
        super().__init__()
        self.qkv, self.width = qkv, qkv.in_features
        self.a_q, self.a_v = (nn.Linear(self.width, rank, bias=False) for _ in range(2))
        self.b_q, self.b_v = (nn.Linear(rank, self.width, bias=False) for _ in range(2))
        nn.init.zeros_(self.b_q.weight)
        nn.init.zeros_(self.b_v.weight)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens `[..., d]` to `[..., 3 d]`."""
        qkv = self.qkv(tokens)
        qkv[..., : self.width] += self.b_q(self.a_q(tokens))
        qkv[..., -self.width :] += self.b_v(self.a_v(tokens))
        return qkv


class LoopedExperts(nn.Module):
    """An MLP with experts beside it, each computed on the tokens that the router assigns to it."""

    def __init__(self, mlp: nn.Module, width: int, count: int, hidden: int, top_k: int) -> None:
        super().__init__()
        self.mlp, self.router, self.top_k = mlp, nn.Linear(width, count, bias=False), top_k
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width, bias=False))
            for _ in range(count)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens `[B, h, w, d]` to tokens."""
        flat = tokens.flatten(0, 2)
        gates, chosen = self.router(flat).softmax(dim=-1).topk(self.top_k, dim=-1)
        added = torch.zeros_like(flat)
        for number, expert in enumerate(self.experts):
            token, place = (chosen == number).nonzero(as_tuple=True)
            added = added.index_add(0, token, gates[token, place, None] * expert(flat[token]))
        return self.mlp(tokens) + added.view(tokens.shape)


def train_all(sam: nn.Module) -> list[nn.Parameter]:
    """FedSAM: every parameter of encoder and decoder; returns them."""
    return _train(sam.image_encoder.parameters(), sam.mask_decoder.parameters())


def add_msa(sam: nn.Module) -> list[nn.Parameter]:
    """FedMSA: two adapters a block, whole decoder; returns what is trained."""
    adapters = []
    for block in sam.image_encoder.blocks:
        width = block.norm1.normalized_shape[0]
        block.attn, block.mlp = AdaptedAttention(block.attn, width), AdaptedMlp(block.mlp, width)
        adapters += [*block.attn.space_adapter.parameters(), *block.mlp.mlp_adapter.parameters()]
    return _train(adapters, sam.mask_decoder.parameters())


def add_lora(sam: nn.Module, rank: int = 4) -> list[nn.Parameter]:
    """LoRA on queries and values of all blocks; returns what is trained."""
    trained = []
    for block in sam.image_encoder.blocks:
        block.attn.qkv = LoraQkv(block.attn.qkv, rank)
        trained += [p for name, p in block.attn.qkv.named_parameters() if not name.startswith("qkv.")]
    return _train(trained)


def add_experts(sam: nn.Module, count: int = 4, hidden: int = 16, top_k: int = 2) -> list[nn.Parameter]:
    """Experts beside the MLP of all blocks; returns what is trained: they and the decoder's up-scaling and first hyper-network."""
    experts = []
    for block in sam.image_encoder.blocks:
        block.mlp = LoopedExperts(block.mlp, block.norm1.normalized_shape[0], count, hidden, top_k)
        experts += [*block.mlp.router.parameters(), *block.mlp.experts.parameters()]
    decoder = sam.mask_decoder
    return _train(experts, decoder.output_upscaling.parameters(), decoder.output_hypernetworks_mlps[0].parameters())


def logits(sam: nn.Module, pixels: Tensor) -> Tensor:
    """Prompt-free masks `[B, 1, S/4, S/4]` of standardised pixels `[B, 3, S, S]`, decoded image by image as `Sam.forward` does."""
    sparse, dense = sam.prompt_encoder(points=None, boxes=None, masks=None)
    masks = [
        sam.mask_decoder(
            image_embeddings=embedding[None],
            image_pe=sam.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=False,
        )[0]
        for embedding in sam.image_encoder(pixels)
    ]
    return torch.cat(masks)


def make_step(
    sam: nn.Module,
    trained: list[nn.Parameter],
    pixels: Tensor,
    labels: Tensor,
    loss: Loss,
    teach: Callable[[Tensor], Tensor] | None = None,
) -> Callable[[], None]:
    """A training step on one batch: forward, loss, backward, AdamW.

    Args:
        sam: the model, prepared by one of the functions above.
        trained: its parameters that change.
        pixels: standardised, `[B, 3, S, S]`.
        labels: `[B, S, S]`.
        loss: of the logits.
        teach: a further loss of the logits.
    """
    optimizer = torch.optim.AdamW(trained, lr=1e-4)

    def step() -> None:
        found = logits(sam, pixels)
        total = loss(found, labels) + (teach(found) if teach else 0)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()

    return step


def _train(*groups: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    return [parameter.requires_grad_() for group in groups for parameter in group]
