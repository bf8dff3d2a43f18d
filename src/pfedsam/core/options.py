"""The base of every options class: frozen, and closed to unknown keys.

An options class lives beside the code that uses it, one field per option, so that each option has one home, one default
and one description:

    class LoraOptions(Options):
        rank: int = Field(default=4, ge=1, description="Columns of A and rows of B.")
"""

from pydantic import BaseModel, ConfigDict


class Options(BaseModel):
    """Validated, immutable settings of one part; an unknown key is an error, not a setting without effect."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)
