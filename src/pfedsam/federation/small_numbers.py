"""The check of replies before they leave a site: no count or score may be based on fewer cases than the study allows."""

from collections.abc import Collection, Mapping
from dataclasses import fields
from typing import Final

from pfedsam.core.errors import UpdateError
from pfedsam.core.small_numbers import OFF
from pfedsam.evaluation.scores import MEASURES
from pfedsam.evaluation.summary import UNDEFINED_WHERE, Occurrence

_COUNTS: Final = frozenset(
    {"cases", "patients", *(f"undefined_{one}" for one in MEASURES), *(field.name for field in fields(Occurrence))}
)


def is_count(name: str) -> bool:
    """Whether the metric of this name is a number of cases or patients."""
    return not name.startswith("annotates.") and name.rsplit(".", 1)[-1] in _COUNTS


def check_small_numbers(scalar_metrics: Mapping[str, float | None], least: int) -> None:
    """Refuse counts below the least, sums from which a withheld count could be computed, and scores without a number of test cases.

    Args:
        scalar_metrics: the metrics of a reply.
        least: the study's `min_cases`.

    Raises:
        UpdateError: a metric must not leave the site; the message names the metric.
    """
    if least <= OFF:
        return
    told = {name: value for name, value in scalar_metrics.items() if value is not None}
    withheld = scalar_metrics.keys() - told.keys()
    for name, value in told.items():
        if is_count(name) and value < least:
            raise UpdateError(f"the reply gives {name} a value below {least}, which must not leave the site.")
        *above, last = name.split(".")
        if _sum_of_withheld(name, withheld):
            raise UpdateError(
                f"the reply gives {name}, from which a count below {least} could be computed, which must not leave the site."
            )
        if last in MEASURES and ".".join([*above[:2], "cases"]) in withheld:
            raise UpdateError(
                f"the reply gives {name}, a score of fewer than {least} cases, which must not leave the site."
            )


def _sum_of_withheld(name: str, withheld: Collection[str]) -> bool:
    """Whether a metric is a number of undefined cases that contains a withheld count, of a class or of a kind of cases."""
    *above, last = name.split(".")
    measure = last.removeprefix("undefined_")
    if measure == last:
        return False
    if above[-1] == "mean":
        model = ".".join(above[:-1])
        return any(one.startswith(f"{model}.class.") and one.endswith(f".{last}") for one in withheld)
    return any(".".join([*above, kind]) in withheld for kind in UNDEFINED_WHERE.get(measure, ()))
