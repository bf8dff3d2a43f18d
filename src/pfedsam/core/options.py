"""The base class of all options: immutable, and unknown keys are refused.

An options class stands beside the code that uses it and has one field per option, so that each option is defined in one place, with
one default and one description:

    class LoraOptions(Options):
        rank: int = Field(default=4, ge=1, le=1024, description="Columns of A and rows of B.")

A number that multiplies memory or processes has an upper bound (`le`) far above any that is of use, so that a slip of the keyboard is
refused instead of filling the machine.
"""

from collections.abc import Iterator
from typing import Annotated, Any, Final, TypeAlias, get_args

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError, ValidationInfo, field_validator

MAX_THREADS: Final = 1024
Device: TypeAlias = Annotated[str, StringConstraints(pattern=r"^(auto|cpu|cuda(:\d+)?)$")]
"""Name of a computing device: `auto` is a GPU if torch finds one, else the CPU. Defined here, because some commands do not load torch."""


class Options(BaseModel):
    """Validated, immutable settings of one part; an unknown key is an error instead of being ignored, and so is an infinite value."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_values_as_numbers(cls, given: object, info: ValidationInfo) -> object:
        """Refuse `true` and `false` for a number, which Python would take for 1 and 0.

        Raises:
            ValueError: one of them is given.
        """
        kinds = set(_leaves(cls.model_fields[info.field_name or ""].annotation))
        if bool not in kinds and kinds & {int, float} and any(isinstance(one, bool) for one in _values(given)):
            raise ValueError("give a number; true and false are not numbers")
        return given


def first_mistake(error: ValidationError) -> str:
    """The first mistake that the validation of a file found: where it is, and what is wrong."""
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc'])) or 'its content'}: {first['msg']}"


def _leaves(annotation: Any) -> Iterator[type]:  # noqa: ANN401 - a type annotation
    """The classes of which a type is made up, such as str and int for `dict[str, list[int]]`."""
    if isinstance(annotation, type) and not get_args(annotation):
        yield annotation
    for part in get_args(annotation):
        yield from _leaves(part)


def _values(given: object) -> Iterator[object]:
    """The values in lists and tables, at any depth."""
    inner = given.values() if isinstance(given, dict) else given if isinstance(given, list | tuple) else None
    yield from (given,) if inner is None else (value for one in inner for value in _values(one))
