"""The personal SAM: at its start it is SAM; its parts are where the methods say."""

import pytest
import torch

from pfedsam.core import rng
from pfedsam.core.errors import OptionError
from pfedsam.federation.methods import METHODS
from pfedsam.model.backbone import compact_config, new_backbone, standardise
from pfedsam.model.partition import Partition
from pfedsam.model.personal import ModelOptions, PersonalSam


def make(classes: int = 1, **changes: object) -> PersonalSam:
    options = ModelOptions.model_validate({"backbone": "sam-toy", "adapt_last": 1, **changes})
    return PersonalSam(
        new_backbone(compact_config("sam-toy"), rng.generator(0)), options, classes, rng.generator(1)
    ).eval()


def pixels(count: int) -> torch.Tensor:
    return torch.rand(count, 3, 64, 64, generator=rng.generator(2))


def test_it_starts_as_sam_without_a_prompt() -> None:
    sam = new_backbone(compact_config("sam-toy"), rng.generator(0))
    embedding = sam.vision_encoder(standardise(pixels(2))).last_hidden_state
    _, dense = sam.prompt_encoder(None, None, None, None)
    expected, _ = sam.mask_decoder(
        image_embeddings=embedding,
        image_positional_embeddings=sam.get_image_wide_positional_embeddings().expand(2, -1, -1, -1),
        sparse_prompt_embeddings=None,
        dense_prompt_embeddings=dense,
        multimask_output=False,
    )
    torch.testing.assert_close(make()(pixels(2)), expected[:, 0], atol=1e-5, rtol=1e-4)


def test_shared_and_personal_model_start_equal_to_the_bit() -> None:
    model = make(classes=2)
    assert torch.equal(model(pixels(2)), model(pixels(2), personal=False))
    assert model(pixels(2)).shape == (2, 2, 16, 16)


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


def test_more_blocks_than_there_are_is_refused() -> None:
    with pytest.raises(OptionError, match="2 encoder blocks"):
        make(adapt_last=3)


SHARED = {
    "pfedsam": {"lora_a", "lora_b", "class_tokens", "output_layers"},
    "fedavg": {"lora_a", "lora_b", "class_tokens", "output_layers"},
    "local-only": set(),
    "centralized": set(),
}


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_partitions_totally_and_shares_what_it_says(name: str) -> None:
    method = METHODS[name]
    options = method.adapt(ModelOptions.model_validate({"backbone": "sam-toy", "adapt_last": 1}))
    model = PersonalSam(new_backbone(compact_config("sam-toy"), rng.generator(0)), options, 1, rng.generator(1))
    components = model.components()
    partition = Partition.of(model, components, method.placement(options))
    names = [n for n, _ in model.named_parameters()]
    assert sorted(partition.frozen + partition.shared + partition.local) == sorted(names)
    assert set(partition.shared) == {n for c in SHARED[name] for n in components[c]}
    assert not any(".experts." in n or n.startswith(("experts", "personal")) for n in partition.shared)


def test_an_update_of_the_compact_model_is_below_half_a_megabyte() -> None:
    options = ModelOptions()
    model = PersonalSam(new_backbone(compact_config("sam-tiny"), rng.generator(0)), options, 1, rng.generator(1))
    partition = Partition.of(model, model.components(), METHODS["pfedsam"].placement(options))
    assert sum(t.nbytes for t in partition.select(model, "shared").values()) <= 500_000
