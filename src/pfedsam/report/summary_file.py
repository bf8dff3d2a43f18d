"""`summary.json`: the results of a run in a public, versioned format.

    {"schema": 2, "date", "method", "backbone", "seed", "rounds", "steps", "min_cases",
     "sites": {name: {"train_cases", "val_cases", "uses": "personal" | "shared" | null,
                      "personal": ENTRY | null, "shared": ENTRY | null, "local_only": ENTRY | null}},
     "mean": {"train_cases", "val_cases", "personal": ENTRY | null, "shared": ENTRY | null, "local_only": ENTRY | null},
     "worst_site": name | null,
     "communication": {"up_bytes_per_site_round", "down_bytes_per_site_round", "by_component": {name: bytes}},
     "seconds": {what: seconds}, "versions": {package: version}, "sha256": digest of all this}

An ENTRY has the keys `dice, iou, hd95_mm, assd_mm, hd95_px, assd_px, nsd, volume_difference_ml, volume_difference_mm2,
volume_difference_px, lesion_recall, unit, volume_unit, cases, patients, classes, undefined, present, missed, extra, absent,
not_annotated`. A distance or a volume has the key of its unit, and the keys of the other units are null, so that pixels are never read as
millimetres. An undefined measure is null, and `undefined` gives the number of pairs of case and class for which it is undefined. The
reasons are counted separately: `present` is the number of pairs whose truth contains the class, and `missed` the number of those whose
prediction does not; in `extra` pairs only the prediction contains the class, and in `absent` pairs neither does. `not_annotated` pairs
are of a class that the site does not annotate: they are not scored, and count neither as undefined nor in a mean. A model that a method
does not have is null: averaging, for example, has no personal model. A site that has both uses the personal one, unless the shared one was
clearly better on its validation part, and `uses` names it. If it is the shared model, `personal` has the scores of the shared model.
`worst_site` is the site with the lowest Dice. `date` is the day of the test. `seconds` has the key "total", or "since resumed" for a run
that was interrupted. `local_only` is the result of the site without the federation; it is filled from the summary of another run by
`with_local_only`. `steps` is the number of optimiser steps of one training site over the whole run; in the file of an onboarding it is the
number of steps in which the new site trained the model in use, and `rounds` is the number of rounds of the federation. If `min_cases` is
above 1, the sites withheld counts and scores over fewer cases than that. A count is then null if it, or the rest of the cases, is smaller
than `min_cases`, and a sum with such a count is null as well; a value of `train_cases` equal to `min_cases` means this many or fewer.

Files of schema 1 are also read. They lack `date`, `steps`, `train_cases`, `val_cases`, `uses`, `patients`, `nsd`, the volumes,
`lesion_recall`, `present`, `missed`, `extra`, `absent` and `not_annotated`, which are then null, that is, not known.
"""

import platform
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from importlib import metadata
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pfedsam.core import sealed
from pfedsam.core.errors import RunError, StoreError
from pfedsam.core.small_numbers import OFF
from pfedsam.evaluation.scores import MEASURES, ClassScores
from pfedsam.evaluation.summary import (
    ClassSummary,
    Occurrence,
    SiteSummary,
    SummaryUnit,
    SummaryVolumeUnit,
    Units,
    summarize_sites,
)

SCHEMA: Final = 2
_READ: Final = (1, 2)
"""The schemas that this version reads; keys that the first one lacks are null."""
LOCAL_ONLY: Final = "local-only"
"""The method that is the baseline of every gain: each site trains without the federation."""
SINCE_RESUMED: Final = "since resumed"
"""The key in `seconds` of a run that was interrupted, in place of `total`."""
_NOT_KNOWN: Final[Mapping[str, None]] = dict.fromkeys(MEASURES)
"""The counts of undefined measures that a file of an earlier version lacks."""
_PACKAGES: Final = ("pfedsam", "torch", "transformers", "peft", "monai", "numpy", "scipy")


