"""Loads the backbone: a shipped SAM, an official or MedSAM `.pth`, a `transformers` folder, or a name on the hub.

Loading is strict: the file must contain exactly the tensors of the model, with their shapes and with finite values. Otherwise nothing is
loaded, and the message lists the missing tensors, the unexpected ones and those of another shape, by their names in the file.
"""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, TypeGuard

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import SamConfig, SamHQConfig

from pfedsam.core import tensors as tensor_files
from pfedsam.core.errors import CheckpointError, StoreError
from pfedsam.core.files import open_regular
from pfedsam.core.log import get_logger
from pfedsam.core.tensors import NamedTensors
from pfedsam.model.backbones.base import Backbone
from pfedsam.model.backbones.compact import sam_config
from pfedsam.model.backbones.encoder import Network
from pfedsam.model.backbones.key_map import TIED, to_official, to_transformers
from pfedsam.model.backbones.resize import MAX_IMAGE_SIZE, config_at, tensors_at
from pfedsam.model.backbones.sam import SamBackbone
from pfedsam.model.backbones.sam_hq import SamHqBackbone
from pfedsam.model.backbones.shapes import mask_shape
from pfedsam.model.hub import find_on_hub, is_hub_name
from pfedsam.model.torch_file import read_torch_file
from pfedsam.model.weights import check_official_name

BACKBONES: Mapping[str, type[SamBackbone]] = {kind.model_type: kind for kind in (SamBackbone, SamHqBackbone)}
"""The kind of backbone by the `model_type` of a `transformers` folder."""
SHIPPED = Path(__file__).parents[2] / "weights"
"""The folder of the package that contains a `transformers` folder for each shipped SAM."""
Config: TypeAlias = SamConfig | SamHQConfig

MAX_CONFIG_BYTES = 2**20
_LISTED = 3
_PREFIXES = ("module.", "model.")
"""Prefixes of all names in files of training scripts: from torch's DistributedDataParallel, and from modules with a SAM as `model`."""
_WRAPPERS = ("model", "state_dict", "model_state_dict")
"""The keys under which training scripts store the `state_dict` of the model, next to the optimiser's state, the epoch and so on."""
_NEEDED = {
    "attention_downsample_rate",
    "hidden_size",
    "iou_head_depth",
    "iou_head_hidden_dim",
    "mask_input_channels",
    "mlp_dim",
    "num_attention_heads",
    "num_hidden_layers",
    "num_pos_feats",
    "output_channels",
    "vit_dim",
}
"""The sizes that are 1 or more in every SAM; 0 of others, such as `window_size` or `num_labels`, has a meaning."""
_LOG = get_logger(__name__)
_ODD_CONFIG = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError, StrictDataclassError)
"""The exceptions that `transformers` raises if a configuration contains values from which no model can be made."""


@dataclass(frozen=True)
class Architecture:
    """The properties in which the official models differ: the image encoder's width, blocks, heads, and blocks with global attention."""

    width: int
    depth: int
    heads: int
    global_blocks: tuple[int, ...]


ARCHITECTURES: Mapping[str, Architecture] = {
    "ViT-B": Architecture(768, 12, 12, (2, 5, 8, 11)),
    "ViT-L": Architecture(1024, 24, 16, (5, 11, 17, 23)),
    "ViT-H": Architecture(1280, 32, 16, (7, 15, 23, 31)),
}
"""The architectures of Segment Anything's `.pth` files (segment_anything/build_sam.py); MedSAM is a ViT-B."""


def load_backbone(source: str | Path, *, image_size: int | None = None, may_download: bool = True) -> Backbone:
    """Load a backbone in float32 and in evaluation mode; none of its parameters requires gradients.

    Args:
        source: a shipped name such as `sam-tiny`; a Segment Anything or MedSAM `.pth` file; a folder of SAM or SAM-HQ with
            `config.json` and `model.safetensors` as `transformers` writes it; or a hub name such as `facebook/sam-vit-base`.
        image_size: side of the square image in pixels (S), a multiple of the patch size; None keeps the source's own.
            Position embeddings are interpolated (`pfedsam.model.backbones.resize`).
        may_download: whether to download a backbone with a hub name that is not in the hub's cache; otherwise it is refused.

    Raises:
        CheckpointError: the source does not exist, is unsafe or damaged, or contains another model; no code in it was run.
        OptionError: `image_size` is not allowed.
    """
    network = load_network(source, image_size=image_size, may_download=may_download)
    return BACKBONES[network.config.model_type](network)


