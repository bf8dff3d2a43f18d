"""What the sites' data are, and everything that is wrong or suspicious, at once: a folder is mended in one go instead of error by error."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from pfedsam.core.errors import DataError
from pfedsam.data.facts import CaseFacts, SiteFacts, gather_facts
from pfedsam.data.labels import BACKGROUND, LabelMap
from pfedsam.data.manifest import SPLITS, Case, Site, pattern_is_idle
from pfedsam.data.readers.series_table import SeriesRow
from pfedsam.data.split import split_problems
from pfedsam.data.suspicions import Study, find_suspicions, name_cases


@dataclass(frozen=True)
class SiteReport:
    """What a site has; counts are of cases where nothing else is said."""

    site: str
    cases: int
    patients: int
    parts: Mapping[str, int]
    """Part of the split -> cases; empty before a split."""
    sizes: Mapping[tuple[int, ...], int]
    """(H, W), or (D, H, W) of a volume -> images."""
    depths: Mapping[int, int]
    """Bits of a value -> images."""
    channels: Mapping[int, int]
    """Channels in the file -> images."""
    values: tuple[float, float] | None
    """The lowest 1st and the highest 99.9th percentile of an image, as parts of the type's range."""
    spacings: Mapping[tuple[float, ...] | None, int]
    """Spacing in mm -> cases; None where none is given."""
    ids: Mapping[int, int]
    """Id in the mask files -> cases that have it."""
    classes: Mapping[str, int | None]
    """Class -> cases that have it, 0 included; None where the site does not annotate it."""
    shares: Mapping[str, float | None]
    """Class -> the median part of the pixels that it fills, of the masks that have it; None where none has."""
    empty: int
    """Masks of background alone."""
    unlabelled: int
    """Images without a mask that could be read."""
    series: Mapping[str, tuple[SeriesRow, ...]]
    """Case -> the series of its folder, of the cases whose folder holds several."""
    problems: tuple[str, ...]
    """One message each, with site, cases and remedy; empty where all is well."""


@dataclass(frozen=True)
class DataReport:
    """What all sites have, what is wrong and what may be."""

    sites: tuple[SiteReport, ...]
    facts: tuple[SiteFacts, ...]
    leaks: tuple[str, ...]
    """Errors that only the sites together show: equal pictures on two sides of the split."""
    warnings: tuple[str, ...]
    """What may be wrong or meant so, in the same form as problems."""

    @property
    def problems(self) -> tuple[str, ...]:
        """All that a run is refused for."""
        return (*(problem for site in self.sites for problem in site.problems), *self.leaks)


_NAMED = 20
"""Problems that an error names one by one."""


def check_sites(
    sites: Sequence[Site], study: Study, *, tell: Callable[[int, int, str], None] | None = None
) -> DataReport:
    """Reads every file of the sites once and reports what it found; a bad case does not end it.

    Args:
        sites: As read with `masks_required=False`, so that every missing mask is named; split, so that leaks are seen.
        study: Classes, how images are read, and the pattern that the sites were read with; one that matches nothing is a problem.
        tell: Called with the cases done, all cases, and the site at work.
    """
    total, done = sum(len(site.cases) for site in sites), 0
    gathered: list[SiteFacts] = []
    for site in sites:

        def count(name: str = site.name) -> None:
            nonlocal done
            done += 1
            if tell:
                tell(done, total, name)

        gathered.append(gather_facts(site, study.labels_of(site.name), study.image, study.volume, tell=count))
    found = find_suspicions(gathered, study)
    return DataReport(
        sites=tuple(describe_site(facts, study) for facts in gathered),
        facts=tuple(gathered),
        leaks=tuple(str(one) for one in found if one.error),
        warnings=tuple(str(one) for one in found if not one.error),
    )


def refuse_problems(
    sites: Sequence[Site], study: Study, *, tell: Callable[[int, int, str], None] | None = None
) -> DataReport:
    """Lets only sites pass whose files are all sound; arguments as of `check_sites`. What passes may have warnings.

    Raises:
        DataError: they are not; the first problems are named.
    """
    report = check_sites(sites, study, tell=tell)
    problems = report.problems
    if problems:
        more = len(problems) - _NAMED
        ending = f"\n... and {more} more; `pfedsam data check` lists them all." if more > 0 else ""
        raise DataError(f"The data has {len(problems)} problem(s):\n" + "\n".join(problems[:_NAMED]) + ending)
    return report


