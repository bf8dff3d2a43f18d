"""Every ablation of pfedsam needs one override, and trains the parameters that its name says."""

from pathlib import Path

import pytest

from pfedsam.core.errors import OptionError
from pfedsam.experiment.build import build_method, build_model
from pfedsam.experiment.load import read_options
from pfedsam.experiment.options import RunOptions

CONFIG = """
data:
  sites: {a: a, b: b}
  classes: {organ: [1]}
model: {backbone: sam-tiny}
training: {steps_per_round: 10, global_share: 0.5, final_steps: 3}
"""


def chosen(folder: Path, *overrides: str) -> RunOptions:
    (folder / "study.yaml").write_text(CONFIG)
    return read_options(folder / "study.yaml", overrides)


BOTH = {"lora_a": "shared", "lora_b": "shared", "class_tokens": "shared", "output_layers": "shared"}
LORA = {"local_lora": "local"}
OWN = {"personal_output_layers": "local", "experts": "local"}


@pytest.mark.parametrize(
    ("overrides", "placed"),
    [
        ((), {**BOTH, **OWN}),
        (("model.experts=null",), {**BOTH, "personal_output_layers": "local"}),
        (("model.output_layers=shared",), {**BOTH, "experts": "local"}),
        (("model.output_layers=local",), {**BOTH, "output_layers": "local", "experts": "local"}),
        (
            ("model.output_layers=frozen",),
            {"lora_a": "shared", "lora_b": "shared", "class_tokens": "shared", "experts": "local"},
        ),
        (("model.norms=local",), {**BOTH, **OWN, "norms": "local"}),
        (("model.local_lora=2",), {**BOTH, **OWN, **LORA}),
        (("model.local_lora=null",), {**BOTH, **OWN, **LORA}),
        (("model.personal_copy=true",), {**BOTH, **OWN, "personal_copy": "local"}),
        (
            ("model.personal_copy=true", "model.local_lora=null"),  # a copy of LoRA takes the place of the second one
            {**BOTH, **OWN, "personal_copy": "local"},
        ),
        (
            ("model.lora=null", "model.local_lora=null"),
            {
                "class_tokens": "shared",
                "output_layers": "shared",
                "personal_output_layers": "local",
                "experts": "local",
            },
        ),
    ],
)
def test_where_each_component_lives(tmp_path: Path, overrides: tuple[str, ...], placed: dict[str, str]) -> None:
    options = chosen(tmp_path, *overrides)
    method = build_method(options)
    assert method.placement(method.adapt(options.model)) == placed


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ((), [("halves", ("shared", "local"), ("shared", "personal"), "personal", 10)]),
        (
            ("training.phases=joint",),
            [("global", ("shared",), ("shared",), None, 5), ("joint", ("shared", "local"), ("personal",), None, 5)],
        ),
        (
            ("training.phases=decoupled",),
            [("global", ("shared",), ("shared",), None, 5), ("local", ("local",), ("personal",), "personal", 5)],
        ),
        (
            ("training.phases=joint", "training.distillation.direction=off"),
            [("global", ("shared",), ("shared",), None, 5), ("joint", ("shared", "local"), ("personal",), None, 5)],
        ),
        (
            ("training.phases=joint", "training.distillation.direction=reversed"),
            [("global", ("shared",), ("shared",), "shared", 5), ("joint", ("shared", "local"), ("personal",), None, 5)],
        ),
        (
            ("training.phases=decoupled", "training.distillation.direction=mutual"),
            [("global", ("shared",), ("shared",), "shared", 5), ("local", ("local",), ("personal",), "personal", 5)],
        ),
        (
            ("training.distillation.direction=off",),
            [("halves", ("shared", "local"), ("shared", "personal"), None, 10)],
        ),
        (
            ("training.phases=joint", "training.order=local-first"),
            [("joint", ("shared", "local"), ("personal",), None, 5), ("global", ("shared",), ("shared",), None, 5)],
        ),
        (
            ("training.phases=decoupled", "training.frozen_local=true", "training.distillation.direction=mutual"),
            [
                ("global", ("shared",), ("personal",), None, 5),  # the personal model is its own teacher there
                ("local", ("local",), ("personal",), "personal", 5),
            ],
        ),
        (
            ("training.phases=joint", "training.frozen_local=true", "training.global_share=0.2"),
            [("global", ("shared",), ("personal",), None, 2), ("joint", ("shared", "local"), ("personal",), None, 8)],
        ),
    ],
)
def test_what_each_phase_trains(tmp_path: Path, overrides: tuple[str, ...], expected: list[object]) -> None:
    options = chosen(tmp_path, *overrides)
    phases = build_method(options).phases(options.training)
    assert [(p.name, p.trains, p.supervised, p.taught, p.steps) for p in phases] == expected


@pytest.mark.parametrize(("teacher", "expected"), [("received", "received"), ("own", "own")])
def test_whose_shared_parameters_teach(tmp_path: Path, teacher: str, expected: str) -> None:
    options = chosen(tmp_path, "training.phases=decoupled", f"training.distillation.teacher={teacher}")
    assert build_method(options).phases(options.training)[1].shared_from == expected


def test_where_the_teacher_counts(tmp_path: Path) -> None:
    assert chosen(tmp_path).training.distillation.confidence_weighting == "label"
    everywhere = chosen(tmp_path, "training.distillation.confidence_weighting=everywhere")
    assert everywhere.training.distillation.confidence_weighting == "everywhere"


@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_as_many_experts_as_asked_for(tmp_path: Path, count: int) -> None:
    options = chosen(tmp_path, f"model.experts.count={count}", f"model.experts.top_k={min(2, count)}")
    experts = build_model(options).model.experts
    assert {len(block.router) for block in experts.values()} == {count}
    assert {block.top_k for block in experts.values()} == {min(2, count)}


@pytest.mark.parametrize(("set_to", "blocks"), [("2", 2), ("4", 4), ("6", 6), ("null", 12)])
def test_as_many_blocks_as_asked_for(tmp_path: Path, set_to: str, blocks: int) -> None:
    built = build_model(chosen(tmp_path, f"model.adapt_last={set_to}"))
    assert len(built.model.experts) == blocks
    encoder = {n.split(".lora_")[0] for n in built.partition.shared if "vision_encoder" in n}
    assert len(encoder) == blocks


@pytest.mark.parametrize(("phases", "phase"), [("coupled", "coupled"), ("decoupled", "local"), ("joint", "joint")])
def test_a_phase_without_anything_to_train_is_refused(tmp_path: Path, phases: str, phase: str) -> None:
    off = ("model.experts=null", "model.output_layers=shared")
    options = chosen(tmp_path, *off, f"training.phases={phases}")
    with pytest.raises(OptionError, match=f"{phase} phase of pfedsam has nothing to train: every local part"):
        build_model(options)


@pytest.mark.parametrize(("name", "key"), [("fedprox", "mu"), ("ditto", "proximal_weight")])
def test_the_pulls_can_be_set(tmp_path: Path, name: str, key: str) -> None:
    options = chosen(tmp_path, f"method={name}", f"method_options.{name}.{key}=0.5")
    assert build_method(options).phases(options.training)[-1].proximal == 0.5