class _Part(BaseModel):
    """A part of the file: immutable, without unknown keys, NaN or infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, populate_by_name=True)


class Values(_Part):
    """The measures of one model, distances and volumes by their unit; None if undefined, in another unit or not known."""

    dice: float | None
    iou: float | None
    hd95_mm: float | None = None
    assd_mm: float | None = None
    hd95_px: float | None = None
    assd_px: float | None = None
    nsd: float | None = None
    volume_difference_ml: float | None = None
    volume_difference_mm2: float | None = None
    volume_difference_px: float | None = None
    lesion_recall: float | None = None
    unit: SummaryUnit
    volume_unit: SummaryVolumeUnit | None = None
    undefined: dict[str, int | None]
    present: int | None = None
    missed: int | None = None
    extra: int | None = None
    absent: int | None = None
    not_annotated: int | None = None

    @property
    def hd95(self) -> float | None:
        """HD95 in `unit`."""
        return self.hd95_mm if self.unit == "mm" else self.hd95_px

    @property
    def assd(self) -> float | None:
        """ASSD in `unit`."""
        return self.assd_mm if self.unit == "mm" else self.assd_px

    @property
    def volume_difference(self) -> float | None:
        """The volume difference in `volume_unit`."""
        by_unit = {
            "ml": self.volume_difference_ml,
            "mm2": self.volume_difference_mm2,
            "px": self.volume_difference_px,
        }
        return by_unit.get(self.volume_unit or "")


class Entry(Values):
    """One model at one site, or its mean over sites, for which `cases` and `patients` are sums over the sites."""

    cases: int | None
    patients: int | None = None
    classes: dict[str, Values]


class SiteEntry(_Part):
    """The models of one site, and the numbers of training and validation cases; None where these are not known."""

    train_cases: int | None = None
    val_cases: int | None = None
    uses: Literal["personal", "shared"] | None = None
    """The model that the site ends with, whose scores are `in_use`; None in the mean and where it is not known."""
    personal: Entry | None = None
    shared: Entry | None = None
    local_only: Entry | None = None

    @property
    def in_use(self) -> Entry | None:
        """The model that the site uses: the personal one if the method has one, else the shared one."""
        return self.personal or self.shared

    @property
    def gain(self) -> float | None:
        """Dice of the model in use minus that of training without the federation; None if either is not known."""
        if self.in_use is None or self.local_only is None or self.in_use.dice is None or self.local_only.dice is None:
            return None
        return self.in_use.dice - self.local_only.dice


class Communication(_Part):
    """Bytes that one site sends and receives in one round, and the bytes of one update by component."""

    up_bytes_per_site_round: float
    down_bytes_per_site_round: float
    by_component: dict[str, int]


class Summary(_Part):
    """The content of `summary.json`."""

    schema_: Literal[2] = Field(default=SCHEMA, alias="schema")
    date: str | None = None
    method: str
    backbone: str
    seed: int
    rounds: int
    steps: int | None = None
    min_cases: int = OFF
    sites: dict[str, SiteEntry]
    mean: SiteEntry
    worst_site: str | None
    communication: Communication
    seconds: dict[str, float]
    versions: dict[str, str]


@dataclass(frozen=True)
class PartSizes:
    """Numbers of cases in the training and the validation part of a site; None where they are not known."""

    train: int | None = None
    val: int | None = None


def build_summary(
    *,
    date: str,
    method: str,
    backbone: str,
    seed: int,
    rounds: int,
    steps: int | None = None,
    min_cases: int = OFF,
    personal: Mapping[str, SiteSummary] | None,
    shared: Mapping[str, SiteSummary] | None,
    sizes: Mapping[str, PartSizes],
    communication: Communication,
    seconds: Mapping[str, float],
    versions: Mapping[str, str],
    use_shared: Collection[str] = (),
) -> Summary:
    """The summary of a run from the scores of its models by site; a model that the method does not have is None.

    `sizes` gives the sizes of the sites' parts; they are not known for sites that are left out. `date` is the day of the test, such as
    2026-11-28. `min_cases` is the smallest number of cases over which counts and scores are published. `use_shared` names the sites that
    use the shared model although they have a personal one.

    Raises:
        RunError: there is no model, or the two models were not scored at the same sites.
    """
    names = _scored_sites([model for model in (personal, shared) if model is not None], method)
    entries = {name: _site_entry(name, personal, shared, sizes.get(name, PartSizes()), use_shared) for name in names}
    return Summary(
        date=date,
        method=method,
        backbone=backbone,
        seed=seed,
        rounds=rounds,
        steps=steps,
        min_cases=min_cases,
        sites=entries,
        mean=_mean_entry(entries.values(), personal, shared),
        worst_site=summarize_sites(personal or shared or {}).worst_site,
        communication=communication,
        seconds=dict(seconds),
        versions=dict(versions),
    )


def _scored_sites(models: Sequence[Mapping[str, SiteSummary]], method: str) -> list[str]:
    """The sites at which all models were scored, in alphabetical order.

    Raises:
        RunError: there is no model or no site, or the models were not scored at the same sites.
    """
    scored = [sorted(model) for model in models]
    if not any(scored) or scored[0] != scored[-1]:
        raise RunError(f"method {method!r}: the personal and the shared model must be scored at the same sites.")
    return scored[0]


def _site_entry(
    name: str,
    personal: Mapping[str, SiteSummary] | None,
    shared: Mapping[str, SiteSummary] | None,
    sizes: PartSizes,
    use_shared: Collection[str],
) -> SiteEntry:
    """The entry of the site of this name; the models are those of `build_summary`."""
    return SiteEntry(
        train_cases=sizes.train,
        val_cases=sizes.val,
        uses="personal" if personal and name not in use_shared else "shared",
        personal=_entry(personal[name]) if personal else None,
        shared=_entry(shared[name]) if shared else None,
    )


def _mean_entry(
    sites: Collection[SiteEntry],
    personal: Mapping[str, SiteSummary] | None,
    shared: Mapping[str, SiteSummary] | None,
) -> SiteEntry:
    """The sums of the sites' cases, and the mean over sites of each model of `build_summary`."""
    return SiteEntry(
        train_cases=_sum_known([site.train_cases for site in sites]),
        val_cases=_sum_known([site.val_cases for site in sites]),
        personal=_entry(summarize_sites(personal).mean) if personal else None,
        shared=_entry(summarize_sites(shared).mean) if shared else None,
    )


