"""Ways to compute SAM's attention with its relative position bias on a GPU, side by side at ViT-B's sizes for 1024 px.

    python benchmarks/attention.py --batch 8

Writes benchmarks/results/attention-<gpu>.json and .md: milliseconds of a forward pass, and of one with its backward pass, of a block's
attention in windows and over the whole grid; the error against the same in float64; and the encoder's whole forward pass with each
way. What is the fastest here is what `pfedsam.model.attention.choose_core` should choose.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.nn.functional as F
from common import gpu_name, markdown, write_result
from speed_subjects import Setting, our_encoder, write_weights
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import flex_attention

from pfedsam.model import attention, encoder
from pfedsam.model.attention import Core, _biases, folded, fused
from pfedsam.model.numerics import configure_numerics

HEADS, CHANNELS = 12, 64
_COMPILED = torch.compile(flex_attention, dynamic=False)


def masked(query: Tensor, key: Tensor, value: Tensor, rel_h: Tensor, rel_w: Tensor, scale: float) -> Tensor:
    """The bias as a mask of all logits' size."""
    bias_h, bias_w = _biases(query, rel_h, rel_w)
    mask = (bias_h[..., :, None] + bias_w[..., None, :]).flatten(-2)
    return F.scaled_dot_product_attention(query.flatten(2, 3), key, value, attn_mask=mask, scale=scale)


def flexible(query: Tensor, key: Tensor, value: Tensor, rel_h: Tensor, rel_w: Tensor, scale: float) -> Tensor:
    """The bias added inside a kernel that torch generates (FlexAttention)."""
    bias_h, bias_w = _biases(query, rel_h, rel_w)
    width = rel_w.shape[1]

    def add(logit: Tensor, g: Tensor, n: Tensor, m: Tensor, k: Tensor) -> Tensor:
        return logit + bias_h[g, n, m, k // width] + bias_w[g, n, m, k % width]

    return _COMPILED(query.flatten(2, 3), key, value, score_mod=add, scale=scale)


def within(backend: SDPBackend, core: Core) -> Core:
    """`core` with torch's attention held to one of its kernels."""

    def run(*given: Tensor | float) -> Tensor:
        attention.KERNELS[:] = [backend]
        with sdpa_kernel(backend):
            return core(*given)

    return run


WAYS: dict[str, Core] = {
    "folded, all logits": folded,
    "folded, flash": within(SDPBackend.FLASH_ATTENTION, fused),
    "folded, cuDNN": within(SDPBackend.CUDNN_ATTENTION, fused),
    "folded, memory-efficient": within(SDPBackend.EFFICIENT_ATTENTION, fused),
    "mask, memory-efficient": within(SDPBackend.EFFICIENT_ATTENTION, masked),
    "mask, cuDNN": within(SDPBackend.CUDNN_ATTENTION, masked),
    "flex": flexible,
}


def inputs(grids: int, side: int, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    """Query, key, value and the two tables of so many grids."""
    generator = torch.Generator(device).manual_seed(0)

    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(shape, generator=generator, device=device)).to(dtype).requires_grad_()

    flat = (grids, HEADS, side * side, CHANNELS)
    query = draw(grids, HEADS, side, side, CHANNELS)
    return [
        query,
        draw(*flat),
        draw(*flat),
        draw(side, side, CHANNELS, scale=0.1),
        draw(side, side, CHANNELS, scale=0.1),
    ]


def milliseconds(work: Callable[[], object], repeats: int = 7) -> float:
    """Median over finished calls after two that do not count."""
    found = []
    for _ in range(repeats + 2):
        torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        torch.cuda.synchronize()
        found.append(1000 * (time.perf_counter() - start))
    return statistics.median(found[2:])


def measure(core: Core, given: list[Tensor]) -> dict[str, float]:
    """Forward alone, both passes, and the error of the first grid's first head."""
    scale = CHANNELS**-0.5

    def both() -> None:
        core(*given, scale).square().sum().backward()

    with torch.no_grad():
        forward = milliseconds(lambda: core(*given, scale))
        found = core(*given, scale)[:1, :1].double()
        one = [part[:1, :1].double() for part in given[:3]] + [table.double() for table in given[3:]]
        error = (found - folded(*one, scale)).abs().max().item()
    return {"forward_ms": forward, "both_ms": milliseconds(both, 3), "error": error}


def whole_encoder(setting: Setting, core: Core) -> float:
    """Milliseconds of the encoder's forward pass in bf16 with `core` in every block."""
    chosen, encoder.choose_core = encoder.choose_core, lambda *_: core
    try:
        work, _ = our_encoder(setting, "bfloat16")
        return 1000 * statistics.median([work() for _ in range(6)][2:])
    finally:
        encoder.choose_core = chosen


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8)
    batch = parser.parse_args().batch
    device = configure_numerics(1, "cuda")
    cases = {"windows": (25 * batch, 14), "whole grid": (batch, 64)}
    rows, found = [], {}
    of_type = {"": WAYS, " float32": {way: WAYS[way] for way in ("folded, all logits", "folded, memory-efficient")}}
    for case, kind in ((case, kind) for kind in of_type for case in cases):
        grids, side = cases[case]
        case += kind
        given = inputs(grids, side, device, torch.float32 if kind else torch.bfloat16)
        for way, core in of_type[kind].items():
            try:
                numbers = measure(core, given)
            except Exception as error:  # noqa: BLE001 - a kernel that refuses this size is a row of the table
                rows.append([case, way, type(error).__name__, "", str(error).splitlines()[0][:80]])
                continue
            finally:
                given = [part.detach().requires_grad_() for part in given]
            found[f"{case}, {way}"] = numbers
            rows.append(
                [case, way, f"{numbers['forward_ms']:.2f}", f"{numbers['both_ms']:.2f}", f"{numbers['error']:.1e}"]
            )
            print(rows[-1], flush=True)
    with TemporaryDirectory() as folder:
        setting = Setting(Path(folder) / "vit_b.pth", 1024, batch, "cuda")
        write_weights(setting.weights)
        for way in ("folded, flash", "folded, cuDNN"):
            if f"whole grid, {way}" in found and f"windows, {way}" in found:
                found[f"encoder, {way}"] = {"forward_ms": whole_encoder(setting, WAYS[way])}
                rows.append(["encoder", way, f"{found[f'encoder, {way}']['forward_ms']:.1f}", "", ""])
                print(rows[-1], flush=True)
    write_result(
        f"attention-{gpu_name()}",
        command=f"python benchmarks/attention.py --batch {batch}",
        seeds=[0],
        figures={name: numbers["forward_ms"] for name, numbers in found.items()},
        table=markdown(["case", "way", "forward, ms", "both, ms", "error"], rows),
        measured=found,
    )


if __name__ == "__main__":
    main()
