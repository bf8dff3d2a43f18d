"""The proximal term by hand, and which parameters learn at which rate."""

import re
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from pfedsam.core import rng
from pfedsam.core.errors import OptionError
from pfedsam.federation.methods import pfedsam
from pfedsam.model.backbones.compact import compact_config, new_network
from pfedsam.model.backbones.sam import SamBackbone
from pfedsam.model.build import build_personal
from pfedsam.model.components.routing import Routing
from pfedsam.model.options import ModelOptions
from pfedsam.model.partition import Partition
from pfedsam.model.personal import PersonalSam
from pfedsam.training.client_round import _anchors
from pfedsam.training.distillation import DistillationOptions, distillation_loss
from pfedsam.training.losses import segmentation_loss
from pfedsam.training.phases import Model, OptimizerOptions, PhaseSpec, _distance, _groups, _Objective, run_phase
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
    both = _groups(model, {name: parameters[name] for name in (own, added)}, 0.25)
    assert both == [
        {"params": [parameters[added]], "fraction": 1.0},
        {"params": [parameters[own]], "fraction": 0.25},
    ]
    lora = model.components()["lora_a"][0]
    assert _groups(model, {lora: parameters[lora]}, 0.25) == [{"params": [parameters[lora]], "fraction": 1.0}]


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


def _away_from_the_start(seed: int) -> PersonalSam:
    """A model whose local part does something: at the start the experts add nothing and the second LoRA has no gradient."""
    model = make(local_lora=2)
    with torch.no_grad():
        for name in (*model.components()["experts"], *model.components()["local_lora"]):
            value = model.get_parameter(name)
            value.add_(0.05 * torch.randn(value.shape, generator=rng.generator(seed)))
    return model


def _partition(model: PersonalSam) -> Partition:
    return Partition.of(model, model.components(), pfedsam.placement(ModelOptions(local_lora=2)))