def load_network(source: str | Path, *, image_size: int | None = None, may_download: bool = True) -> Network:
    """The network on which `load_backbone` builds the backbone, with the encoder blocks of `transformers`.

    Raises:
        CheckpointError: as `load_backbone`.
        OptionError: as `load_backbone`.
    """
    config, tensors = _read(source, may_download)
    if image_size is not None:
        config = config_at(config, image_size)
        tensors = tensors_at(tensors, config)
    return _assemble(config, tensors)


def describe(source: str | Path) -> str:
    """A description of the backbone that `load_backbone` would load, after the same checks; nothing is downloaded.

    Raises:
        CheckpointError: as `load_backbone`.
    """
    config, _ = _read(source, may_download=False)
    vision: Any = config.vision_config
    kind = "SAM-HQ" if config.model_type == SamHqBackbone.model_type else "SAM"
    sizes = f"{vision.num_hidden_layers} encoder blocks of width {vision.hidden_size}"
    return f"a {kind} with {sizes}, for images of {vision.image_size} pixels"


def shipped_names() -> list[str]:
    """The names of the SAMs whose weights are part of the package."""
    return sorted(path.parent.name for path in SHIPPED.glob("*/config.json"))


def backbone_file(source: str, base: Path = Path()) -> Path | None:
    """The file or folder of a backbone, relative to `base`; None if `source` is the name of a shipped SAM or of a model on the hub."""
    path = base / source
    # `Path.exists` raises an error for a text that is too long for a name.
    return path if source not in shipped_names() and os.path.exists(path) else None


def _read(source: str | Path, may_download: bool) -> tuple[Config, NamedTensors]:
    """The configuration and all tensors, by their names in `transformers`; the tensors are exactly those of the model.

    Raises:
        CheckpointError: as `load_backbone`.
    """
    path = Path(source)
    if str(source) in shipped_names():
        return _from_folder(SHIPPED / str(source), str(source))
    if os.path.isdir(path):
        return _from_folder(path, path.name)
    if os.path.isfile(path):
        return _from_official(path)
    if is_hub_name(str(source)):
        return _from_folder(find_on_hub(str(source), may_download=may_download), str(source))
    raise CheckpointError(
        f"There are no weights at {str(source)!r}. Allowed: a shipped name ({_shipped()}), a Segment Anything or "
        "MedSAM .pth file, a transformers folder with config.json and model.safetensors, or a hub name such as "
        "facebook/sam-vit-base. `pfedsam weights list` shows the official files."
    )


def _from_official(path: Path) -> tuple[Config, NamedTensors]:
    if path.suffix == ".safetensors":
        raise CheckpointError(f"{path.name} needs its config.json: name the folder that holds both.")
    check_official_name(path)
    tensors = _without_prefix(path.name, _state_dict(path.name, read_torch_file(path)))
    config = _recognise(path.name, tensors)
    expected = {to_official(name) or name: shape for name, shape in _shapes(config).items()}
    _account(path.name, expected, tensors)
    return config, {to_transformers(name) or name: tensor for name, tensor in tensors.items()}


def _state_dict(label: str, table: Mapping[str, Any]) -> NamedTensors:
    """The tensors by name in the table of a file: the table itself, or the `state_dict` in a training checkpoint.

    Raises:
        CheckpointError: the table is neither a `state_dict` nor a training checkpoint.
    """
    if all(isinstance(value, Tensor) for value in table.values()):
        return dict(table)
    inner = [name for name in _WRAPPERS if isinstance(table.get(name), dict)]
    if len(inner) != 1:
        raise CheckpointError(
            f"{label} holds other things than tensors by name (it starts with {_quoted(list(table)[:_LISTED])}). Allowed is a "
            f"state_dict, or a checkpoint with exactly one under {_quoted(_WRAPPERS)}. Write the model's own: "
            "torch.save(model.state_dict(), new)."
        )
    others = _quoted([name for name in table if name != inner[0]]) or "nothing"
    _LOG.warning("%s is a training checkpoint: its %r is read as the weights; left out: %s.", label, inner[0], others)
    return _state_dict(label, table[inner[0]])


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(repr(name[:80]) for name in names)


