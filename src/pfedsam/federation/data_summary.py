"""The summary of a site's data as numbers by name, which is the only form in which a reply can hold it.

The numbers are those of the file that `pfedsam data summary` writes (`data.site_summary`), such as `data.cases`, `data.intensities.0` and
`data.class.organ.share`. The gate of the site and the coordinator read them by the same function, which checks all of them together.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from pydantic import ValidationError

from pfedsam.core.errors import UpdateError
from pfedsam.data.site_summary import BINS, HISTOGRAMS, OF_VOLUMES, SiteSummaryFile

_VOLUMES: Final = "data.volumes"
_COUNTS: Final = ("cases", "patients", "without_spacing")
_CLASS: Final = "data.class."
_ANNOTATED: Final = ".annotated"
_OF_CLASS: Final = ("annotated", "cases", "share")


def summary_names(classes: Iterable[str]) -> tuple[str, ...]:
    """The names of all numbers of a summary; those that are withheld, or do not exist at a site, are null in its reply."""
    return (
        _VOLUMES,
        *(f"data.{name}" for name in _COUNTS),
        *_numbered("intensities", BINS),
        *(name for table, edges in HISTOGRAMS.items() for name in _numbered(table, len(edges) + 1)),
        *(f"{_CLASS}{name}.{part}" for name in classes for part in _OF_CLASS),
    )


def from_site_summary(summary: SiteSummaryFile) -> dict[str, float | None]:
    """A summary as numbers by name."""
    found: dict[str, float | None] = {_VOLUMES: float(summary.kind == "volumes")}
    found |= {f"data.{name}": getattr(summary, name) for name in _COUNTS}
    found |= _by_number("intensities", summary.intensities or [None] * BINS)
    for name, edges in HISTOGRAMS.items():
        table = getattr(summary, name)
        found |= _by_number(name, table.counts if table else [None] * (len(edges) + 1))
    for name, one in summary.classes.items():
        values = (float(one.annotated), one.cases, one.share)
        found |= {f"{_CLASS}{name}.{part}": value for part, value in zip(_OF_CLASS, values, strict=True)}
    return found


def to_site_summary(
    scalar_metrics: Mapping[str, float | None], names: Sequence[str], *, site: str, min_cases: int
) -> SiteSummaryFile:
    """The summary in a reply; the inverse of `from_site_summary`. Nothing in the reply is trusted.

    Args:
        scalar_metrics: of the reply.
        names: that the manifest lists for it.
        site: that sent it.
        min_cases: of the manifest.

    Raises:
        UpdateError: a number is missing, cannot be what its name says, stands for fewer than `min_cases` cases, or does not agree with the
            others. The message repeats none of the numbers.
    """
    classes = [name[len(_CLASS) : -len(_ANNOTATED)] for name in names if _is_of_a_class(name)]
    if set(scalar_metrics) != set(summary_names(classes)):
        raise UpdateError("its summary of the data does not have exactly the agreed numbers")
    told = dict(scalar_metrics)
    yes_or_no = [_VOLUMES, *(f"{_CLASS}{name}{_ANNOTATED}" for name in classes)]
    if any(told[name] not in (0, 1) for name in yes_or_no):
        raise UpdateError(
            f"its summary of the data gives {_VOLUMES} or a class's {_ANNOTATED[1:]} another value than 0 or 1"
        )
    content = {
        "site": site,
        "min_cases": min_cases,
        "kind": "volumes" if told[_VOLUMES] else "pictures",
        **{name: told[f"data.{name}"] for name in _COUNTS},
        "intensities": _values(told, "intensities", BINS),
        **{name: _table(told, name) for name in HISTOGRAMS},
        "classes": {name: {part: told[f"{_CLASS}{name}.{part}"] for part in _OF_CLASS} for name in classes},
    }
    try:
        return SiteSummaryFile.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        where, what = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
        raise UpdateError(f"its summary of the data cannot be true: {where and f'{where}: '}{what}") from error


def _is_of_a_class(name: str) -> bool:
    """Whether this is the one number of each class that says whether the site annotates it."""
    return name.startswith(_CLASS) and name.endswith(_ANNOTATED)


def _numbered(name: str, count: int) -> list[str]:
    return [f"data.{name}.{number}" for number in range(count)]


def _by_number(name: str, values: Sequence[float | None]) -> dict[str, float | None]:
    return dict(zip(_numbered(name, len(values)), values, strict=True))


def _values(told: Mapping[str, float | None], name: str, count: int) -> list[float | None] | None:
    """The numbers of one group in their order; None if all of them are withheld."""
    values = [told[one] for one in _numbered(name, count)]
    return None if all(value is None for value in values) else values


def _table(told: Mapping[str, float | None], name: str) -> dict[str, object] | None:
    """The content of a histogram; None for one that only volumes have if it holds nothing and the site has pictures."""
    edges = HISTOGRAMS[name]
    counts = _values(told, name, len(edges) + 1)
    if counts is None and name in OF_VOLUMES and not told[_VOLUMES]:
        return None
    return {"edges": edges, "counts": counts or [None] * (len(edges) + 1)}
