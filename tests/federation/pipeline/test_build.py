"""Which steps the options give."""

import pytest
from pydantic import ValidationError

from pfedsam.federation.codec import Codec
from pfedsam.federation.pipeline.build import CommunicationOptions, build_pipeline
from pfedsam.federation.pipeline.clip import Clip
from pfedsam.federation.pipeline.error_feedback import ErrorFeedback


@pytest.mark.parametrize(
    ("options", "steps", "codec"),
    [
        ({}, (ErrorFeedback(),), Codec("int4", 64)),
        ({"codec": "fp32"}, (), Codec("fp32", 64)),
        ({"codec": "int8", "block": 32, "error_feedback": False}, (), Codec("int8", 32)),
        ({"codec": "fp16", "clip": 2.5}, (Clip(2.5), ErrorFeedback()), Codec("fp16", 64)),
    ],
)
def test_steps_follow_the_options(options: dict, steps: tuple, codec: Codec) -> None:
    pipeline = build_pipeline(CommunicationOptions.model_validate(options))
    assert (pipeline.steps, pipeline.codec) == (steps, codec)


@pytest.mark.parametrize("norm", [0.0, -1.0, float("inf"), float("nan")])
def test_a_norm_that_bounds_nothing_is_refused(norm: float) -> None:
    with pytest.raises(ValidationError):
        CommunicationOptions(clip=norm)
