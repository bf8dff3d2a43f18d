"""Compares implementations of SAM's attention with its relative position bias on a GPU, at ViT-B's sizes for images of 1024 px.

    python benchmarks/attention.py --batch 8

Writes benchmarks/results/attention-<gpu>.json and .md. For the attention of one block, in windows and over the whole grid, they contain the
milliseconds of a forward pass, those of a forward and a backward pass, and the error compared with the same computation in float64; for
the encoder, the milliseconds of its forward pass with each implementation. `pfedsam.model.attention.choose_core` should choose the
implementation that is the fastest here. `kernel` starts from the output of the projection, and the others from queries, keys and values
that are already divided into windows. With `--tune`, the kernel is also measured with other block sizes than its own.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.nn.functional as F
from common import gpu_name, markdown, write_result
from speed_subjects import Setting, our_encoder, write_weights
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import flex_attention

from pfedsam.model import attention, attention_kernel
from pfedsam.model.attention import Core, _biases, folded, fused, relative
from pfedsam.model.attention_kernel import Blocks
from pfedsam.model.backbones import encoder
from pfedsam.model.numerics import configure_numerics

HEADS, CHANNELS = 12, 64
_COMPILED = torch.compile(flex_attention, dynamic=False)


def masked(query: Tensor, key: Tensor, value: Tensor, rel_h: Tensor, rel_w: Tensor, scale: float) -> Tensor:
    """Attention with the bias as an additive mask that has the size of all logits."""
    bias_h, bias_w = _biases(query, rel_h, rel_w)
    mask = (bias_h[..., :, None] + bias_w[..., None, :]).flatten(-2)
    return F.scaled_dot_product_attention(query.flatten(2, 3), key, value, attn_mask=mask, scale=scale)


def flexible(query: Tensor, key: Tensor, value: Tensor, rel_h: Tensor, rel_w: Tensor, scale: float) -> Tensor:
    """Attention with the bias added inside a kernel that torch generates (FlexAttention)."""
    bias_h, bias_w = _biases(query, rel_h, rel_w)
    width = rel_w.shape[1]

    def add(logit: Tensor, g: Tensor, n: Tensor, m: Tensor, k: Tensor) -> Tensor:
        return logit + bias_h[g, n, m, k // width] + bias_w[g, n, m, k % width]

    return _COMPILED(query.flatten(2, 3), key, value, score_mod=add, scale=scale)


def within(backend: SDPBackend, core: Core) -> Core:
    """`core` with torch's attention restricted to one of its kernels."""

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
    """Random query, key, value and the two tables of relative positions, for `grids` grids of `side` x `side` tokens."""
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
    """The median time of `repeats` calls, each until the GPU has finished; two calls before them are not counted."""
    found = []
    for _ in range(repeats + 2):
        torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        torch.cuda.synchronize()
        found.append(1000 * (time.perf_counter() - start))
    return statistics.median(found[2:])


def measure(core: Core, given: list[Tensor]) -> dict[str, float]:
    """The times of the forward pass and of both passes, and the largest error of the first head of the first grid."""
    scale = CHANNELS**-0.5

    def both() -> None:
        core(*given, scale).square().sum().backward()

    with torch.no_grad():
        forward = milliseconds(lambda: core(*given, scale))
        found = core(*given, scale)[:1, :1].double()
        one = [part[:1, :1].double() for part in given[:3]] + [table.double() for table in given[3:]]
        error = (found - folded(*one, scale)).abs().max().item()
    return {"forward_ms": forward, "both_ms": milliseconds(both, 3), "error": error}


