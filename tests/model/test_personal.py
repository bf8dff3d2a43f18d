"""The personal SAM: at its start it is SAM; its parts are where the methods say."""

import pytest
import torch
import torch.nn.functional as F

from pfedsam.core import rng
from pfedsam.core.errors import OptionError
from pfedsam.federation.methods import METHODS
from pfedsam.model.backbones.base import standardise
from pfedsam.model.backbones.compact import compact_config, new_network
from pfedsam.model.backbones.sam import SamBackbone
from pfedsam.model.build import build_personal, present
from pfedsam.model.options import ModelOptions
from pfedsam.model.partition import Partition
from pfedsam.model.personal import PersonalSam
from pfedsam.model.segmenter import Segmenter
from pfedsam.model.unet import UNetSegmenter


def make(classes: int = 1, **changes: object) -> PersonalSam:
    options = ModelOptions.model_validate({"backbone": "sam-toy", "adapt_last": 1, **changes})
    return build_personal(
        SamBackbone(new_network(compact_config("sam-toy"), rng.generator(0))), options, classes, rng.generator(1)
    ).eval()


def pixels(count: int) -> torch.Tensor:
    return torch.rand(count, 3, 64, 64, generator=rng.generator(2))


def test_it_starts_as_sam_without_a_prompt() -> None:
    sam = new_network(compact_config("sam-toy"), rng.generator(0))
    embedding = sam.vision_encoder(standardise(pixels(2))).last_hidden_state
    _, dense = sam.prompt_encoder(None, None, None, None)
    expected, _ = sam.mask_decoder(
        image_embeddings=embedding,
        image_positional_embeddings=sam.get_image_wide_positional_embeddings().expand(2, -1, -1, -1),
        sparse_prompt_embeddings=None,
        dense_prompt_embeddings=dense,
        multimask_output=False,
    )
    finer = F.interpolate(expected[:, 0], scale_factor=2, mode="bilinear", align_corners=False)
    torch.testing.assert_close(make()(pixels(2)), finer, atol=1e-5, rtol=1e-4)
    without_unet = make(image_skip={"channels": None})
    torch.testing.assert_close(without_unet(pixels(2)), expected[:, 0], atol=1e-5, rtol=1e-4)


def test_shared_and_personal_model_start_equal_to_the_bit() -> None:
    model = make(classes=2)
    assert torch.equal(model(pixels(2)), model(pixels(2), personal=False))
    assert model(pixels(2)).shape == (2, 2, 32, 32)


def test_the_local_part_changes_the_personal_model_alone() -> None:
    model = make()
    before = model(pixels(1), personal=False)
    with torch.no_grad():
        model.experts["1"].up.normal_()
    assert torch.equal(model(pixels(1), personal=False), before)
    assert not torch.equal(model(pixels(1)), before)


def test_the_prefix_is_a_function_of_the_image_alone() -> None:
    model, images = make(), pixels(3)
    together = model.prefix(images)
    assert all(torch.equal(together[i], model.prefix(images[i : i + 1])[0]) for i in range(3))


def test_recomputed_blocks_give_the_same_gradients_to_the_bit_and_keep_less() -> None:
    def step(recompute: bool) -> tuple[dict[str, torch.Tensor], int]:
        model = make(adapt_last=2, local_lora=2, norms="local", recompute=recompute)
        with torch.no_grad():
            for i, parameter in enumerate(model.parameters()):
                parameter += 0.05 * torch.randn(parameter.shape, generator=rng.generator(i))
        tokens, kept, routings = model.prefix(pixels(2)), {}, {}

        def note(tensor: torch.Tensor) -> torch.Tensor:
            kept[tensor.data_ptr()] = tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            loss = model.from_prefix(tokens, routings=routings).square().mean()
            loss = loss + sum(routing.balance_loss() for routing in routings.values())
            loss.backward()
        return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}, sum(kept.values())

    (expected, all_kept), (found, fewer_kept) = step(False), step(True)
    assert expected.keys() == found.keys()
    assert {"experts.1.up", "class_tokens"} <= expected.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert fewer_kept < all_kept


