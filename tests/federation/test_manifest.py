"""The manifest of a study: it defines how updates are encoded, and whatever does not agree with it is refused."""

import json

import pytest
import torch

from pfedsam.core.errors import RunError
from pfedsam.federation.codec import Codec
from pfedsam.federation.manifest import (
    StudyManifest,
    communication_of,
    differences,
    largest_change,
    parse_manifest,
    shared_tensors,
)

SHARED = {"lora.a": torch.zeros(4, 3), "token": torch.zeros(2, dtype=torch.float16)}
COMMUNICATION = {"codec": "int8", "block": 32, "clip": 0.5}
STEPS = (
    "scale the change down to an L2 norm of 0.5",
    "add what rounding took from the last update",
    "encode as int8/32",
)


@pytest.fixture
def content() -> dict:
    return {
        "study": "0123456789abcdef",
        "name": "s",
        "method": "pfedsam",
        "rounds": 5,
        "configuration": {"data": {}, "model": {"backbone": "sam-tiny"}, "communication": COMMUNICATION},
        "backbone": "b" * 64,
        "tensors": {name: one.model_dump() for name, one in shared_tensors(SHARED).items()},
        "components": {"lora_a": ["lora.a"], "class_tokens": ["token"]},
        "pipeline": list(STEPS),
        "max_change": 1.0,
        "scalar_metrics": {},
    }


def test_the_codec_is_the_one_of_the_configuration(content: dict) -> None:
    manifest = parse_manifest(json.dumps(content).encode())
    assert manifest.spec.codec == Codec("int8", 32)
    # 12 codes and 1 scale of 2 bytes; 2 codes and 1 scale.
    assert manifest.component_bytes() == {"lora_a": 14, "class_tokens": 4}


@pytest.mark.parametrize(
    "change",
    [
        {"pipeline": list(STEPS[1:])},
        {"pipeline": ["encode as fp32"]},
        {"configuration": {"data": {}, "model": {"backbone": "sam-tiny"}}},
    ],
)
def test_other_steps_than_those_of_the_configuration_are_refused(content: dict, change: dict) -> None:
    with pytest.raises(RunError, match="pipeline"):
        parse_manifest(json.dumps({**content, **change}).encode())


@pytest.mark.parametrize("communication", [{"codec": "int3"}, {"clip": -1}, {"noise": 1}, [], "int4"])
def test_a_configuration_that_does_not_say_how_updates_are_written_is_refused(
    content: dict, communication: object
) -> None:
    content["configuration"]["communication"] = communication
    with pytest.raises(RunError, match="communication"):
        parse_manifest(json.dumps(content).encode())


def test_a_manifest_of_version_1_is_refused_with_what_to_do(content: dict) -> None:
    old = {**content, "version": 1, "communication": COMMUNICATION}
    old.pop("pipeline")
    with pytest.raises(RunError, match="submit the study again with this version"):
        parse_manifest(json.dumps(old).encode())


def test_differences_are_named_by_their_path(content: dict) -> None:
    one = StudyManifest.model_validate(content)
    content["configuration"]["communication"] = {**COMMUNICATION, "block": 64}
    assert one.differences(StudyManifest.model_validate(content)) == ["configuration.communication.block"]


def test_the_order_of_the_classes_is_a_difference_and_that_of_the_sites_is_none() -> None:
    one = {"data": {"classes": {"organ": [1], "lesion": [2]}, "sites": {"a": "a", "b": "b"}}}
    other = {"data": {"classes": {"lesion": [2], "organ": [1]}, "sites": {"b": "b", "a": "a"}}}
    assert differences(one, other) == differences(other, one) == ["data.classes"]
    assert differences({"configuration": one}, {"configuration": other}) == ["configuration.data.classes"]
    assert differences(one, {"data": {**one["data"], "sites": other["data"]["sites"]}}) == []


def test_the_largest_change_by_hand() -> None:
    """14 values, each moved by at most 4 learning rates a step: 4 x 0.01 x 5 x sqrt(14)."""
    assert largest_change(SHARED, 0.01, 5) == pytest.approx(0.2 * 14**0.5)


def test_only_floating_point_tensors_are_shared() -> None:
    with pytest.raises(RunError, match="int64"):
        shared_tensors({"n": torch.zeros(2, dtype=torch.int64)})


def test_communication_defaults_hold_where_the_configuration_leaves_them_out() -> None:
    assert (communication_of({}).codec, communication_of({}).block) == ("int4", 64)
