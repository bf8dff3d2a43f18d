"""The size of pFedSAM's update by component, codec and setting, for sam-tiny and ViT-B, compared with what FedMSA sends.

    python benchmarks/communication_bytes.py

No data are needed: the sizes do not depend on the weights, which are random. Writes benchmarks/results/communication-bytes.json and .md.
A size is the length of the encoded message with the site's name, the round and the number of cases. FedMSA sends two adapters of a quarter
of the width for each encoder block, and the whole mask decoder, in fp32 (Medical SAM Adapter, Wu et al., 2023, averaged as in FedFMS,
Liu et al., 2024); these bytes are computed here for the same backbone.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from common import markdown, write_result
from transformers import SamConfig, SamModel

from pfedsam.core import rng
from pfedsam.core.tensors import NamedTensors
from pfedsam.federation.codec import Codec
from pfedsam.federation.methods import find_method
from pfedsam.federation.update import Update, UpdateSpec, encode
from pfedsam.model.backbones.compact import compact_config
from pfedsam.model.backbones.sam import SamBackbone
from pfedsam.model.build import build_personal
from pfedsam.model.options import ModelOptions
from pfedsam.model.partition import Partition

BACKBONES = {"sam-tiny": lambda: compact_config("sam-tiny"), "ViT-B": SamConfig}
CODECS = {name: Codec(name) for name in ("fp32", "fp16", "int8", "int4")}
TARGET = 100
"""A size that is at least this many times smaller than that of FedMSA is bold."""


@dataclass(frozen=True)
class Setting:
    """Which components of pFedSAM are sent."""

    model: Mapping[str, object]
    without: tuple[str, ...] = ()
    """Shared components that another method keeps at the sites."""


SETTINGS = {
    "default": Setting({}),
    "last 2 blocks": Setting({"adapt_last": 2}),
    "one factor (A)": Setting({}, without=("lora_b",)),
    "output layers local": Setting({"output_layers": "local"}),
    "no LoRA in the decoder": Setting({"lora": {"decoder": False}}),
    "no decoder LoRA, output layers local": Setting({"lora": {"decoder": False}, "output_layers": "local"}),
    "all blocks": Setting({"adapt_last": None}),
}


def fedmsa_bytes(sam: SamModel) -> int:
    """The bytes that FedMSA sends in fp32 with a backbone."""
    width, depth = sam.config.vision_config.hidden_size, len(sam.vision_encoder.layers)
    hidden = width // 4
    adapter = width * hidden + hidden + hidden * width + width
    return 4 * (2 * depth * adapter + sum(p.numel() for p in sam.mask_decoder.parameters()))


def shared_tensors(sam: SamModel, setting: Setting) -> tuple[dict[str, torch.Tensor], dict[str, list[str]]]:
    """The tensors that pFedSAM shares with a setting and one class, and their names by part of the model."""
    options = ModelOptions.model_validate(setting.model)
    model = build_personal(SamBackbone(sam), options, 1, rng.generator(0, "bytes"))
    placement = find_method("pfedsam").placement(options)
    partition = Partition.of(model, model.components(), placement)
    stays = {name for component in setting.without for name in partition.components[component]}
    shared = {name: value for name, value in partition.select(model, "shared").items() if name not in stays}
    parts: dict[str, list[str]] = {}
    for name in shared:
        parts.setdefault(part(name), []).append(name)
    return shared, parts


def part(name: str) -> str:
    """The part of the model that a shared tensor belongs to."""
    if ".lora_" not in name:
        return "class tokens" if name == "class_tokens" else "output layers"
    return "LoRA, encoder" if "vision_encoder" in name else "LoRA, decoder"


def message_bytes(shared: NamedTensors, codec: Codec) -> int:
    """The length of the message with an update of these tensors."""
    generator = rng.generator(0, "change")
    changed = {n: t + 0.01 * torch.randn(t.shape, generator=generator) for n, t in shared.items()}
    update = Update("a hospital", 11, changed, 1234)
    return len(encode(update, codec, shared))


def main() -> None:
    """Measure, and write the results."""
    figures: dict[str, float | None] = {}
    tables = []
    for backbone, config in BACKBONES.items():
        fedmsa = fedmsa_bytes(SamModel(config()))
        figures[f"fedmsa_bytes.{backbone}"] = fedmsa
        rows = []
        for name, setting in SETTINGS.items():
            shared, parts = shared_tensors(SamModel(config()), setting)
            entries = []
            for label, codec in CODECS.items():
                size = message_bytes(shared, codec)
                figures[f"up_bytes.{backbone}.{name}.{label}"] = size
                times = fedmsa / size
                entries.append(f"{size / 1000:.1f} ({'**' * (times >= TARGET)}{times:.0f}x{'**' * (times >= TARGET)})")
            rows.append([name, f"{sum(t.numel() for t in shared.values()):,}", *entries])
            if name == "default":
                tables.append(
                    f"## {backbone}\n\nBy component (default setting, values alone, kB):\n\n{components(shared, parts)}"
                )
        tables.append(
            f"Message of one site and round in kB (times fewer than FedMSA's {fedmsa / 1e6:.2f} MB; bold: at least {TARGET}):\n\n"
            + markdown(["setting", "values", *CODECS], rows)
        )
        print(tables[-1], flush=True)
    write_result(
        "communication-bytes",
        command="python benchmarks/communication_bytes.py",
        seeds=[0],
        figures=figures,
        table="\n\n".join(tables),
    )


def components(shared: NamedTensors, parts: Mapping[str, list[str]]) -> str:
    """The table of the kilobytes by part of the model and codec."""
    sizes = {label: UpdateSpec.of(shared, codec).sizes for label, codec in CODECS.items()}
    rows = []
    for name, names in sorted(parts.items()):
        kilobytes = [f"{sum(sizes[label][n] for n in names) / 1000:.1f}" for label in CODECS]
        rows.append([name, f"{sum(shared[n].numel() for n in names):,}", *kilobytes])
    total = [f"{sum(size.values()) / 1000:.1f}" for size in sizes.values()]
    rows.append(["**all**", f"{sum(t.numel() for t in shared.values()):,}", *total])
    return markdown(["part", "values", *CODECS], rows)


if __name__ == "__main__":
    main()
