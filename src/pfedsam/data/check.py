"""The properties of the sites' data and all problems of them at once, so that a folder can be corrected in one go."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from statistics import median

from pfedsam.core.errors import DataError
from pfedsam.core.text import name_cases
from pfedsam.data.facts import CaseFacts, SiteFacts, gather_facts
from pfedsam.data.labels import BACKGROUND, LabelMap
from pfedsam.data.manifest import Case, Site
from pfedsam.data.manifest_lines import SPLITS
from pfedsam.data.readers.series_table import SeriesRow
from pfedsam.data.split import split_problems
from pfedsam.data.suspicions import Finding, Study, find_suspicions


@dataclass(frozen=True)
class ImageCounts:
    """Properties of the image files of a site, each with the number of cases that have it."""

    sizes: Mapping[tuple[int, ...], int]
    """(H, W) of a picture, or (D, H, W) of a volume."""
    depths: Mapping[int, int]
    """Bits of a value, for pictures only."""
    kinds: Mapping[str, int]
    """Type of the values, for volumes only."""
    channels: Mapping[int, int]
    """Channels in the file; for volumes, the number of sequences, or 3 for colour."""
    spacings: Mapping[tuple[float, ...] | None, int]
    """Spacing in mm; None where none is given."""
    values: tuple[float, float] | None
    """The lowest 1st and the highest 99.9th percentile of an image, as shares of the range of its type; None without pictures."""
    voxel_values: tuple[float, float] | None
    """The lowest and the highest value of all volumes, in the units of their files; None without volumes."""


@dataclass(frozen=True)
class MaskCounts:
    """Contents of the masks of a site, each with the number of cases that have it."""

    ids: Mapping[int, int]
    """Ids in the files, ascending."""
    classes: Mapping[str, int | None]
    """Every class, with 0 if no case has it, and None if the site does not annotate it."""
    shares: Mapping[str, float | None]
    """Not a number of cases, but the median share of the pixels that a class fills in the masks that have it; None if none has."""
    empty: int
    """Masks that contain background only."""
    missing: int
    """Cases without a mask; a mask that cannot be read is a problem."""


@dataclass(frozen=True)
class SiteReport:
    """The properties of a site's data and what is wrong with them."""

    site: str
    cases: int
    refused: int
    """Cases with a problem, with which no run starts."""
    patients: int
    parts: Mapping[str, int]
    """Part of the split to its number of cases; empty before a split."""
    images: ImageCounts
    masks: MaskCounts
    series: Mapping[str, tuple[SeriesRow, ...]]
    """The series in the folder of a case, for cases whose folder holds several."""
    problems: tuple[str, ...]
    """One message each, with site, cases and remedy; empty if nothing is wrong."""


