"""`summary.json`: what a run ended with, as a public and versioned format.

    {"schema": 1, "method", "backbone", "seed", "rounds",
     "sites": {name: {"personal": ENTRY | null, "shared": ENTRY | null, "local_only": ENTRY | null}},
     "mean": {"personal": ENTRY | null, "shared": ENTRY | null, "local_only": ENTRY | null},
     "worst_site": name | null,
     "communication": {"up_bytes_per_site_round", "down_bytes_per_site_round", "by_component": {name: bytes}},
     "seconds": {what: seconds}, "versions": {package: version}, "sha256": digest of all this}

An ENTRY holds `dice, iou, hd95_mm, assd_mm, hd95_px, assd_px, unit, cases, classes, undefined`. A distance stands
under the name of its unit and the other name is null, so that pixels are never read as millimetres. `null` is
"undefined", and `undefined` counts the (case, class) pairs. A model that a method does not have is null: averaging has
no personal model. `seconds` has "total", or "since resumed" for a run that was stopped. `local_only` is what the site reached
alone, filled from another run's summary by `with_local_only`.
"""

import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pfedsam.core import sealed
from pfedsam.core.errors import RunError, StoreError
from pfedsam.evaluation.scores import ClassScores
from pfedsam.evaluation.summary import SiteSummary, SummaryUnit, summarize_sites

SCHEMA: Final = 1
LOCAL_ONLY: Final = "local-only"
"""The baseline of every gain: a site that trains alone."""
_PACKAGES: Final = ("pfedsam", "torch", "transformers", "peft", "monai", "numpy", "scipy")