def test_more_blocks_than_there_are_is_refused() -> None:
    with pytest.raises(OptionError, match="2 encoder blocks"):
        make(adapt_last=3)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_partitions_totally_and_no_personal_name_is_shared(name: str) -> None:
    method = METHODS[name]
    options = method.adapt(ModelOptions.model_validate({"backbone": "sam-toy", "adapt_last": 1}))
    model: Segmenter
    if options.unet:
        model = UNetSegmenter(options.unet, 1, rng.generator(1))
    else:
        backbone = SamBackbone(new_network(compact_config("sam-toy"), rng.generator(0)))
        model = build_personal(backbone, options, 1, rng.generator(1))
    partition = Partition.of(model, model.components(), method.placement(options))
    names = [n for n, _ in model.named_parameters()]
    assert sorted(partition.frozen + partition.shared + partition.local) == sorted(names)
    assert not any(n.startswith(("experts", "personal", "local_lora", "norms")) for n in partition.shared)


ADDITIONS: tuple[dict[str, object], ...] = (
    {},
    {"norms": "local"},
    {"norms": "local", "output_layers": "shared"},
    {"local_lora": 3},
    {"personal_copy": True},
    {"adapters": {}},
    {"train_encoder": True},
    {"lora": None, "experts": None},
    {"norms": "local", "local_lora": 1, "personal_copy": True, "adapters": {}, "train_encoder": True},
)


@pytest.mark.parametrize("changes", ADDITIONS)
def test_what_options_say_is_present_is_what_the_model_has(changes: dict[str, object]) -> None:
    model = make(classes=2, **changes)
    options = ModelOptions.model_validate({"backbone": "sam-toy", **changes})
    assert set(model.components()) == present(options)


@pytest.mark.parametrize("changes", ADDITIONS)
def test_each_addition_starts_as_the_model_without_it(changes: dict[str, object]) -> None:
    torch.testing.assert_close(make(**changes)(pixels(1)), make()(pixels(1)), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("changes", [{"norms": "local"}, {"local_lora": 3}, {"personal_copy": True}])
def test_own_values_change_the_personal_model_alone(changes: dict[str, object]) -> None:
    model = make(**changes)
    before = model(pixels(1), personal=False)
    (component,) = set(model.components()) & {"norms", "local_lora", "personal_copy"}
    with torch.no_grad():
        for name in model.components()[component]:
            model.get_parameter(name).add_(0.1)
    assert torch.equal(model(pixels(1), personal=False), before)
    assert not torch.allclose(model(pixels(1)), before)
    # The gradient of the personal model goes to the site's own values and not to what they stand for.
    model.requires_grad_(True)
    model(pixels(1)).sum().backward()
    replaced = {"norms": "sam.vision_encoder.neck.layer_norm1.weight", "personal_copy": "class_tokens"}
    assert all(model.get_parameter(name).grad is not None for name in model.components()[component])
    assert component not in replaced or model.get_parameter(replaced[component]).grad is None


def test_a_local_lora_needs_a_shared_one() -> None:
    with pytest.raises(ValueError, match="give both or neither"):
        ModelOptions(lora=None, local_lora=2)


@pytest.mark.parametrize(("image_skip", "most"), [({}, 1_300_000), ({"channels": None}, 500_000)])
def test_the_bytes_of_an_update_of_the_compact_model_are_bounded(image_skip: dict[str, list[int]], most: int) -> None:
    options = ModelOptions.model_validate({"image_skip": image_skip})
    model = build_personal(
        SamBackbone(new_network(compact_config("sam-tiny"), rng.generator(0))), options, 1, rng.generator(1)
    )
    partition = Partition.of(model, model.components(), METHODS["pfedsam"].placement(options))
    assert sum(t.nbytes for t in partition.select(model, "shared").values()) <= most
