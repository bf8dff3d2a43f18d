"""The base class of all options: immutable, and unknown keys are refused.

An options class stands beside the code that uses it and has one field per option, so that each option is defined in one place, with
one default and one description:

    class LoraOptions(Options):
        rank: int = Field(default=4, ge=1, description="Columns of A and rows of B.")
"""

from typing import Annotated, TypeAlias

from pydantic import BaseModel, ConfigDict, StringConstraints

Device: TypeAlias = Annotated[str, StringConstraints(pattern=r"^(auto|cpu|cuda(:\d+)?)$")]
"""Name of a computing device: `auto` is a GPU if torch finds one, else the CPU. Defined here, because some commands do not load torch."""


class Options(BaseModel):
    """Validated, immutable settings of one part; an unknown key is an error instead of being ignored, and so is an infinite value."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)