def describe_site(facts: SiteFacts, study: Study) -> SiteReport:
    """The counts of one site, and what is wrong with it by itself."""
    labels, cases, site = study.labels_of(facts.name), facts.cases, facts.site
    background = set(labels.ids[BACKGROUND])
    tops = [(one.low, one.top) for one in cases if one.low is not None and one.top is not None]
    return SiteReport(
        site=site.name,
        cases=len(cases),
        patients=len(site.patients()),
        parts={split: len(site.of(split)) for split in SPLITS if site.of(split)},
        sizes=dict(Counter(one.size for one in cases if one.size is not None)),
        depths=dict(Counter(one.image.bits for one in cases if one.image)),
        channels=dict(Counter(one.image.channels for one in cases if one.image)),
        values=(min(low for low, _ in tops), max(top for _, top in tops)) if tops else None,
        spacings=dict(Counter(one.spacing_mm for one in cases if one.size is not None)),
        ids=dict(sorted(Counter(value for one in cases for value in one.pixels).items())),
        classes={
            name: None if name in labels.not_annotated else sum(_has(one, labels, name) for one in cases)
            for name in labels.names
        },
        shares={name: _median_share(cases, labels, name) for name in labels.names},
        empty=sum(one.labelled and set(one.pixels) <= background for one in cases),
        unlabelled=sum(not one.labelled for one in cases),
        series={one.case.id: one.series for one in cases if one.series},
        problems=_problems(facts, study),
    )


def _has(one: CaseFacts, labels: LabelMap, name: str) -> bool:
    return not set(one.pixels).isdisjoint(labels.ids[name])


def _median_share(cases: Iterable[CaseFacts], labels: LabelMap, name: str) -> float | None:
    shares = [share for one in cases if (share := one.share(frozenset(labels.ids[name])))]
    return median(shares) if shares else None


def _problems(facts: SiteFacts, study: Study) -> tuple[str, ...]:
    site, pattern = facts.site, study.pattern_of(facts.name)
    problems = [] if site.cases else [f"site {site.name!r}: has no cases; add images and masks"]
    problems += group_problems([(one.case, problem) for one in facts.cases for problem in one.problems])
    if facts.orphans:
        several = f"{len(facts.orphans)} masks have no image, such as" if len(facts.orphans) > 1 else "mask"
        ending = "" if len(facts.orphans) > 1 else " has no image"
        problems.append(
            f"site {site.name!r}: {several} {', '.join(map(repr, facts.orphans[:3]))}{ending}; name it like its image in images/, or take "
            "it out"
        )
    if site.cases and pattern_is_idle(site, pattern):
        problems.append(
            f"site {site.name!r}: patient_pattern {pattern!r} matches none of its {len(site.cases)} file names, such "
            f"as {site.cases[0].id!r} (the ending left out), so that every case would be a patient; correct or remove it, or "
            r"let it match the names of every site: '^(.+?)(_t[0-9]+)?$' takes those with and without an ending such as _t0"
        )
    return (*problems, *split_problems(site))


def group_problems(problems: Sequence[tuple[Case, str]]) -> list[str]:
    """Messages about cases of a site, equal ones as one line that names three of the cases.

    Messages are equal when they differ in nothing but names in quotes and numbers.
    """
    groups: dict[str, list[tuple[Case, str]]] = {}
    for case, problem in problems:
        text = problem.removeprefix(_about(case))
        groups.setdefault(re.sub(r"'[^']*'|\d+(\.\d+)?", "*", text), []).append((case, text))
    lines = []
    for found in groups.values():
        ids = tuple(dict.fromkeys(case.id for case, _ in found))
        case, text = found[0]
        lines.append(f"{_about(case)}{text}" if len(ids) == 1 else f"site {case.site!r}{name_cases(ids)}: {text}")
    return lines


def _about(case: Case) -> str:
    return f"site {case.site!r}, case {case.id!r}: "