class _Part(BaseModel):
    """A part of the file: frozen, closed to unknown keys and to numbers that JSON does not have."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, populate_by_name=True)


class Values(_Part):
    """The measures of one model, distances under the name of their unit; None where undefined or in the other unit."""

    dice: float | None
    iou: float | None
    hd95_mm: float | None = None
    assd_mm: float | None = None
    hd95_px: float | None = None
    assd_px: float | None = None
    unit: SummaryUnit
    undefined: dict[str, int]

    @property
    def hd95(self) -> float | None:
        """HD95 in `unit`."""
        return self.hd95_mm if self.unit == "mm" else self.hd95_px

    @property
    def assd(self) -> float | None:
        """ASSD in `unit`."""
        return self.assd_mm if self.unit == "mm" else self.assd_px


class Entry(Values):
    """One model at one site, or its mean over sites (then `cases` is the number of all cases)."""

    cases: int
    classes: dict[str, Values]


class SiteEntry(_Part):
    """The models of one site."""

    personal: Entry | None = None
    shared: Entry | None = None
    local_only: Entry | None = None

    @property
    def in_use(self) -> Entry | None:
        """The model that the site would use: under `personal` where the method has one, else under `shared`."""
        return self.personal or self.shared

    @property
    def gain(self) -> float | None:
        """Dice of the model in use minus that of local training alone; None where either is not known."""
        if self.in_use is None or self.local_only is None or self.in_use.dice is None or self.local_only.dice is None:
            return None
        return self.in_use.dice - self.local_only.dice


class Communication(_Part):
    """Bytes on the wire of one site in one round, and how one update is made up."""

    up_bytes_per_site_round: float
    down_bytes_per_site_round: float
    by_component: dict[str, int]


class Summary(_Part):
    """The content of `summary.json`."""

    schema_: Literal[1] = Field(default=SCHEMA, alias="schema")
    method: str
    backbone: str
    seed: int
    rounds: int
    sites: dict[str, SiteEntry]
    mean: SiteEntry
    worst_site: str | None
    communication: Communication
    seconds: dict[str, float]
    versions: dict[str, str]


def build_summary(
    *,
    method: str,
    backbone: str,
    seed: int,
    rounds: int,
    personal: Mapping[str, SiteSummary] | None,
    shared: Mapping[str, SiteSummary] | None,
    communication: Communication,
    seconds: Mapping[str, float],
    versions: Mapping[str, str],
) -> Summary:
    """The summary of a run from the scores of its models by site; a model that the method does not have is None.

    Raises:
        RunError: there is no model, or the two were not scored at the same sites.
    """
    scored = [set(model) for model in (personal, shared) if model is not None]
    if not scored or scored[0] != scored[-1] or not scored[0]:
        raise RunError(f"method {method!r}: the personal and the shared model must be scored at the same sites.")
    entries = {
        name: SiteEntry(
            personal=_entry(personal[name]) if personal else None,
            shared=_entry(shared[name]) if shared else None,
        )
        for name in sorted(scored[0])
    }
    return Summary(
        method=method,
        backbone=backbone,
        seed=seed,
        rounds=rounds,
        sites=entries,
        mean=SiteEntry(
            personal=_entry(summarize_sites(personal).mean) if personal else None,
            shared=_entry(summarize_sites(shared).mean) if shared else None,
        ),
        worst_site=summarize_sites(personal or shared or {}).worst_site,
        communication=communication,
        seconds=dict(seconds),
        versions=dict(versions),
    )


def with_local_only(summary: Summary, baseline: Summary) -> Summary:
    """The summary with what each site reached alone, taken from the models in use of another run.

    Raises:
        RunError: the other run is not one of local training alone with the same sites, seed and number of test cases.
    """
    if baseline.method != LOCAL_ONLY:
        raise RunError(
            f"the baseline is a run of {baseline.method!r}, and the gain over training alone needs one of {LOCAL_ONLY!r}. "
            f"Run the configuration again with method: {LOCAL_ONLY}."
        )
    if baseline.seed != summary.seed:
        raise RunError(
            f"the run has seed {summary.seed} and the baseline {baseline.seed}, so they did not see the same split. "
            "Compare runs of the same seed."
        )
    if baseline.sites.keys() != summary.sites.keys():
        raise RunError(
            f"the run has the sites {sorted(summary.sites)} and the baseline {sorted(baseline.sites)}. "
            "Compare runs of the same federation."
        )
    sites = {}
    for name, site in summary.sites.items():
        ours, theirs = site.in_use, baseline.sites[name].in_use
        if ours and theirs and ours.cases != theirs.cases:
            raise RunError(
                f"site {name!r}: the run scored {ours.cases} cases and the baseline {theirs.cases}, so they did not "
                "see the same test part. Compare runs of the same split (data and seed)."
            )
        sites[name] = site.model_copy(update={"local_only": theirs})
    mean = summary.mean.model_copy(update={"local_only": baseline.mean.in_use})
    return summary.model_copy(update={"sites": sites, "mean": mean})


def write_summary(path: Path, summary: Summary) -> None:
    """Writes the file, as a whole or not at all.

    Raises:
        StoreError: it could not be written.
    """
    sealed.write_json(path, summary.model_dump(by_alias=True, mode="json"))


def read_summary(path: Path) -> Summary:
    """The summary in a file.

    Raises:
        StoreError: the file cannot be read, is of another schema, or does not hold what the schema says.
    """
    remedy = f"The run in {path.parent.name!r} writes it when it ends: resume it, and it is written again; nothing is trained again."
    content = sealed.read_json(path, remedy)
    schema = content.get("schema")
    if schema != SCHEMA:
        raise StoreError(
            f"{path.name} has schema {schema!r}; this version reads schema {SCHEMA}. "
            "Read it with the version of pFedSAM that wrote it, or run the experiment again."
        )
    try:
        return Summary.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise StoreError(f"{path.name} does not follow schema {SCHEMA} at {where}: {first['msg']}.") from error


def collect_versions() -> dict[str, str]:
    """The versions of Python and of the packages that decide a run's numbers."""
    found = {package: _version(package) for package in _PACKAGES}
    return {"python": platform.python_version(), **found}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _values(scores: ClassScores, unit: SummaryUnit, undefined: Mapping[str, int]) -> dict[str, object]:
    """The fields of `Values`, each distance under the name of its unit."""
    distances = {} if unit == "mixed" else {f"hd95_{unit}": scores.hd95, f"assd_{unit}": scores.assd}
    return {"dice": scores.dice, "iou": scores.iou, "unit": unit, "undefined": dict(undefined), **distances}


def _entry(site: SiteSummary) -> Entry:
    """The entry of one model at one site."""
    classes = {
        name: Values.model_validate(_values(one.mean, site.unit, one.undefined)) for name, one in site.classes.items()
    }
    values = _values(site.mean, site.unit, site.undefined)
    return Entry.model_validate({**values, "cases": site.cases, "classes": classes})
