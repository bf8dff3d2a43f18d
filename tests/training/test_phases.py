"""The proximal term by hand, and which parameters learn at which rate."""

import pytest
import torch
from torch import nn

from pfedsam.core import rng
from pfedsam.model.backbone import compact_config, new_backbone
from pfedsam.model.personal import ModelOptions, PersonalSam
from pfedsam.training.client_round import _anchors
from pfedsam.training.phases import _distance, _groups


def make(**changes: object) -> PersonalSam:
    options = ModelOptions.model_validate({"backbone": "sam-toy", "adapt_last": 1, "lora": {"rank": 2}, **changes})
    return PersonalSam(new_backbone(compact_config("sam-toy"), rng.generator(0)), options, 1, rng.generator(1))


def test_the_distance_is_the_squared_one_over_what_has_an_anchor() -> None:
    trained = {"a": nn.Parameter(torch.tensor([1.0, 2.0])), "b": nn.Parameter(torch.tensor([9.0]))}
    distance = _distance(trained, {"a": torch.tensor([0.0, 4.0])})
    assert distance.item() == 1 + 4
    distance.backward()
    assert trained["a"].grad is not None
    assert trained["a"].grad.tolist() == [2.0, -4.0]  # times mu / 2: mu (w - w_t)
    assert trained["b"].grad is None


def test_a_copy_is_anchored_where_its_origin_was_received() -> None:
    model = make(personal_copy=True)
    received = {"class_tokens": torch.zeros(1, 32), "output_layers.upscale_conv1.bias": torch.ones(8)}
    names = (
        "personal_copy.class_tokens",
        "personal_output_layers.output_layers-upscale_conv1-bias",
        "experts.1.up",
        "class_tokens",
    )
    anchors = _anchors(model, names, received)
    assert set(anchors) == {names[0], names[1], names[3]}
    assert anchors[names[0]] is received["class_tokens"]
    assert anchors[names[1]] is received["output_layers.upscale_conv1.bias"]


def test_sams_own_weights_have_their_own_rate() -> None:
    model = make()
    parameters = dict(model.named_parameters())
    own, added = "sam.mask_decoder.iou_token.weight", "class_tokens"
    both = _groups(model, {name: parameters[name] for name in (own, added)}, 0.1, 0.25)
    assert both[0] == {"params": [parameters[added]]}
    assert both[1]["params"] == [parameters[own]]
    assert both[1]["lr"] == pytest.approx(0.025)
    lora = model.components()["lora_a"][0]
    assert _groups(model, {lora: parameters[lora]}, 0.1, 0.25) == [{"params": [parameters[lora]]}]