@torch.no_grad()
def measure_kernel(batch: int, side: int, blocks: Blocks | None, device: torch.device) -> dict[str, float]:
    """The time of the kernel's forward pass over 64 x 64 tokens of each image, and its error as in `measure`.

    Args:
        batch: the number of images.
        side: the side of a window in tokens, or of the whole grid.
        blocks: the block sizes of the kernel; None for those that it chooses itself.
        device: the GPU.
    """
    generator = torch.Generator(device).manual_seed(0)
    draw = lambda *shape: torch.randn(shape, generator=generator, device=device).to(torch.bfloat16)  # noqa: E731
    projected, padding = draw(batch, 64, 64, 3 * HEADS * CHANNELS), draw(3 * HEADS * CHANNELS)
    tables = [0.1 * draw(2 * side - 1, CHANNELS) for _ in "hw"]
    scale = CHANNELS**-0.5
    work = partial(attention_kernel.attend, projected, padding, *tables, HEADS, (side, side), scale, blocks)
    one = projected[:1, :side, :side, :].double().reshape(1, side * side, 3, HEADS, CHANNELS)[:, :, :, :1]
    query, key, value = one.permute(2, 0, 3, 1, 4)
    bias = [relative(table.double(), side, side) for table in tables]
    expected = folded(query.unflatten(2, (side, side)), key, value, *bias, scale)
    found = work()[0, :side, :side, :CHANNELS].double().reshape(side * side, CHANNELS)
    return {"forward_ms": milliseconds(work), "error": (found - expected[0, 0]).abs().max().item()}


def ways_to_cut(side: int) -> dict[str, Blocks]:
    """The block sizes with which the kernel is measured, by name."""
    keys = (64, 128, 256) if side < 64 else (64, 128)
    cuts = [Blocks(*cut) for cut in product((64, 128), keys, (4, 8), (2, 3))]
    return {f"kernel {cut.queries} x {cut.keys}, {cut.warps} warps, {cut.stages} stages": cut for cut in cuts}


def whole_encoder(setting: Setting, core: Core | None) -> float:
    """Milliseconds of the encoder's forward pass in bf16 with `core` in every block; with None, with the encoder's own kernels."""
    chosen = encoder.choose_core, encoder.kernels_for
    if core is not None:
        encoder.choose_core, encoder.kernels_for = lambda *_: core, lambda *_: None
    try:
        work, _ = our_encoder(setting, "bfloat16")
        return 1000 * statistics.median([work() for _ in range(8)][3:])
    finally:
        encoder.choose_core, encoder.kernels_for = chosen


def main() -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--tune", action="store_true", help="Measure the kernel with further block sizes.")
    arguments = parser.parse_args()
    batch = arguments.batch
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
    for case, (_, side) in cases.items():
        for way, blocks in {"kernel": None, **(ways_to_cut(side) if arguments.tune else {})}.items():
            try:
                numbers = measure_kernel(batch, side, blocks, device)
            except Exception as error:  # noqa: BLE001 - block sizes that do not fit the GPU are a row of the table
                rows.append([case, way, type(error).__name__, "", str(error).splitlines()[0][:80]])
                continue
            found[f"{case}, {way}"] = numbers
            rows.append([case, way, f"{numbers['forward_ms']:.2f}", "", f"{numbers['error']:.1e}"])
            print(rows[-1], flush=True)
    with TemporaryDirectory() as folder:
        setting = Setting(Path(folder) / "vit_b.pth", 1024, batch, "cuda")
        write_weights(setting.weights)
        for way in ("folded, flash", "folded, cuDNN", "kernel"):
            if f"whole grid, {way}" in found and f"windows, {way}" in found:
                found[f"encoder, {way}"] = {"forward_ms": whole_encoder(setting, WAYS.get(way))}
                rows.append(["encoder", way, f"{found[f'encoder, {way}']['forward_ms']:.1f}", "", ""])
                print(rows[-1], flush=True)
    write_result(
        f"attention-{gpu_name()}",
        command=f"python benchmarks/attention.py --batch {batch}{' --tune' if arguments.tune else ''}",
        seeds=[0],
        figures={name: numbers["forward_ms"] for name, numbers in found.items()},
        table=markdown(["case", "way", "forward, ms", "both, ms", "error"], rows),
        measured=found,
    )


if __name__ == "__main__":
    main()
