"""The proximal term by hand, and which parameters learn at which rate."""

import pytest
import torch
from torch import nn

from pfedsam.core import rng
from pfedsam.model.backbones.compact import compact_config, new_network
from pfedsam.model.backbones.sam import SamBackbone
from pfedsam.model.build import build_personal
from pfedsam.model.components.routing import Routing
from pfedsam.model.options import ModelOptions
from pfedsam.model.personal import PersonalSam
from pfedsam.training.client_round import _anchors
from pfedsam.training.distillation import DistillationOptions, distillation_loss
from pfedsam.training.losses import segmentation_loss
from pfedsam.training.phases import Model, PhaseSpec, _distance, _groups, _Objective
from pfedsam.training.site_data import Batch


def make(**changes: object) -> PersonalSam:
    options = ModelOptions.model_validate({"backbone": "sam-toy", "adapt_last": 1, "lora": {"rank": 2}, **changes})
    return build_personal(
        SamBackbone(new_network(compact_config("sam-toy"), rng.generator(0))), options, 1, rng.generator(1)
    )


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


@pytest.mark.parametrize("taught", [None, "personal", "shared"])
def test_one_pass_after_the_other_adds_up_to_the_gradient_of_the_whole_loss(taught: Model | None) -> None:
    model, distillation = make(local_lora=2), DistillationOptions(confidence_weighting="everywhere", weight=0.5)
    with torch.no_grad():  # away from the start, where the experts add nothing and the second LoRA has no gradient
        for name in (*model.components()["experts"], *model.components()["local_lora"]):
            model.get_parameter(name).add_(
                0.05 * torch.randn(model.get_parameter(name).shape, generator=rng.generator(2))
            )
    labels = (torch.rand(2, 64, 64, generator=rng.generator(3)) > 0.5).to(torch.uint8)
    tokens = model.prefix(torch.rand(2, 3, 64, 64, generator=rng.generator(4)))
    trained = [p for name, p in model.named_parameters() if not name.startswith("sam.vision_encoder.layers.0.")]
    for parameter in trained:
        parameter.requires_grad_()
    spec = PhaseSpec("coupled", ("shared", "local"), ("shared", "personal"), taught)
    parts = _Objective(model, spec, distillation, 0.1).backward(Batch(tokens, labels, ((0, 0), (1, 0))))
    found = [None if p.grad is None else p.grad.clone() for p in trained]
    model.zero_grad()
    routings: dict[str, Routing] = {}
    logits = {w: model.from_prefix(tokens, personal=w == "personal", routings=routings) for w in ("shared", "personal")}
    total = (segmentation_loss(logits["shared"], labels) + segmentation_loss(logits["personal"], labels)) / 2
    total = total + 0.1 * routings["1"].balance_loss()
    if taught:
        teacher = logits["shared" if taught == "personal" else "personal"].detach()
        total = total + 0.5 * distillation_loss(logits[taught], teacher, labels, distillation)
    total.backward()
    assert parts["total"].item() == pytest.approx(total.item(), rel=1e-5)
    assert ("distillation" in parts) == (taught is not None)
    assert any(one is not None and one.abs().max() > 0 for one in found)
    for one, parameter in zip(found, trained, strict=True):
        assert (one is None) == (parameter.grad is None)
        if one is not None and parameter.grad is not None:
            torch.testing.assert_close(one, parameter.grad, rtol=1e-4, atol=1e-6)
