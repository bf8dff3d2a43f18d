"""The figures that `benchmarks/speed.py` computes from its times, their goals, and tables from the reference to ours, step by step."""

import statistics
from collections.abc import Mapping

from common import markdown
from speed_subjects import Setting

Times = dict[str, list[float]]


def ratio(times: Times, above: str, below: str) -> float | None:
    """The median time of one subject divided by that of another; None if one was not measured."""
    if not times.get(above) or not times.get(below):
        return None
    return statistics.median(times[above]) / statistics.median(times[below])


def share(times: Times) -> float | None:
    """The share by which the experts lengthen a step: the median over the rounds of the ratio of times, minus 1; None if not measured."""
    pairs = zip(times.get("with experts", []), times.get("without experts", []), strict=True)
    ratios = [more / less for more, less in pairs]
    return statistics.median(ratios) - 1 if ratios else None


def of_fedmsa(mebibytes: Mapping[str, float], name: str) -> float | None:
    """The memory of a subject divided by that of FedMSA; None if one was not measured."""
    ours, theirs = mebibytes.get(name), mebibytes.get("FedMSA")
    return ours / theirs if ours and theirs else None


def figures_of(
    times: Times, encoder_1024: Times, mebibytes: Mapping[str, float], dice: float | None
) -> dict[str, float | None]:
    """The figures by name; those after `moe_share` have no goals and explain the others."""
    return {
        "encoder_256_fp32": ratio(times, "encoder", "our encoder"),
        "encoder_1024_fp32": ratio(encoder_1024, "encoder", "our encoder"),
        "encoder_256_bf16": ratio(times, "encoder", "our encoder, bf16"),
        "encoder_256_bf16_dice": dice,
        "lora12_fp32": ratio(times, "LoRA", "our LoRA, 12 blocks"),
        "lora12_bf16": ratio(times, "LoRA", "our LoRA, 12 blocks, bf16"),
        "last4_vs_fedmsa": ratio(times, "FedMSA", "global step"),
        "last4_vs_fedsam": ratio(times, "FedSAM", "global step"),
        "distil_vs_two_models": ratio(times, "two models", "personal step"),
        "memory_vs_fedmsa": of_fedmsa(mebibytes, "global step"),
        "moe_share": share(times),
        "encoder_1024_bf16": ratio(encoder_1024, "encoder", "our encoder, bf16"),
        "last4_bf16_vs_fedmsa": ratio(times, "FedMSA", "global step, bf16"),
        "last4_bf16_vs_fedsam": ratio(times, "FedSAM", "global step, bf16"),
        "distil_bf16_vs_two_models": ratio(times, "two models", "personal step, bf16"),
        "distil_teacher_speaks_vs_two_models": ratio(times, "two models", "personal step, teacher's logits"),
        "coupled_vs_fedmsa": ratio(times, "FedMSA", "coupled step"),
        "coupled_bf16_vs_fedmsa": ratio(times, "FedMSA", "coupled step, bf16"),
        "coupled_vs_two_models": ratio(times, "two models", "coupled step"),
        "memory_recomputed_vs_fedmsa": of_fedmsa(mebibytes, "global step, recomputed"),
        "memory_bf16_vs_fedmsa": of_fedmsa(mebibytes, "global step, bf16"),
        "memory_coupled_vs_fedmsa": of_fedmsa(mebibytes, "coupled step"),
        "last4_recomputed_vs_fedmsa": ratio(times, "FedMSA", "global step, recomputed"),
    }


GOALS = {
    "encoder_256_fp32": 2.2,
    "encoder_1024_fp32": 2.5,
    "encoder_256_bf16": 4.5,
    "encoder_256_bf16_dice": 0.99,
    "lora12_fp32": 2.2,
    "lora12_bf16": 4,
    "last4_vs_fedmsa": 7,
    "last4_vs_fedsam": 9,
    "distil_vs_two_models": 10,
    "memory_vs_fedmsa": 0.33,
    "moe_share": 0.03,
}
GPU_GOALS = {
    "encoder_bf16_of_matrix_rate": 0.5,
    "last4_vs_fedmsa": 7,
    "last4_bf16_vs_fedmsa": 7,
    "memory_vs_fedmsa": 0.33,
    "memory_bf16_vs_fedmsa": 0.33,
}
WATERFALLS = {
    "encoder's forward pass": ("encoder", "encoder, faster products", "our encoder", "our encoder, bf16"),
    "step": (
        "FedSAM",
        "FedMSA",
        "LoRA",
        "our LoRA, 12 blocks",
        "our LoRA, last 4, no cache",
        "global step",
        "global step, bf16",
        "global step, recomputed",
    ),
    "personal step": ("two models", "personal step, teacher's logits", "personal step", "personal step, bf16"),
    "both models in a step": ("two models", "coupled step", "coupled step, bf16"),
}


def gpu_figures(
    setting: Setting, times: Times, mebibytes: Mapping[str, float], rates: Mapping[str, float]
) -> dict[str, float | None]:
    """The figures of a GPU: those of the CPU without the ones of the encoder, and the encoder's share of the rate of a matrix product."""
    # Our exact reformulation of the encoder needs 947 GFLOP for an image of 1024 px (docs/speed.md).
    work = 946.9 * setting.batch * (setting.size / 1024) ** 2
    figures: dict[str, float | None] = {
        "encoder_bf16_of_matrix_rate": work / statistics.median(times["our encoder, bf16"]) / rates["bf16"],
        "encoder_fp32": ratio(times, "encoder", "our encoder"),
        "encoder_bf16": ratio(times, "encoder", "our encoder, bf16"),
    }
    others = figures_of(times, {}, mebibytes, None)
    return figures | {name: value for name, value in others.items() if not name.startswith("encoder")}


def table_of(
    figures: Mapping[str, float | None],
    goals: Mapping[str, float],
    times: Times,
    mebibytes: Mapping[str, float],
    rates: Mapping[str, float],
) -> str:
    """The table of figures and goals, and the tables of the times and the memory of each step from the reference to ours."""
    rows = [[name, _shown(value), str(goals.get(name, ""))] for name, value in figures.items()]
    parts = [markdown(["figure", "measured", "goal"], rows)]
    for title, names in WATERFALLS.items():
        lines = []
        for before, name in zip((names[0], *names), names, strict=False):
            if times.get(name):
                seconds = f"{statistics.median(times[name]):.3f}"
                lines.append(
                    [
                        name,
                        seconds,
                        _shown(ratio(times, before, name)),
                        _shown(ratio(times, names[0], name)),
                        f"{mebibytes[name]:.0f}" if name in mebibytes else "",
                    ]
                )
        if lines:
            parts.append(markdown([title, "seconds", "x before", "x first", "MiB added"], lines))
    parts.append(
        "One product's rate, GFLOP/s: " + ", ".join(f"{name} {rate:.0f}" for name, rate in rates.items()) + "."
    )
    return "\n\n".join(parts)


def _shown(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.3f}" if abs(value) < 1 else f"{value:.2f}"
