"""The shared LoRA in peft's format can be read by peft and has the values of the run."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pfedsam.engine.export import export_adapter
from pfedsam.experiment.build import build_model
from pfedsam.experiment.options import RunOptions


def test_peft_reads_the_values_of_the_shared_lora(toy_options: RunOptions, tmp_path: Path) -> None:
    from peft import PeftConfig, PeftModel
    from transformers import SamModel

    built = build_model(toy_options)
    shared = {name: torch.full_like(value, 0.5) for name, value in built.start("shared").items()}
    export_adapter(tmp_path, toy_options, built, shared)
    (file,) = tmp_path.rglob("*.safetensors")
    values = load_file(file)
    lora = [*built.model.components()["lora_a"], *built.model.components()["lora_b"]]
    assert len(values) == len(lora)
    assert all((value == 0.5).all() for value in values.values())
    assert PeftConfig.from_pretrained(str(file.parent)).r == 2
    plain = SamModel.from_pretrained(toy_options.model.backbone)  # as docs/python.md says
    loaded = dict(PeftModel.from_pretrained(plain, str(file.parent)).named_parameters())
    found = [name for name in loaded if "lora_" in name]
    assert len(found) == len(lora)
    assert all((loaded[name] == 0.5).all() for name in found)


@pytest.mark.parametrize("method", ["local-only", "fedsa-lora"])
def test_a_lora_that_stays_at_the_sites_is_not_exported(toy_options: RunOptions, tmp_path: Path, method: str) -> None:
    training = toy_options.training.model_copy(update={"shared_warmup_rounds": 0, "phases": "coupled"})
    model = toy_options.model.model_copy(update={"experts": None})
    options = toy_options.model_copy(update={"method": method, "training": training, "model": model})
    built = build_model(options)
    export_adapter(tmp_path, options, built, built.start("shared"))
    assert list(tmp_path.iterdir()) == []
