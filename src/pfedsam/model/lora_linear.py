"""peft's LoRA layer with fewer passes over the output, and with a frozen matrix that may have another precision than the update.

peft multiplies by A, by B and by the scale and then adds, with four passes over the output; it also casts the input to the update's
precision. Here one operation multiplies by B and adds the result to the frozen product, in the precision of the input.
"""

import torch
import torch.nn.functional as F
from peft.tuners.lora import Linear
from torch import Tensor


class LoraLinear(Linear):
    """Computes W x + b + scale B A x; parameters, names and files are those of peft."""

    def forward(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        """From `[..., in]` to an output of shape `[..., out]`, in the precision of the input, which is that of W."""
        adapter = self._only_adapter()
        if adapter is None or args or kwargs:
            return super().forward(x, *args, **kwargs)  # type: ignore[no-any-return]
        a: Tensor = self.lora_A[adapter].weight  # type: ignore[assignment]  # peft's dictionaries hold linear layers
        b: Tensor = self.lora_B[adapter].weight  # type: ignore[assignment]
        frozen: Tensor = self.base_layer(x)  # type: ignore[operator]
        low = F.linear(x.reshape(-1, x.shape[-1]), a.to(x.dtype))
        added = torch.addmm(frozen.view(-1, b.shape[0]), low, b.to(x.dtype).t(), alpha=self.scaling[adapter])
        return added.view(frozen.shape)

    def _only_adapter(self) -> str | None:
        """The name of the adapter if exactly one plain adapter is active; None if peft's own forward must be used."""
        active = [name for name in self.active_adapters if name in self.lora_A]
        plain = len(active) == 1 and not (self.disable_adapters or self.merged or self.lora_variant)
        return active[0] if plain and isinstance(self.lora_dropout[active[0]], torch.nn.Identity) else None
