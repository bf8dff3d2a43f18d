"""Any method on the two-block toy SAM with two classes, and one client round of it on noise."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pfedsam.core import rng
from pfedsam.data.examples import Example
from pfedsam.data.manifest import Case
from pfedsam.data.transforms import AugmentOptions, to_frame
from pfedsam.federation.methods import METHODS
from pfedsam.federation.methods.base import Method
from pfedsam.model.backbones.compact import compact_config, new_network
from pfedsam.model.backbones.sam import SamBackbone
from pfedsam.model.build import build_personal
from pfedsam.model.options import ModelOptions
from pfedsam.model.partition import Partition
from pfedsam.model.prefix import PrefixCache, PrefixOptions
from pfedsam.model.segmenter import Segmenter
from pfedsam.model.unet import UNetSegmenter
from pfedsam.training.client_round import ClientResult, ClientState, client_round
from pfedsam.training.options import TrainingOptions
from pfedsam.training.site_data import SiteData

CLASSES = 2


@dataclass
class Made:
    method: Method
    model: Segmenter
    partition: Partition

    @property
    def shared(self) -> set[str]:
        return set(self.partition.shared)

    @property
    def local(self) -> set[str]:
        return set(self.partition.local)

    def names(self, *starts: str) -> set[str]:
        """The model's parameters whose names start so."""
        found = {name for name, _ in self.model.named_parameters() if name.startswith(starts)}
        assert found
        return found

    def lora(self, matrix: str) -> set[str]:
        """A or B of every layer, found by walking over the modules."""
        found = {
            f"{name}.{matrix}.default.weight"
            for name, module in self.model.named_modules()
            if hasattr(module, f"lora_{matrix[-1]}")
        }
        assert found
        return found

    def values(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self.model.named_parameters()}


@pytest.fixture
def make() -> Callable[..., Made]:
    def _make(name: str, own: dict[str, object] | None = None, **changes: object) -> Made:
        method = METHODS[name]
        if own is not None:
            method = method.configure(type(method.own).model_validate(own))
        chosen = {"backbone": "sam-toy", "adapt_last": 1, "lora": {"rank": 2}, **changes}
        options = method.adapt(ModelOptions.model_validate(chosen))
        if options.unet:
            model: Segmenter = UNetSegmenter(options.unet, CLASSES, rng.generator(1), image_size=64)
        else:
            backbone = SamBackbone(new_network(compact_config("sam-toy"), rng.generator(0)))
            model = build_personal(backbone, options, CLASSES, rng.generator(1))
        model.eval()
        return Made(method, model, Partition.of(model, model.components(), method.placement(options)))

    return _make


@pytest.fixture
def train() -> Callable[..., ClientResult]:
    """One client round on four images of noise, starting from what is in the model."""

    def _train(made: Made, **changes: object) -> ClientResult:
        options = TrainingOptions.model_validate({"steps_per_round": 4, "batch_size": 2, "rounds": 1, **changes})
        noise = np.random.default_rng(0)
        examples = []
        for number in range(4):
            pixels, frame = to_frame(noise.random((64, 64, 3), dtype=np.float32), 64)
            labels = torch.zeros(64, 64, dtype=torch.uint8)
            labels[8 * number :, :32], labels[:20, 32:] = 1, 2
            examples.append(
                Example(Case("here", f"c{number}", Path("none"), None, f"c{number}"), pixels, labels, frame)
            )
        cache = PrefixCache(Path("none"), "none", made.model.prefix_shape, PrefixOptions(max_gigabytes=0))
        data = SiteData("here", examples, cache, AugmentOptions(), seed=0)
        return client_round(
            made.model,
            made.partition,
            data,
            made.method.phases(options),
            shared=made.partition.select(made.model, "shared"),
            state=ClientState(made.partition.select(made.model, "local")),
            round_=0,
            options=options,
            balance=0.01,
        )

    return _train
