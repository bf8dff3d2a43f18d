"""Exports of a finished run in the formats of other tools."""

from pathlib import Path

from pfedsam.core.tensors import NamedTensors
from pfedsam.experiment.build import BuiltModel, build_method
from pfedsam.experiment.options import RunOptions
from pfedsam.model.components.lora import save_adapter


def export_adapter(folder: Path, options: RunOptions, built: BuiltModel, shared: NamedTensors) -> None:
    """Write the shared LoRA in peft's format into `folder`; nothing is written if a part of LoRA is local."""
    components = built.model.components()
    names = components.get("lora_a", ()) + components.get("lora_b", ())
    lora = build_method(options).adapt(options.model).lora
    if lora is None or not any(name in shared for name in names) or set(names) & set(built.partition.local):
        return
    # A method that freezes A shares only B, but the adapter needs both.
    values = {n: shared[n] if n in shared else built.model.get_parameter(n).detach().cpu() for n in names}
    save_adapter(folder, lora, {name.removeprefix("sam."): value for name, value in values.items()})
