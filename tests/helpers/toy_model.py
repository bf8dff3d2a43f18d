"""The toy SAM (2 blocks, 64 pixels) and personal models over it, with random weights."""

from pfedsam.core import rng
from pfedsam.model.backbones.compact import compact_config, new_network
from pfedsam.model.backbones.sam import SamBackbone
from pfedsam.model.build import build_personal
from pfedsam.model.options import ModelOptions
from pfedsam.model.personal import PersonalSam


def toy_backbone() -> SamBackbone:
    return SamBackbone(new_network(compact_config("sam-toy"), rng.generator(0)))


def toy_personal(classes: int = 2, **changes: object) -> PersonalSam:
    options = ModelOptions.model_validate({"backbone": "sam-toy", "adapt_last": 1, **changes})
    return build_personal(toy_backbone(), options, classes, rng.generator(1)).eval()
