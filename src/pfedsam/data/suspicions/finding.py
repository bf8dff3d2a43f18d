"""A finding about the data of a site, and the settings of the study that the checks compare the data with."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from pfedsam.core.text import name_cases
from pfedsam.data.facts import CaseFacts, SiteFacts
from pfedsam.data.images import ImageOptions
from pfedsam.data.labels import LabelMap
from pfedsam.data.volume_options import VolumeOptions


@dataclass(frozen=True)
class Finding:
    """What is probably wrong with some cases of a site."""

    site: str
    kind: str
    text: str
    """What was found and what to do, in words that fit any number of cases."""
    cases: tuple[str, ...] = ()
    """Ids of the cases; empty if the finding is about the site as a whole."""
    error: bool = False
    """Whether a run is refused because of it."""

    def __str__(self) -> str:
        """One line: the site, at most three cases, what was found and what to do."""
        cases = f", {name_cases(self.cases)}" if self.cases else ""
        return f"site {self.site!r}{cases}: {self.text}"


@dataclass(frozen=True)
class Study:
    """The settings of a study that the checks need besides the sites' files."""

    labels: LabelMap
    image: ImageOptions
    patient_pattern: str | None = None
    validation: bool = True
    """Whether the study needs validation cases."""
    volume: VolumeOptions = field(default_factory=VolumeOptions)
    """How volumes are read."""
    site_labels: Mapping[str, LabelMap] = field(default_factory=dict)
    """The label maps of the sites that differ from `labels`, by site."""
    site_patterns: Mapping[str, str | None] = field(default_factory=dict)
    """The patient patterns of the sites that differ from `patient_pattern`, by site."""

    sparse_loss: bool = False
    """Whether the loss is one for structures that fill a small part of the image."""
    foreground_share: float = 0.0
    """Least share of the pictures or tiles in a training batch that contain foreground."""

    def labels_of(self, site: str) -> LabelMap:
        """The meaning of the ids in a site's masks."""
        return self.site_labels.get(site, self.labels)

    def pattern_of(self, site: str) -> str | None:
        """The patient pattern with which a site was read."""
        return self.site_patterns.get(site, self.patient_pattern)


SiteCheck: TypeAlias = Callable[[SiteFacts, Study], Iterator[Finding]]
"""A check that needs the facts of one site only."""
StudyCheck: TypeAlias = Callable[[Sequence[SiteFacts], Study], Iterator[Finding]]
"""A check that may compare sites with each other."""


def at_each_site(check: SiteCheck) -> StudyCheck:
    """The check of all sites that applies a check of one site to each of them."""

    def check_all(sites: Sequence[SiteFacts], study: Study) -> Iterator[Finding]:
        for facts in sites:
            yield from check(facts, study)

    return check_all


def case_ids(cases: Iterable[CaseFacts]) -> tuple[str, ...]:
    """The ids of cases, in their order."""
    return tuple(one.case.id for one in cases)