@dataclass(frozen=True)
class DataReport:
    """The properties of all sites, what is wrong and what may be wrong."""

    sites: tuple[SiteReport, ...]
    facts: tuple[SiteFacts, ...]
    findings: tuple[Finding, ...]
    """Data that can be read and are probably wrong."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """Findings that are probably mistakes, but may be intended."""
        return tuple(str(finding) for finding in self.findings if not finding.error)

    @property
    def problems(self) -> tuple[str, ...]:
        """All reasons to refuse a run, also those that only a comparison of sites shows, such as one picture in train and test."""
        errors = (str(finding) for finding in self.findings if finding.error)
        return (*(problem for site in self.sites for problem in site.problems), *errors)


_NAMED = 20
"""Number of problems that an error lists individually."""


def check_sites(
    sites: Sequence[Site], study: Study, *, tell: Callable[[int, int, str], None] | None = None
) -> DataReport:
    """Read every file of the sites once and report the result; a case with a problem does not end the check.

    Args:
        sites: read with `masks_required=False`, so that every missing mask is reported, and split, so that equal pictures in train and
            test are found.
        study: classes, how images are read, and the pattern that the sites were read with; one that matches nothing is a problem.
        tell: called after each case with the number of cases done, the number of all cases, and the name of the site.
    """
    total = sum(len(site.cases) for site in sites)
    done = count(1)

    def advance(name: str) -> None:
        if tell:
            tell(next(done), total, name)

    gathered = [
        gather_facts(site, study.labels_of(site.name), study.image, study.volume, tell=partial(advance, site.name))
        for site in sites
    ]
    return DataReport(
        sites=tuple(describe_site(facts, study) for facts in gathered),
        facts=tuple(gathered),
        findings=tuple(find_suspicions(gathered, study)),
    )


def refuse_problems(
    sites: Sequence[Site], study: Study, *, tell: Callable[[int, int, str], None] | None = None
) -> DataReport:
    """Check the sites as `check_sites` does and refuse them if there is a problem; warnings are no reason to refuse them.

    Raises:
        DataError: there are problems; the message lists the first ones.
    """
    report = check_sites(sites, study, tell=tell)
    problems = report.problems
    if problems:
        more = len(problems) - _NAMED
        ending = f"\n... and {more} more; `pfedsam data check` lists them all." if more > 0 else ""
        raise DataError(f"The data has {len(problems)} problem(s):\n" + "\n".join(problems[:_NAMED]) + ending)
    return report


def describe_site(facts: SiteFacts, study: Study) -> SiteReport:
    """The properties of one site, and what is wrong with it, without comparing it with other sites."""
    site = facts.site
    parts = Counter(case.split for case in site.cases)
    return SiteReport(
        site=site.name,
        cases=len(facts.cases),
        refused=sum(bool(one.problems) for one in facts.cases),
        patients=len(site.patients()),
        parts={part: parts[part] for part in SPLITS if parts[part]},
        images=_count_images(facts.cases),
        masks=_count_masks(facts.cases, study.labels_of(facts.name)),
        series={one.case.id: one.series for one in facts.cases if one.series},
        problems=tuple(_problems(facts, study.pattern_of(facts.name))),
    )


def _count_images(cases: Sequence[CaseFacts]) -> ImageCounts:
    readable = [one for one in cases if one.size is not None]
    stored = [one.image for one in cases if one.image]
    voxels = [one.voxels for one in cases if one.voxels]
    return ImageCounts(
        sizes=Counter(one.size for one in readable if one.size),
        depths=Counter(image.bits for image in stored),
        kinds=Counter(volume.kind for volume in voxels),
        channels=Counter([*(image.channels for image in stored), *(volume.channels for volume in voxels)]),
        spacings=Counter(one.spacing_mm for one in readable),
        values=_widest((one.low, one.top) for one in cases),
        voxel_values=_widest((volume.low, volume.high) for volume in voxels),
    )


def _widest(found: Iterable[tuple[float | None, float | None]]) -> tuple[float, float] | None:
    """The lowest and the highest end of the known ranges; None if none is known."""
    ranges = [(low, top) for low, top in found if low is not None and top is not None]
    return (min(low for low, _ in ranges), max(top for _, top in ranges)) if ranges else None


def _count_masks(cases: Sequence[CaseFacts], labels: LabelMap) -> MaskCounts:
    labelled = [one for one in cases if one.labelled]
    background = set(labels.ids[BACKGROUND])
    ids = Counter(value for one in labelled for value in one.mask.pixels)
    return MaskCounts(
        ids=dict(sorted(ids.items())),
        classes={name: _cases_with(labelled, labels, name) for name in labels.names},
        shares={name: _median_share(labelled, labels, name) for name in labels.names},
        empty=sum(background.issuperset(one.mask.pixels) for one in labelled),
        missing=sum(one.case.mask is None for one in cases),
    )


def _cases_with(cases: Iterable[CaseFacts], labels: LabelMap, name: str) -> int | None:
    """The number of cases whose mask contains a class; None if the site does not annotate the class."""
    if name in labels.not_annotated:
        return None
    ids = set(labels.ids[name])
    return sum(not ids.isdisjoint(one.mask.pixels) for one in cases)


def _median_share(cases: Iterable[CaseFacts], labels: LabelMap, name: str) -> float | None:
    shares = [share for one in cases if (share := one.mask.share(frozenset(labels.ids[name])))]
    return median(shares) if shares else None


def _problems(facts: SiteFacts, pattern: str | None) -> Iterator[str]:
    site = facts.site
    if not site.cases:
        yield f"site {site.name!r}: has no cases; add images and masks"
    yield from group_problems([(one.case, problem) for one in facts.cases for problem in one.problems])
    if facts.orphans:
        yield _orphan_problem(site, facts.orphans)
    if pattern is not None and site.cases and all(case.patient_source == "name" for case in site.cases):
        yield (
            f"site {site.name!r}: patient_pattern {pattern!r} matches none of its {len(site.cases)} file names, such "
            f"as {site.cases[0].id!r} (the ending left out), so that every case would be a patient; correct or remove it, or "
            r"let it match the names of every site: '^(.+?)(_t[0-9]+)?$' takes those with and without an ending such as _t0"
        )
    yield from split_problems(site)


def _orphan_problem(site: Site, orphans: Sequence[str]) -> str:
    masks = f"mask {orphans[0]!r} has no image"
    if len(orphans) > 1:
        masks = f"{len(orphans)} masks have no image, such as {', '.join(map(repr, orphans[:3]))}"
    return f"site {site.name!r}: {masks}; name it like its image in images/, or take it out"


def group_problems(problems: Sequence[tuple[Case, str]]) -> list[str]:
    """Messages about cases of a site; similar ones become one line that names three of the cases.

    Messages are similar if they only differ in numbers and in names in quotes.
    """
    groups: dict[str, list[tuple[Case, str]]] = {}
    for case, problem in problems:
        text = problem.removeprefix(f"site {case.site!r}, case {case.id!r}: ")
        groups.setdefault(re.sub(r"'[^']*'|\d+(\.\d+)?", "*", text), []).append((case, text))
    lines = []
    for found in groups.values():
        ids = tuple(dict.fromkeys(case.id for case, _ in found))
        case, text = found[0]
        lines.append(f"site {case.site!r}, {name_cases(ids)}: {text}")
    return lines