def _without_prefix(label: str, tensors: NamedTensors) -> NamedTensors:
    """The tensors without a prefix common to all names, which training on several devices or inside another module adds."""
    for prefix in _PREFIXES:
        if tensors and all(name.startswith(prefix) for name in tensors):
            _LOG.warning("%s: every tensor's name starts with %r; the names are read without it.", label, prefix)
            return _without_prefix(label, {name.removeprefix(prefix): tensor for name, tensor in tensors.items()})
    return tensors


def _recognise(label: str, tensors: NamedTensors) -> SamConfig:
    """The configuration of the official architecture with these shapes.

    Raises:
        CheckpointError: no official architecture has these shapes.
    """
    side, width = _grid(label, tensors)
    depth = len({name.split(".")[2] for name in tensors if name.startswith("image_encoder.blocks.")})
    by_size = {(a.depth, a.width): a for a in ARCHITECTURES.values()}
    if (depth, width) not in by_size:
        raise CheckpointError(f"{label} has {depth} blocks of width {width}; readable are {_readable()}.")
    return official_config(by_size[depth, width], 16 * side)


def _grid(label: str, tensors: NamedTensors) -> tuple[int, int]:
    """The side and the width of the position embedding, which has shape `[1, side, side, width]`.

    Raises:
        CheckpointError: there is no such embedding.
    """
    grid = tensors.get("image_encoder.pos_embed")
    if grid is None or grid.dim() != 4 or grid.shape[1] != grid.shape[2]:
        first = ", ".join(list(tensors)[:_LISTED])
        raise CheckpointError(
            f"{label} is not a Segment Anything state_dict: it has no square image_encoder.pos_embed (it starts with "
            f"{first or 'nothing'}). Readable are {_readable()}; SAM 2 and MobileSAM are other models; "
            "SAM-HQ is read from a transformers folder."
        )
    return grid.shape[1], grid.shape[3]


def _readable() -> str:
    return ", ".join(f"{name} ({a.depth} blocks of width {a.width})" for name, a in ARCHITECTURES.items())


def official_config(architecture: Architecture, image_size: int) -> SamConfig:
    """The configuration of an official architecture for images of `image_size` pixels.

    Raises:
        CheckpointError: the image size is too large.
    """
    if image_size > MAX_IMAGE_SIZE:
        raise CheckpointError(f"The position embedding is for images of {image_size} pixels, above {MAX_IMAGE_SIZE}.")
    config = sam_config(
        image_size=image_size,
        width=architecture.width,
        depth=architecture.depth,
        heads=architecture.heads,
        window=14,
        global_blocks=architecture.global_blocks,
        decoder_width=256,
        decoder_mlp=2048,
    )
    # The decoder blocks use nn.LayerNorm's own 1e-5 (segment_anything/modeling/transformer.py), not transformers' 1e-6.
    decoder: Any = config.mask_decoder_config
    decoder.layer_norm_eps = 1e-5
    return config


def _from_folder(folder: Path, label: str) -> tuple[Config, NamedTensors]:
    try:
        config = _read_config(folder / "config.json")
        expected = _shapes(config)
        _check_fit(config)
    except OSError as error:
        raise CheckpointError(
            f"{label} has no readable config.json ({error.strerror or error}). A transformers folder holds config.json "
            "and model.safetensors."
        ) from error
    except _ODD_CONFIG as error:
        raise CheckpointError(
            f"{label}/config.json does not describe a SAM or SAM-HQ: {_brief(error)}. Expected is what transformers writes "
            'for SamModel (model_type "sam") or SamHQModel (model_type "sam_hq").'
        ) from error
    try:
        tensors, _ = tensor_files.load_foreign(folder / "model.safetensors")
    except StoreError as error:
        raise CheckpointError(
            f"{label}: {error} Fetch or copy the folder again, with all tensors in one file "
            '(`save_pretrained(folder, max_shard_size="10GB")`).'
        ) from error
    tensors = _untie(label, tensors)
    _account(label, expected, tensors)
    return config, tensors