def _gradients(
    model: PersonalSam, spec: PhaseSpec, batch: Batch, step: int = 0
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The parts of the loss and the gradients by name after one step of a phase that trains all that is added."""
    model.zero_grad()
    partition = _partition(model)
    trained = {name: model.get_parameter(name) for name in partition.names("shared", "local")}
    for parameter in trained.values():
        parameter.requires_grad_()
    shared = [trained[name] for name in partition.shared]
    distillation = DistillationOptions(confidence_weighting="everywhere", weight=0.5)
    parts = _Objective(model, spec, distillation, 0.1, shared).backward(batch, step)
    assert all(parameter.requires_grad for parameter in trained.values())
    return parts, {name: p.grad.clone() for name, p in trained.items() if p.grad is not None}


def _batch(model: PersonalSam, images: int = 5) -> Batch:
    labels = (torch.rand(images, 64, 64, generator=rng.generator(3)) > 0.5).to(torch.uint8)
    tokens = model.prefix(torch.rand(images, 3, 64, 64, generator=rng.generator(4)))
    return Batch(tokens, labels, tuple((i, 0) for i in range(images)))


@pytest.mark.parametrize("halves", ["coupled", "decoupled"])
@pytest.mark.parametrize("taught", [None, "personal", "shared"])
def test_halves_have_the_gradients_of_one_loss_on_each_half(halves: str, taught: Model | None) -> None:
    """Written out: the mean of two segmentation losses, distillation and balance, each on its half; decoupled, shared ones by the first."""
    spec = PhaseSpec("halves", ("shared", "local"), ("shared", "personal"), taught, halves=halves)
    model = _away_from_the_start(2)
    batch = _batch(model)
    parts, found = _gradients(model, spec, batch)
    model.zero_grad()
    partition = _partition(model)
    routings: dict[str, Routing] = {}
    first, second = (batch.tokens[:3], batch.labels[:3]), (batch.tokens[3:], batch.labels[3:])
    shared, personal = (
        model.from_prefix(first[0], personal=False),
        model.from_prefix(second[0], personal=True, routings=routings),
    )
    options = DistillationOptions(confidence_weighting="everywhere", weight=0.5)
    of_shared = segmentation_loss(shared, first[1]) / 2
    of_personal = segmentation_loss(personal, second[1]) / 2 + 0.1 * routings["1"].balance_loss()
    if taught == "shared":
        teacher = model.from_prefix(first[0], personal=True).detach()
        of_shared = of_shared + 0.5 * distillation_loss(shared, teacher, first[1], options)
    if taught == "personal":
        teacher = model.from_prefix(second[0], personal=False).detach()
        of_personal = of_personal + 0.5 * distillation_loss(personal, teacher, second[1], options)
    names, local = list(partition.shared), list(partition.local)
    values = [model.get_parameter(name) for name in names]
    by_shared = torch.autograd.grad(of_shared, values, allow_unused=True, retain_graph=True)
    by_both = torch.autograd.grad(of_shared + of_personal, values, allow_unused=True, retain_graph=True)
    by_personal = torch.autograd.grad(of_personal, [model.get_parameter(n) for n in local], allow_unused=True)
    expected = dict(zip(names, by_both if halves == "coupled" else by_shared, strict=True))
    expected |= dict(zip(local, by_personal, strict=True))
    assert parts["total"].item() == pytest.approx((of_shared + of_personal).item(), rel=1e-5)
    assert set(found) == {name for name, value in expected.items() if value is not None}
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("halves", ["coupled", "decoupled"])
@pytest.mark.parametrize("taught", ["personal", "shared"])
def test_taught_in_the_first_step_both_models_learn_from_its_first_half(halves: str, taught: Model) -> None:
    """Then the first step is one of both models on that half, with distillation, and the second one of halves without distillation."""
    spec = PhaseSpec("halves", ("shared", "local"), ("shared", "personal"), taught, halves=halves, taught_steps="first")
    model = _away_from_the_start(2)
    batch = _batch(model)
    first, of_first = _gradients(model, spec, batch, step=0)
    second, of_second = _gradients(model, spec, batch, step=1)
    half = Batch(batch.tokens[:3], batch.labels[:3], batch.keys[:3])
    together, of_together = _gradients(
        model, PhaseSpec("coupled", ("shared", "local"), ("shared", "personal"), taught), half
    )
    apart, of_apart = _gradients(
        model, PhaseSpec("halves", ("shared", "local"), ("shared", "personal"), halves=halves), batch
    )
    for found, expected in ((first, together), (second, apart)):
        assert {name: value.item() for name, value in found.items()} == pytest.approx(
            {name: value.item() for name, value in expected.items()}, rel=1e-5
        )
    assert "distillation" in first
    assert "distillation" not in second
    local = set(_partition(model).local)
    for name, value in of_first.items():
        if halves == "coupled" or name in local:
            torch.testing.assert_close(value, of_together[name], rtol=1e-4, atol=1e-6)
    for name, value in of_second.items():
        torch.testing.assert_close(value, of_apart[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["", "a.b", "global:2", "Local", "fine-tuning", "local\n"])
def test_a_name_that_would_break_the_names_of_losses_and_states_is_refused(name: str) -> None:
    with pytest.raises(OptionError, match="lower-case letters and underscores"):
        PhaseSpec(name, ("shared",), ("shared",))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"trains": ()}, "has trains=()"),
        ({"trains": ("shard",)}, "has trains=('shard',); give one or more of 'shared', 'local' in a tuple"),
        ({"trains": "shared"}, "has trains='shared'"),  # a comma was forgotten
        ({"supervised": ()}, "has supervised=()"),
        (
            {"supervised": ("global",)},
            "has supervised=('global',); give one or more of 'shared', 'personal' in a tuple",
        ),
        ({"taught": "global"}, "has taught='global'; give one of its supervised models, 'shared', or None."),
        ({"taught": ["shared"]}, "has taught=['shared']; give one of its supervised models, 'shared', or None."),
        ({"taught": "personal"}, "has taught='personal'; give one of its supervised models, 'shared', or None."),
        (
            {"halves": "coupled"},
            "divides a batch between two models (halves, shared_share), but supervises ('shared',)",
        ),
        (
            {"shared_share": 0.5},
            "divides a batch between two models (halves, shared_share), but supervises ('shared',)",
        ),
        ({"steps": 0}, "has 0 steps"),
    ],
)
def test_a_phase_that_trains_nothing_is_refused(changes: dict[str, object], says: str) -> None:
    with pytest.raises(OptionError, match=re.escape(f"The phase global {says}")):
        PhaseSpec("global", **{"trains": ("shared",), "supervised": ("shared",), **changes})  # type: ignore[arg-type]


def _objective(model: PersonalSam, spec: PhaseSpec) -> _Objective:
    return _Objective(model, spec, DistillationOptions(confidence_weighting="everywhere"), 0.1)


def test_which_examples_each_loss_is_over() -> None:
    """Batches of four in a phase of two steps: the first half of the first step alone is distilled; half of each step has experts."""
    model = _away_from_the_start(2)
    spec = PhaseSpec(
        "halves", ("shared", "local"), ("shared", "personal"), "personal", halves="coupled", taught_steps="first"
    )
    objective, batch = _objective(model, spec), _batch(model, images=4)
    for step, examples in enumerate(([0, 1, 2, 3], [4, 5, 6, 0])):
        keys = tuple((example, 0) for example in examples)
        objective.backward(Batch(batch.tokens, batch.labels, keys), step)
    assert objective.examples == {
        "segmentation": {0, 1, 4, 5, 6},  # in the first step both models learn from 0 and 1
        "total": {0, 1, 4, 5, 6},
        "distillation": {0, 1},
        "balance": {0, 1, 6},
    }


def test_a_teacher_that_changes_teaches_anew_in_every_step() -> None:
    """While the shared part is trained, the personal model, its teacher, changes with it."""
    model = _away_from_the_start(2)
    spec, batch = PhaseSpec("global", ("shared",), ("shared",), "shared"), _batch(model, images=2)
    objective = _objective(model, spec)
    before = objective.backward(batch)["distillation"].item()
    with torch.no_grad():
        for name in model.components()["experts"]:
            model.get_parameter(name).add_(0.5)
    assert objective.backward(batch)["distillation"].item() != pytest.approx(before, rel=1e-3)


@pytest.mark.parametrize("taught", [None, "personal", "shared"])
def test_the_shared_model_may_learn_from_the_first_images_alone(taught: Model | None) -> None:
    """Written out for two of five images: half of each model's segmentation loss, and distillation over the images of both."""
    spec = PhaseSpec("coupled", ("shared", "local"), ("shared", "personal"), taught, shared_share=0.4)
    model = _away_from_the_start(2)
    batch = _batch(model)
    parts, found = _gradients(model, spec, batch)
    model.zero_grad()
    routings: dict[str, Routing] = {}
    shared = model.from_prefix(batch.tokens[:2], personal=False)
    personal = model.from_prefix(batch.tokens, personal=True, routings=routings)
    options = DistillationOptions(confidence_weighting="everywhere", weight=0.5)
    total = segmentation_loss(shared, batch.labels[:2]) / 2 + segmentation_loss(personal, batch.labels) / 2
    total = total + 0.1 * routings["1"].balance_loss()
    if taught == "shared":
        total = total + 0.5 * distillation_loss(shared, personal[:2].detach(), batch.labels[:2], options)
    if taught == "personal":
        total = total + 0.5 * distillation_loss(personal[:2], shared.detach(), batch.labels[:2], options)
    names = list(found)
    expected = torch.autograd.grad(total, [model.get_parameter(name) for name in names], allow_unused=True)
    assert parts["total"].item() == pytest.approx(total.item(), rel=1e-5)
    for name, value in zip(names, expected, strict=True):
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)


