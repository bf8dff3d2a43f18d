"""LoRA: nothing changes at its start, and others can read what is saved."""

from pathlib import Path

import torch
from peft import PeftModel
from transformers import SamModel

from pfedsam.core import rng
from pfedsam.model.backbones.compact import compact_config, new_network
from pfedsam.model.backbones.sam import SamBackbone
from pfedsam.model.components.lora import LoraOptions, add_lora, save_adapter


def targets(sam: SamModel) -> list[str]:
    return SamBackbone(sam).lora_targets(1, output_projection=False, mlp=True, decoder=True)


def test_at_its_start_every_update_is_zero() -> None:
    sam = new_network(compact_config("sam-toy"), rng.generator(0, "toy"))
    a_names, b_names = add_lora(sam, LoraOptions(rank=2), targets(sam), rng.generator(0, "lora"))
    parameters = dict(sam.named_parameters())
    assert len(a_names) == len(b_names) > 0
    assert all(parameters[name].count_nonzero() == 0 for name in b_names)
    assert all(parameters[name].count_nonzero() > 0 for name in a_names)
    assert not any(".layers.0." in name and "vision_encoder" in name for name in a_names)


def test_peft_reads_the_saved_adapter_over_a_plain_sam(tmp_path: Path) -> None:
    options = LoraOptions(rank=2, alpha=6.0)
    ours = new_network(compact_config("sam-toy"), rng.generator(0, "toy"))
    a_names, b_names = add_lora(ours, options, targets(ours), rng.generator(0, "lora"))
    parameters = dict(ours.named_parameters())
    with torch.no_grad():
        for name in b_names:
            parameters[name].normal_(generator=rng.generator(1, name))
    save_adapter(tmp_path, options, {name: parameters[name].detach() for name in a_names + b_names})
    plain = new_network(compact_config("sam-toy"), rng.generator(0, "toy"))
    theirs = PeftModel.from_pretrained(plain, str(tmp_path)).merge_and_unload()
    for name in a_names:
        layer = name.split(".lora_")[0]
        a, b = parameters[name], parameters[name.replace("lora_A", "lora_B")]
        expected = ours.get_submodule(layer).base_layer.weight + 6.0 / 2 * b @ a
        torch.testing.assert_close(theirs.get_submodule(layer).weight, expected)