def _read_config(path: Path) -> Config:
    """The configuration in a file, with the sizes checked.

    Raises:
        ValueError: the file is too long, is not JSON, describes another model, or has a size that is not allowed.
    """
    with open_regular(path) as file:
        text = file.read(MAX_CONFIG_BYTES + 1)
    if len(text) > MAX_CONFIG_BYTES:
        raise ValueError(f"it is longer than {MAX_CONFIG_BYTES} bytes")
    table = json.loads(text, parse_constant=_refuse_constant)
    found = table.get("model_type") if isinstance(table, dict) else None
    if not isinstance(found, str) or found not in BACKBONES:
        raise ValueError(f"its model_type is {found!r}")
    kind = BACKBONES[found]
    # The sizes in the file are checked first, because transformers creates lists whose lengths they give.
    for part in filter(_is_table, (table, *table.values())):
        _check_sizes(part)
    config: Config = kind.config_class.from_dict(_without_choices_of_ours(table))
    vision: Any = config.vision_config
    prompts: Any = config.prompt_encoder_config
    decoder: Any = config.mask_decoder_config
    for part in (vision, prompts, decoder):
        _check_sizes(part.to_dict())
    _check_sides(vision, prompts)
    kind.check_config(config)
    return config


def _refuse_constant(name: str) -> None:
    """Refuse NaN and infinity, which are no JSON but which Python reads.

    Raises:
        ValueError: always.
    """
    raise ValueError(f"it contains {name}, which is not a number")


def _is_table(value: object) -> TypeGuard[dict[str, Any]]:
    return isinstance(value, dict)