def with_earlier_sites(summary: Summary, earlier: Mapping[str, SiteEntry]) -> Summary:
    """The summary with the results of further sites, which were not tested again; the means are over all sites."""
    if not earlier:
        return summary
    sites = dict(sorted({**earlier, **summary.sites}.items()))
    personal, shared = _summaries_of("personal", sites), _summaries_of("shared", sites)
    mean = _mean_entry(sites.values(), personal, shared)
    worst = summarize_sites(personal or shared or {}).worst_site
    return summary.model_copy(update={"sites": sites, "mean": mean, "worst_site": worst})


def _summaries_of(model: str, sites: Mapping[str, SiteEntry]) -> dict[str, SiteSummary] | None:
    """The scores of one model by site, as `build_summary` takes them; None if the method does not have the model."""
    return {name: _summary_of(entry) for name, site in sites.items() if (entry := getattr(site, model))} or None


def _summary_of(entry: Entry) -> SiteSummary:
    """The scores in an entry; the inverse of `_entry`."""
    return SiteSummary(
        cases=entry.cases,
        patients=entry.patients,
        units=Units(entry.unit, entry.volume_unit or "mixed"),
        mean=_scores_of(entry),
        classes={
            name: ClassSummary(_scores_of(one), {**_NOT_KNOWN, **one.undefined}, _occurrence_of(one))
            for name, one in entry.classes.items()
        },
        undefined={**_NOT_KNOWN, **entry.undefined},
    )


def _scores_of(values: Values) -> ClassScores:
    return ClassScores(**{measure: getattr(values, measure) for measure in MEASURES})


def _occurrence_of(values: Values) -> Occurrence | None:
    """The counts of a class; None if the site did not count them."""
    counts = {field.name: getattr(values, field.name) for field in fields(Occurrence)}
    return None if all(count is None for count in counts.values()) else Occurrence(**counts)


def with_local_only(summary: Summary, baseline: Summary) -> Summary:
    """The summary with the results of each site without the federation, taken from the models in use of another run.

    Raises:
        RunError: the other run does not have the method local-only and the same sites, seed and numbers of test cases.
    """
    _check_baseline(summary, baseline)
    sites = {
        name: site.model_copy(update={"local_only": baseline.sites[name].in_use})
        for name, site in summary.sites.items()
    }
    mean = summary.mean.model_copy(update={"local_only": baseline.mean.in_use})
    return summary.model_copy(update={"sites": sites, "mean": mean})


