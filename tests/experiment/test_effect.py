"""An option that was set and has no effect is refused, and the message names the methods that would use it."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import Field

from pfedsam.core.errors import OptionError
from pfedsam.core.options import Options
from pfedsam.experiment.effect import refuse_unused_by_all, unused, without_unused
from pfedsam.experiment.load import dump_options, load_options, put
from pfedsam.experiment.options import RunOptions
from pfedsam.federation.methods import METHODS
from pfedsam.training.options import TrainingOptions
from pfedsam.training.phases import PhaseSpec


def chosen(method: str, **keys: Any) -> RunOptions:
    content: dict[str, Any] = {"method": method, "data": {"sites": {"a": "a"}, "classes": {"n": [1]}}}
    for key, value in keys.items():
        put(content, key.replace("__", "."), value)
    return RunOptions.model_validate(content)


@pytest.mark.parametrize("method", METHODS)
def test_nothing_that_was_not_set_is_refused(method: str) -> None:
    assert unused(chosen(method)) == {}


@pytest.mark.parametrize(
    ("method", "keys"),
    [
        ("fedavg", {"training__final_steps": 24}),  # also where it is the default, for it was asked for
        ("fedavg", {"training__global_share": 0.5}),
        ("fedavg", {"training__phases": "decoupled"}),
        ("fedavg", {"training__order": "local-first"}),
        ("fedavg", {"training__frozen_local": True}),
        ("fedavg", {"training__shared_warmup_rounds": 2}),
        ("fedavg", {"training__distillation__direction": "off"}),
        ("fedavg", {"training__distillation__weight": 0.3}),
        ("fedavg", {"training__distillation__confidence_weighting": "everywhere"}),
        ("fedavg", {"training__optimizer__pretrained_fraction": 0.5}),
        ("fedavg", {"method_options__fedprox__mu": 0.1}),
        ("fedavg", {"model__experts__count": 8}),
        ("fedavg", {"model__experts": None}),
        ("fedmsa", {"model__lora__rank": 8}),
        ("ditto", {"method_options__fedprox__mu": 0.1}),
        ("pfedsam", {"training__final_steps": 3}),
        ("pfedsam", {"training__global_share": 0.5}),
        ("pfedsam", {"training__distillation__teacher": "own"}),
        ("pfedsam", {"training__distillation__direction": "off", "training__distillation__temperature": 3.0}),
        ("pfedsam", {"training__phases": "coupled", "training__distillation__steps": "all"}),
        ("pfedsam", {"training__distillation__direction": "off", "training__distillation__steps": "all"}),
        ("pfedsam", {"training__phases": "joint", "training__final_steps": 3}),
        ("pfedsam", {"training__phases": "joint", "training__distillation__weight": 0.2}),
        ("centralized", {"training__shared_warmup_rounds": 1}),
    ],
)
def test_the_last_key_has_no_effect_and_the_others_have(method: str, keys: dict[str, Any]) -> None:
    assert list(unused(chosen(method, **keys))) == [list(keys)[-1].replace("__", ".")]


@pytest.mark.parametrize(
    ("method", "keys"),
    [
        ("local-only", {"training__final_steps": 3}),
        ("feddpa", {"training__global_share": 0.5, "model__local_lora": 2}),
        ("fedprox", {"method_options__fedprox__mu": 0.1}),
        ("fedper", {"training__optimizer__pretrained_fraction": 0.5}),
        ("pfedsam", {"training__shared_warmup_rounds": 2, "training__phases": "coupled", "model__experts__count": 8}),
        ("pfedsam", {"training__phases": "decoupled", "training__final_steps": 3, "training__global_share": 0.5}),
        ("pfedsam", {"training__phases": "decoupled", "training__distillation__teacher": "own"}),
        ("pfedsam", {"training__distillation__weight": 0.2, "training__distillation__temperature": 3.0}),
        ("pfedsam", {"training__phases": "halves", "training__distillation__steps": "all"}),
        ("pfedsam", {"training__phases": "joint", "training__order": "local-first", "training__frozen_local": True}),
        ("fedavg", {"model__lora__rank": 8, "training__batch_size": 2, "training__optimizer__weight_decay": 0.0}),
    ],
)
def test_keys_with_an_effect(method: str, keys: dict[str, Any]) -> None:
    assert unused(chosen(method, **keys)) == {}


@pytest.mark.parametrize(
    ("method", "keys", "words"),
    [
        (
            "fedavg",
            {"training__order": "local-first"},
            ["method=fedavg", "used by pfedsam with training.phases=decoupled"],
        ),
        ("fedavg", {"training__final_steps": 3}, ["used by pfedsam with training.phases=decoupled, local-only, "]),
        (
            "pfedsam",
            {"training__final_steps": 3},
            ["method=pfedsam, training.phases=coupled", "pfedsam with training.phases"],
        ),
        ("fedavg", {"method_options__ditto__proximal_weight": 3}, ["only the method ditto uses it"]),
        ("fedavg", {"model__experts__count": 8}, ["used by pfedsam, local-only"]),
    ],
)
def test_what_would_use_it_is_named(method: str, keys: dict[str, Any], words: list[str]) -> None:
    (text,) = unused(chosen(method, **keys)).values()
    for word in words:
        assert word in text


class Milestones(Options):
    rounds: list[int] = Field(default=[1, 2])


@dataclass
class Unhashable:
    least_updates: int = 1


@pytest.mark.parametrize("changes", [{"own": Milestones()}, {"server": Unhashable()}])
def test_a_method_may_have_options_and_a_server_step_without_a_hash(
    changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = replace(METHODS["fedavg"], **changes)
    monkeypatch.setattr("pfedsam.experiment.build.configured", lambda name, own: changed)
    assert unused(chosen("fedavg", training__batch_size=2)) == {}
    assert list(unused(chosen("fedavg", training__final_steps=2))) == ["training.final_steps"]


def test_what_a_method_reads_from_changed_options_has_an_effect(monkeypatch: pytest.MonkeyPatch) -> None:
    def final(options: TrainingOptions) -> tuple[PhaseSpec, ...]:
        return METHODS["local-only"].final(options.model_copy(update={"batch_size": 1}))

    changed = replace(METHODS["local-only"], final=final)
    monkeypatch.setattr("pfedsam.experiment.build.configured", lambda name, own: changed)
    assert unused(chosen("local-only", training__final_steps=2)) == {}


def test_a_run_s_own_configuration_can_be_read_again_and_a_user_s_is_refused(tmp_path: Path) -> None:
    options = chosen("fedavg", training__phases="decoupled", training__rounds=7, model__experts__count=8)
    (tmp_path / "config.yaml").write_text(dump_options(options))
    read, left = load_options(tmp_path / "config.yaml"), without_unused(options)
    assert (read.training, read.model, read.method) == (left.training, left.model, "fedavg")
    assert without_unused(options).training.rounds == 7
    (tmp_path / "study.yaml").write_text(
        "method: fedavg\ndata: {sites: {a: a}, classes: {n: [1]}}\ntraining: {order: local-first}\n"
    )
    with pytest.raises(
        OptionError, match=r"study\.yaml sets 1 option\(s\) without effect.*\n  training.order has no effect"
    ):
        load_options(tmp_path / "study.yaml")


def test_a_comparison_refuses_what_no_method_of_it_uses() -> None:
    runs = [
        chosen(method, training__final_steps=3, training__order="local-first") for method in ("fedavg", "local-only")
    ]
    with pytest.raises(OptionError, match=r"1 option\(s\) that no method of the comparison uses:\n  training.order"):
        refuse_unused_by_all(runs, "study.yaml")
    refuse_unused_by_all(runs, "--set", ["training.final_steps", "training.rounds"])
