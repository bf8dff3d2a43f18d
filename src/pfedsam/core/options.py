"""The base of every options class: frozen, and closed to unknown keys.

An options class lives beside the code that uses it, one field per option, so that each option has one home, one default
and one description:

    class LoraOptions(Options):
        rank: int = Field(default=4, ge=1, description="Columns of A and rows of B.")
"""

from typing import Annotated, TypeAlias

from pydantic import BaseModel, ConfigDict, StringConstraints

Device: TypeAlias = Annotated[str, StringConstraints(pattern=r"^(auto|cpu|cuda(:\d+)?)$")]
"""Where a process computes: a GPU where torch finds one, the processor, or a GPU. Here, because a site's own commands do without torch."""


class Options(BaseModel):
    """Validated, immutable settings of one part; an unknown key is an error, not a setting without effect, and so is infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)