def _check_baseline(summary: Summary, baseline: Summary) -> None:
    """Refuse a baseline over which no gain can be computed.

    Raises:
        RunError: it does not have the method local-only and the same sites, seed and numbers of test cases.
    """
    if baseline.method != LOCAL_ONLY:
        raise RunError(
            f"the baseline is a run of {baseline.method!r}, but the gain is computed over a run of {LOCAL_ONLY!r}. "
            f"Run the configuration again with method: {LOCAL_ONLY}."
        )
    if baseline.seed != summary.seed:
        raise RunError(
            f"the run has seed {summary.seed} and the baseline {baseline.seed}, so they do not have the same split. "
            "Compare runs of the same seed."
        )
    if baseline.sites.keys() != summary.sites.keys():
        raise RunError(
            f"the run has the sites {sorted(summary.sites)} and the baseline {sorted(baseline.sites)}. "
            "Compare runs of the same federation."
        )
    for name, site in summary.sites.items():
        ours, theirs = site.in_use, baseline.sites[name].in_use
        if ours and theirs and ours.cases != theirs.cases:
            raise RunError(
                f"site {name!r}: the run scored {ours.cases} cases and the baseline {theirs.cases}, so they do not "
                "have the same test part. Compare runs of the same split (data and seed)."
            )


def write_summary(path: Path, summary: Summary) -> None:
    """Write the file in one step.

    Raises:
        StoreError: the file could not be written.
    """
    sealed.write_json(path, summary.model_dump(by_alias=True, mode="json"))


def read_summary(path: Path) -> Summary:
    """The summary in a file.

    Raises:
        StoreError: the file cannot be read, has another schema, or does not follow its schema.
    """
    name = path.parent.name
    remedy = f"A run writes this file at its end: resume the run in {name!r}; rounds that it has trained are not trained again."
    if not (path.parent / "config.yaml").exists():
        remedy = f"There is no run in the folder {name!r}: give the folder of a run or of a study."
    content = sealed.read_json(path, remedy)
    schema = content.get("schema")
    if type(schema) is not int or schema not in _READ:
        raise StoreError(
            f"{path.name} has schema {schema!r}; this version reads schema {' and '.join(map(str, _READ))}. "
            "Read it with the version of pFedSAM that wrote it, or run the experiment again."
        )
    try:
        return Summary.model_validate({**content, "schema": SCHEMA})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise StoreError(f"{path.name} does not follow schema {schema} at {where}: {first['msg']}.") from error


def collect_versions() -> dict[str, str]:
    """The versions of Python and of the packages that affect the results of a run."""
    found = {package: _version(package) for package in _PACKAGES}
    return {"python": platform.python_version(), **found}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _sum_known(numbers: list[int | None]) -> int | None:
    """The sum of the numbers; None if one of them is not known."""
    known = [number for number in numbers if number is not None]
    return sum(known) if len(known) == len(numbers) else None


def _values(
    scores: ClassScores, units: Units, undefined: Mapping[str, int | None], occurrence: Occurrence | None
) -> dict[str, object]:
    """The fields of `Values`, with each distance and volume in the field of its unit."""
    found: dict[str, object] = {} if occurrence is None else asdict(occurrence)
    if units.distance != "mixed":
        found |= {f"hd95_{units.distance}": scores.hd95, f"assd_{units.distance}": scores.assd}
    if units.volume != "mixed":
        found[f"volume_difference_{units.volume}"] = scores.volume_difference
    return found | {
        "dice": scores.dice,
        "iou": scores.iou,
        "nsd": scores.nsd,
        "lesion_recall": scores.lesion_recall,
        "unit": units.distance,
        "volume_unit": units.volume,
        "undefined": dict(undefined),
    }


def _entry(site: SiteSummary) -> Entry:
    """The entry of one model at one site."""
    classes = {
        name: Values.model_validate(_values(one.mean, site.units, one.undefined, one.occurrence))
        for name, one in site.classes.items()
    }
    counted = [one.occurrence for one in site.classes.values() if one.occurrence is not None]
    all_classes = sum(counted, Occurrence(0, 0, 0, 0)) if len(counted) == len(classes) else None
    values = _values(site.mean, site.units, site.undefined, all_classes)
    return Entry.model_validate({**values, "cases": site.cases, "patients": site.patients, "classes": classes})