def test_the_shared_model_learns_from_other_places_of_the_batch_in_each_step() -> None:
    """A batch begins with the images that were drawn for their foreground; with one of four images each place comes in turn."""
    spec = PhaseSpec("coupled", ("shared", "local"), ("shared", "personal"), shared_share=0.25)
    model = _away_from_the_start(2)
    batch, places = _batch(model, images=4), []
    given = model.from_prefix

    def seen(tokens: Tensor, *, personal: bool = True, **more: Any) -> Tensor:
        if not personal:
            places.append(next(i for i in range(4) if torch.equal(tokens[0], batch.tokens[i])))
        return given(tokens, personal=personal, **more)

    model.from_prefix = seen  # type: ignore[method-assign]
    objective = _objective(model, spec)
    for step in range(8):
        objective.backward(batch, step)
    assert places == [0, 1, 2, 3, 0, 1, 2, 3]


def test_the_shared_model_learns_from_at_least_one_image() -> None:
    spec = PhaseSpec("coupled", ("shared", "local"), ("shared", "personal"), shared_share=0.01)
    model = _away_from_the_start(2)
    parts, _ = _gradients(model, spec, _batch(model, images=2))
    assert torch.isfinite(parts["segmentation"])


def test_each_step_has_its_own_learning_rate() -> None:
    """A step with a learning rate of 0 changes nothing, and the first step has the same effect with it and without it."""
    spec = PhaseSpec("joint", ("shared", "local"), ("personal",))

    def trained(*rates: float) -> dict[str, Tensor]:
        model = _away_from_the_start(2)
        partition = _partition(model)
        run_phase(
            model,
            [_batch(model)] * len(rates),
            spec,
            names=partition.names("shared", "local"),
            learning_rates=rates,
            optimizer_state={},
            options=OptimizerOptions(),
            distillation=DistillationOptions(),
            balance=0.01,
        )
        return partition.select(model, "shared")

    one = trained(0.01)
    assert all(torch.equal(one[name], value) for name, value in trained(0.01, 0.0).items())
    assert not all(torch.equal(one[name], value) for name, value in trained(0.01, 0.01).items())


@pytest.mark.parametrize("taught_steps", ["first", "all"])
def test_nothing_local_touches_what_is_shared_in_decoupled_halves(taught_steps: Literal["first", "all"]) -> None:
    """Two rounds that differ in their local values alone give the same shared values, to the bit; coupled halves do not."""

    def trained(halves: str, seed: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        model = _away_from_the_start(seed)
        partition = _partition(model)
        spec = PhaseSpec(
            "halves", ("shared", "local"), ("shared", "personal"), "personal", halves=halves, taught_steps=taught_steps
        )
        run_phase(
            model,
            [_batch(model)] * 3,
            spec,
            names=partition.names("shared", "local"),
            learning_rates=[0.01] * 3,
            optimizer_state={},
            options=OptimizerOptions(),
            distillation=DistillationOptions(),
            balance=0.01,
            local=partition.local,
        )
        return partition.select(model, "shared"), partition.select(model, "local")

    first, second = trained("decoupled", 2), trained("decoupled", 7)
    assert all(torch.equal(first[0][name], second[0][name]) for name in first[0])
    assert not all(torch.equal(first[1][name], second[1][name]) for name in first[1])
    start = make(local_lora=2)
    assert any(not torch.equal(value, start.get_parameter(name)) for name, value in first[0].items())
    first, second = trained("coupled", 2), trained("coupled", 7)
    assert not all(torch.equal(first[0][name], second[0][name]) for name in first[0])