def _check_sides(vision: Any, prompts: Any) -> None:  # noqa: ANN401 - configurations of transformers
    """Check that the image encoder and the prompt encoder are for images of the same size.

    Raises:
        ValueError: the sizes differ, or are not a whole number of patches.
    """
    sides = (vision.image_size, vision.image_size // vision.patch_size)
    if vision.image_size % vision.patch_size or (prompts.image_size, prompts.image_embedding_size) != sides:
        raise ValueError(
            f"its images of {sides[0]} pixels in patches of {vision.patch_size} do not fit its prompts, which are for "
            f"images of {prompts.image_size} pixels and {prompts.image_embedding_size} patches a side"
        )


def _without_choices_of_ours(table: dict[str, Any]) -> dict[str, Any]:
    """The table without the keys that choose the implementation of attention or experts, because this package makes that choice."""
    return {
        key: _without_choices_of_ours(value) if isinstance(value, dict) else value
        for key, value in table.items()
        if not key.lstrip("_").startswith(("attn_implementation", "experts_implementation"))
    }


def _check_sizes(sizes: Mapping[str, Any]) -> None:
    """Refuse sizes that no SAM has, before a model with these sizes is built, and epsilons with which it could not be trained.

    Raises:
        ValueError: a size or an epsilon is not allowed.
    """
    few = {"num_hidden_layers", "num_multimask_outputs", "iou_head_depth", "num_point_embeddings"}
    for name, size in sizes.items():
        least, limit = int(name in _NEEDED), 256 if name in few else 16_384
        if type(size) is int and not least <= size <= limit:
            raise ValueError(f"{name} is {size}, allowed are {least} to {limit}")
        if name.endswith("_eps") and type(size) in (int, float) and not 0 < size <= 1:
            raise ValueError(f"{name} is {size}, allowed are numbers above 0 and up to 1, such as 1e-06")
    for name in ("image_size", "patch_size"):
        if type(sizes.get(name, 1)) is not int or not 1 <= sizes.get(name, 1) <= MAX_IMAGE_SIZE:
            raise ValueError(f"{name} is {sizes[name]!r}, allowed is one number from 1 to {MAX_IMAGE_SIZE}")


def _untie(label: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, of any shape, with one name for the parameter that SAM uses twice; a file may contain one of its two names, or both.

    Raises:
        CheckpointError: the file contains both, with different values.
    """
    twin, kept = TIED
    if twin not in tensors:
        return tensors
    value = tensors[twin]
    if not torch.equal(tensors.get(kept, value), value):
        raise CheckpointError(f"{label}: {twin} and {kept} differ, and SAM has one of both. Save the model anew.")
    return {name: tensor for name, tensor in tensors.items() if name != twin} | {kept: value}


def _shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter by its name in `transformers`; no memory is allocated for the parameters."""
    with torch.device("meta"):
        state = BACKBONES[config.model_type].network_class(config).state_dict()
    return {name: tuple(tensor.shape) for name, tensor in state.items() if name != TIED[0]}


def _check_fit(config: Config) -> None:
    """Check that a network of this configuration can compute a mask; no memory is allocated for its parameters.

    Raises:
        ValueError: its parts do not fit together; other errors of `_ODD_CONFIG` are possible, too.
    """
    kind = BACKBONES[config.model_type]
    with torch.device("meta"), torch.no_grad():
        backbone = kind(kind.network_class(config).eval())
        found, side = tuple(mask_shape(backbone)), 4 * backbone.grid[0]
    if found != (1, side, side):
        raise ValueError(f"its masks have the shape {found[1:]} instead of {(side, side)}")


def _account(label: str, expected: Mapping[str, tuple[int, ...]], tensors: NamedTensors) -> None:
    """Check that the tensors are exactly the expected ones, and that their values are finite floating-point numbers.

    Raises:
        CheckpointError: they are not; the message lists the differences.
    """
    differing = _differences(expected, {name: tuple(tensor.shape) for name, tensor in tensors.items()})
    if differing:
        raise CheckpointError(
            f"{label} does not fit the model that it looks like: {'; '.join(differing)}. "
            f"Expected are {len(expected)} tensors, found {len(tensors)}. Use the unchanged file of its publisher, or "
            "save the whole model with save_pretrained."
        )
    spoilt = [n for n, tensor in tensors.items() if not tensor.is_floating_point() or not tensor.isfinite().all()]
    if spoilt:
        raise CheckpointError(f"{label} has {_some('with NaN, infinity or integers', spoilt)}. Fetch it again.")


def _differences(expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]) -> list[str]:
    """One text each for the missing tensors, the unexpected ones and those of another shape, from the shapes by name."""
    misshapen = [
        f"{name} {found[name]} instead of {expected[name]}"
        for name in expected
        if found.get(name, expected[name]) != expected[name]
    ]
    names = {
        "missing": [name for name in expected if name not in found],
        "extra": [name for name in found if name not in expected],
        "of another shape": misshapen,
    }
    return [_some(what, some) for what, some in names.items() if some]


def _some(what: str, names: list[str]) -> str:
    """A text such as `2 tensors missing (a, b)`; empty if there are no names."""
    more = ", ..." if len(names) > _LISTED else ""
    return f"{len(names)} tensors {what} ({', '.join(names[:_LISTED])}{more})" if names else ""


def _assemble(config: Config, tensors: NamedTensors) -> Network:
    """A model with copies of the given tensors in float32; no parameter is initialised at random first."""
    with torch.device("meta"):
        model: Network = BACKBONES[config.model_type].network_class(config)
    values = {name: tensor.to(torch.float32, copy=True) for name, tensor in tensors.items()}
    twin, kept = TIED
    model.load_state_dict(values | {twin: values[kept]}, assign=True)
    model.prompt_encoder.shared_embedding.positional_embedding = model.shared_image_embedding.positional_embedding
    model.train(False)
    model.requires_grad_(False)
    return model


def _shipped() -> str:
    return ", ".join(shipped_names()) or "none is installed"


def _brief(error: BaseException) -> str:
    """The message of an error in one short line; the first line of some messages only announces the following ones."""
    if isinstance(error, KeyError):  # whose message is only the key, such as the name of an activation
        return f"{str(error)[:80]} is not a name that transformers knows"
    return " ".join(str(error).split())[:200] or type(error).__name__
