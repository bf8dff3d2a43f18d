"""Data that can be read and are probably wrong: each function looks at the facts of all sites for one kind of fault.

A finding has the site, its cases and what to do. Most are warnings, since the data may be meant so; a picture on two sides of a split is
an error, since a score over it measures memory.
"""

import math
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Final

from pfedsam.data.facts import CaseFacts, SiteFacts
from pfedsam.data.images import ImageOptions
from pfedsam.data.labels import BACKGROUND, LabelMap
from pfedsam.data.manifest import MANIFEST, READABLE, Split
from pfedsam.data.volume_options import VolumeOptions

_SHOWN: Final = 3
"""Cases that a finding names."""
_SMALL_RANGE: Final = 0.25
"""Values that stay below this part of their type's range: 14 bits in 16, 6 in 8."""
_FAR_SHARE: Final = 4.0
"""Distance of log odds from which two foreground shares are far apart: a factor of 55 in the odds."""
_INVERTED: Final = 1.0
"""The same where the share of what is not the class would be nearer and the class covers the pictures' edges."""
_SPARSE: Final = 0.005
"""Share of the pixels below which a class is easily lost in training."""
_SPACING_FACTOR: Final = 10.0
"""Factor between spacings of one site that no scanner explains: millimetres and micrometres, say."""
_TILE: Final = re.compile(
    r"[ _.\-](?:(?:t|tile|patch|crop|part|slice|frame|z|roi)[ _\-]?\d+|[xrc]\d+[ _\-]?[yrc]\d+)$", re.IGNORECASE
)
"""Endings that say which part of a source a picture is: _t3, -tile12, _x0_y512, _r0_c3, _slice07."""
_NUMBERED: Final = re.compile(r"(?<=\d)[ _\-]\d+$")
"""A bare number after a number, such as p3_1; a sign of several pictures of one source only where there are several such sources."""
_SIDES: Final = re.compile(r"(?:[ _\-]?(?:left|right)|(?<=\d)[LR]|[ _\-](?:L|R|OD|OS))$", re.IGNORECASE)
"""Endings for the sides of one body, such as the eyes of one person."""


@dataclass(frozen=True)
class Finding:
    """What is probably wrong with some cases of a site."""

    site: str
    kind: str
    text: str
    """What was seen and what to do, in words that fit any number of cases."""
    cases: tuple[str, ...] = ()
    """Ids; empty where it is about the site."""
    error: bool = False
    """The run must not start."""

    def __str__(self) -> str:
        """One line: the site, at most three cases, what was seen and what to do."""
        return f"site {self.site!r}{name_cases(self.cases)}: {self.text}"


@dataclass(frozen=True)
class Study:
    """What the suspicions know of the study beside its files."""

    labels: LabelMap
    image: ImageOptions
    patient_pattern: str | None = None
    validation: bool = True
    """The study asks for a validation part."""
    volume: VolumeOptions = field(default_factory=VolumeOptions)
    """How volumes are read."""
    site_labels: Mapping[str, LabelMap] = field(default_factory=dict)
    """What the ids of a site mean, where it is not what `labels` says."""
    site_patterns: Mapping[str, str | None] = field(default_factory=dict)
    """The patient pattern of a site, where it is not `patient_pattern`."""

    sparse_loss: bool = False
    """The loss is one for structures that fill a small part of the image."""
    foreground_share: float = 0.0
    """Least share of a training batch of pictures or tiles that hold foreground."""

    def labels_of(self, site: str) -> LabelMap:
        """What the ids in a site's masks mean."""
        return self.site_labels.get(site, self.labels)

    def pattern_of(self, site: str) -> str | None:
        """The patient pattern with which a site was read."""
        return self.site_patterns.get(site, self.patient_pattern)


def name_cases(cases: Sequence[str]) -> str:
    """`, case 'a'`, or `, 300 cases such as 'a', 'b', 'c'`; empty without any."""
    if len(cases) < 2:
        return f", case {cases[0]!r}" if cases else ""
    return f", {len(cases)} cases{' such as' if len(cases) > _SHOWN else ''} {', '.join(map(repr, cases[:_SHOWN]))}"


def find_suspicions(sites: Sequence[SiteFacts], study: Study) -> list[Finding]:
    """Everything suspicious about the sites, errors first, then site by site in the order given."""
    order = {facts.name: number for number, facts in enumerate(sites)}
    found = [finding for look in _LOOKS for finding in look(sites, study)]
    return sorted(found, key=lambda one: (not one.error, order[one.site]))


def small_range(sites: Sequence[SiteFacts], study: Study) -> Iterator[Finding]:
    """Values that use a small part of their type's range, such as 12 bits in 16, where contrast is not stretched."""
    if study.image.contrast != "none":
        return
    for facts in sites:
        for bits in (8, 16):
            few = [
                one
                for one in facts.cases
                if one.image and one.image.bits == bits and one.top is not None and one.top < _SMALL_RANGE
            ]
            if few:
                highest = max(one.top or 0.0 for one in few)
                yield Finding(
                    facts.name,
                    "small range",
                    f"the values use {100 * highest:.0f} % of the range of their {bits}-bit type or less, so that the images are almost "
                    "black to the model; set data.image.contrast: percentile, or export them with their full range",
                    _ids(few),
                )


def pattern_partly(sites: Sequence[SiteFacts], study: Study) -> Iterator[Finding]:
    """A patient pattern that matches some names of a site and not others."""
    for facts in sites:
        asked = [one for one in facts.cases if one.case.patient_source != "manifest"]
        missed = [one for one in asked if one.case.patient_source == "name"]
        pattern = study.pattern_of(facts.name)
        if pattern is None or not 0 < len(missed) < len(asked):
            continue
        yield Finding(
            facts.name,
            "pattern partly",
            f"patient_pattern '{pattern}' matches {len(asked) - len(missed)} of {len(asked)} names and not "
            f"{'this one' if len(missed) == 1 else 'these'}: each becomes a patient of its own, so that pictures of one patient can "
            r"lie on two sides of the split; let it match every name (\d+ takes numbers of any length)",
            _ids(missed),
        )


def tile_names(sites: Sequence[SiteFacts], study: Study) -> Iterator[Finding]:
    """Names that look like parts of one source, where each is a patient of its own."""
    for facts in sites:
        alone = [one.case.id for one in facts.cases if one.case.patient == one.case.id]
        if study.patient_pattern and any(one.case.patient_source == "pattern" for one in facts.cases):
            continue  # the names that the pattern leaves are told by `pattern_partly`
        for ending, sources in ((_TILE, 1), (_SIDES, 2), (_NUMBERED, 3)):
            groups = _by_source(alone, ending)
            together = [case for cases in groups.values() for case in cases]
            if len(groups) >= sources and 2 * len(together) > len(facts.cases):
                source, cases = next(iter(groups.items()))
                yield Finding(
                    facts.name,
                    "tile names",
                    f"the names look like several pictures of one source ({len(cases)} of {source!r}, say), and each counts as a patient "
                    "of its own, so that one source can lie on two sides of the split; set data.patient_pattern, or give the patients in "
                    f"{MANIFEST}",
                    tuple(together),
                )
                break


def equal_pictures(sites: Sequence[SiteFacts], study: Study) -> Iterator[Finding]:
    """Equal pictures, by content, under two names, patients or sites: errors where they lie on two sides of the split."""
    del study
    by_kind: dict[tuple[str, str, bool], list[list[CaseFacts]]] = defaultdict(list)
    for group in _with_equal(sites, lambda one: one.content):
        sides = {one.case.split for one in group} - {None, "unused"}
        by_kind[group[0].case.site, _how_equal(group), len(sides) > 1].append(group)
    for (site, how, leak), found in by_kind.items():
        yield Finding(site, "equal pictures", _equal_text(found, how, leak=leak), _pair_ids(found), error=leak)


def equal_masks(sites: Sequence[SiteFacts], study: Study) -> Iterator[Finding]:
    """Volumes of two patients whose masks are equal voxel by voxel: sequences of one patient that were listed as patients, or copies."""
    del study
    found: dict[str, list[list[CaseFacts]]] = defaultdict(list)
    for group in _with_equal(sites, lambda one: one.mask_content):
        if len({(one.case.site, one.case.patient) for one in group}) > 1:
            found[group[0].case.site].append(group)
    for site, several in found.items():
        first, second = _two_of(several[0], leak=False)
        more = f" ({len(several)} such groups)" if len(several) > 1 else ""
        yield Finding(
            site,
            "equal masks",
            f"the masks of {first.case.id!r} (site {first.case.site!r}, patient {first.case.patient!r}) and {second.case.id!r} (site "
            f"{second.case.site!r}, patient {second.case.patient!r}) are equal voxel by voxel{more}, so that they are probably of one "
            "patient, who can come to lie on two sides of the split; name the sequences of a case by data.volume.channels, or give them "
            "the same patient",
            _pair_ids(several),
        )


def _with_equal(sites: Sequence[SiteFacts], content: Callable[[CaseFacts], str | None]) -> list[list[CaseFacts]]:
    """The groups of two or more cases, of any site, whose digest is the same; cases without one are in none."""
    groups: dict[str, list[CaseFacts]] = defaultdict(list)
    for facts in sites:
        for one in facts.cases:
            found = content(one)
            if found is not None:
                groups[found].append(one)
    return [group for group in groups.values() if len(group) > 1]


def exif_masks(sites: Sequence[SiteFacts], study: Study) -> Iterator[Finding]:
    """Images that are turned as their EXIF says, with masks that are not, of the stored size."""
    del study
    for facts in sites:
        turned = [one for one in facts.cases if _is_turned_alone(one)]
        if turned:
            yield Finding(
                facts.name,
                "EXIF orientation",
                "the image has an EXIF orientation and is turned when it is read, the mask has none and has the size of the stored pixels: "
                "if it was drawn on these, it lies wrong; save the images upright without the tag, or the masks turned alike",
                _ids(turned),
            )


def absent_class(sites: Sequence[SiteFacts], study: Study) -> Iterator[Finding]:
    """A class that no mask of a site has."""
    for facts in sites:
        labelled = [one for one in facts.cases if one.labelled]
        seen = {value for one in labelled for value in one.pixels}
        labels = study.labels_of(facts.name)
        annotated = [name for name in labels.names if name not in labels.not_annotated]
        absent = [name for name in annotated if seen.isdisjoint(labels.ids[name])]
        if not labelled or not absent or not seen:
            continue
        if seen <= set(labels.ids[BACKGROUND]):
            yield Finding(
                facts.name,
                "absent class",
                "its masks hold background alone, so nothing can be learnt or scored there; if that is not meant, export them again with "
                "the ids of data.classes",
            )
            continue
        names = ", ".join(repr(name) for name in absent)
        yield Finding(
            facts.name,
            "absent class",
            f"none of its {len(labelled)} masks has the class {names} (ids {', '.join(str(list(labels.ids[n])) for n in absent)}), "
            "so that the class cannot be learnt or scored there and counts as background; if the site has it under another id, correct "
            f"the masks or {labels.key}; if it does not annotate the class, name it under not_annotated of the site",
        )


def foreground_share(sites: Sequence[SiteFacts], study: Study) -> Iterator[Finding]:
    """A class whose share of the pixels is far from the other sites', above all where the masks look inverted."""
    for name in study.labels.names:
        shares = {one.name: _typical(one, frozenset(study.labels_of(one.name).ids[name])) for one in sites}
        for facts in sites:
            here = shares[facts.name]
            others = [share.pixels for site, share in shares.items() if share and site != facts.name]
            if here is None:
                continue
            if _looks_inverted(here, others):
                said = "and all along their edges: they look inverted; exchange the ids of data.classes, or invert the masks"
            elif others and abs(_log_odds(here.pixels) - _log_odds(median(others))) > _FAR_SHARE:
                said = "; see whether the ids of data.classes mean the same at every site"
            else:
                continue
            compared = f" (other sites: {_percent(median(others))})" if others else ""
            said = said if said.startswith(";") else f" {said}"
            yield Finding(
                facts.name,
                "foreground share",
                f"the class {name!r} fills {_percent(here.pixels)} of the masks{compared}{said}",
            )


def sparse_class(sites: Sequence[SiteFacts], study: Study) -> Iterator[Finding]:
    """A class that fills so little of the images that training may end with empty masks, where nothing is done about it."""
    if study.sparse_loss:
        return
    for facts in sites:
        volumes = any(one.case.volume for one in facts.cases)
        if study.volume.foreground_share if volumes else study.foreground_share:
            continue
        labels = study.labels_of(facts.name)
        typical = {name: _typical(facts, frozenset(labels.ids[name])) for name in labels.names}
        rare = {name: share.pixels for name, share in typical.items() if share and share.pixels < _SPARSE}
        if rare:
            key = "data.volume.foreground_share" if volumes else "data.foreground_share"
            yield Finding(
                facts.name,
                "sparse class",
                f"the class {', '.join(f'{name!r} fills {_percent(share)}' for name, share in rare.items())} of the masks that have it, so "
                f"that training may end with empty masks; set training.loss: focal_tversky, or {key} such as 0.5",
            )


def partly_given_spacing(sites: Sequence[SiteFacts], study: Study) -> Iterator[Finding]:
    """Spacing that is given for some cases of a site only, or that differs by a factor as of other units."""
    del study
    for facts in sites:
        read = [one for one in facts.cases if one.size is not None]  # of others it is not known what their files say
        given = [one for one in read if one.spacing_mm is not None]
        without = [one for one in read if one.spacing_mm is None]
        if given and without:
            yield Finding(
                facts.name,
                "spacing partly",
                f"no spacing, where {len(given)} other case(s) have one: distances would be in mm for some cases and in pixels for others; "
                "give it for every case or for none",
                _ids(without),
            )
        values = [value for one in given for value in (one.spacing_mm or ())[-2:]]
        if values and max(values) >= _SPACING_FACTOR * min(values):
            far = max(given, key=lambda one: max((one.spacing_mm or ())[-2:]))
            yield Finding(
                facts.name,
                "spacing partly",
                f"the spacings of the site go from {min(values):g} to {max(values):g} mm: is one in another unit? Write all in mm",
                (far.case.id,),
            )


def unlisted(sites: Sequence[SiteFacts], study: Study) -> Iterator[Finding]:
    """Files that the manifest does not list, and pictures of kinds that are not read."""
    del study
    for facts in sites:
        if facts.unlisted:
            yield Finding(
                facts.name,
                "unlisted files",
                f"{MANIFEST} does not list {len(facts.unlisted)} file(s) of its folder ({_some(facts.unlisted)}), which are left out; add "
                "them to it, or take them out",
            )
        if facts.unread:
            yield Finding(
                facts.name,
                "unread files",
                f"{facts.unread[0]!r} is left out ({len(facts.unread)} such file(s)); only {READABLE} are read: save it as one of these "
                "(masks not as JPEG), or take it out",
            )


def empty_patients(sites: Sequence[SiteFacts], study: Study) -> Iterator[Finding]:
    """Lines of a manifest without a patient, each of which becomes a patient of its own."""
    del study
    for facts in sites:
        empty = [one for one in facts.cases if facts.manifest and one.case.patient_source == "name"]
        if empty:
            yield Finding(
                facts.name,
                "empty patients",
                f"no patient in {MANIFEST}, so that each such case is a patient of its own; give the patient (the case's own name where "
                "that is meant)",
                _ids(empty),
            )


def no_validation(sites: Sequence[SiteFacts], study: Study) -> Iterator[Finding]:
    """A site that is split and has no validation case."""
    for facts in sites:
        sides = {one.case.split for one in facts.cases}
        if study.validation and sides - {None} and "val" not in sides:
            yield Finding(
                facts.name,
                "no validation case",
                "has no validation case, so that no model can be chosen and no fall be seen there; give at least one patient the split "
                "'val', or add patients",
            )


def unicode_twins(sites: Sequence[SiteFacts], study: Study) -> Iterator[Finding]:
    """Names that look alike and differ in how their accents are written (NFC, NFD), as copies from a Mac do."""
    del study
    for facts in sites:
        cases = [one.case for one in facts.cases]
        patients = {case.patient for case in cases if case.patient != case.id}
        for what, names in (("case", {case.id for case in cases}), ("patient", patients)):
            twins = [name for group in _by_spelling(names).values() if len(group) > 1 for name in sorted(group)]
            if twins:
                yield Finding(
                    facts.name,
                    "unicode twins",
                    f"{what} names that look alike and differ only in how their accents are written (NFC and NFD): "
                    f"{', '.join(map(ascii, twins[:2]))}, so that one {what} counts as two; keep one of them, or write both alike",
                    tuple(twins) if what == "case" else (),
                )
        masks = {name.rsplit(".", 1)[0] for name in facts.orphans}
        apart = [group for group in _by_spelling({*masks, *(case.id for case in cases)}).values() if len(group) > 1]
        apart = [group for group in apart if group & masks]
        if apart:
            yield Finding(
                facts.name,
                "unicode twins",
                "the names of image and mask look alike and differ only in how their accents are written (NFC and NFD); write both alike",
                tuple(sorted(min(group) for group in apart)),
            )


_LOOKS: Final[tuple[Callable[[Sequence[SiteFacts], Study], Iterable[Finding]], ...]] = (
    small_range,
    pattern_partly,
    tile_names,
    equal_pictures,
    equal_masks,
    exif_masks,
    absent_class,
    foreground_share,
    sparse_class,
    partly_given_spacing,
    unlisted,
    empty_patients,
    no_validation,
    unicode_twins,
)


@dataclass(frozen=True)
class _Share:
    """The median share of a class among the masks of a site that have it."""

    pixels: float
    edge: float


def _typical(facts: SiteFacts, ids: frozenset[int]) -> _Share | None:
    having = [one for one in facts.cases if one.share(ids)]
    if not having:
        return None
    edges = median(one.share(ids, edge=True) or 0.0 for one in having)
    return _Share(median(one.share(ids) or 0.0 for one in having), edges)


def _looks_inverted(here: _Share, others: Sequence[float]) -> bool:
    if here.pixels <= 0.5 or here.edge <= 0.5:
        return False
    if not others:
        return here.pixels > 0.8 and here.edge > 0.95
    own, there = _log_odds(here.pixels), _log_odds(median(others))
    # The log odds of what is not the class are minus those of the class.
    return abs(own - there) > _INVERTED and abs(-own - there) < abs(own - there)


def _log_odds(share: float) -> float:
    inside = min(max(share, 1e-6), 1 - 1e-6)
    return math.log(inside / (1 - inside))


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %"


def _how_equal(group: Sequence[CaseFacts]) -> str:
    cases = [one.case for one in group]
    if len({case.site for case in cases}) > 1:
        return "sites"
    return "patients" if len({case.patient for case in cases}) > 1 else "names"


def _equal_text(groups: Sequence[Sequence[CaseFacts]], how: str, *, leak: bool) -> str:
    first, second = _two_of(groups[0], leak=leak)
    text = f"equal pictures under two {how}: "
    text += (
        f"{first.case.id!r} ({_where(first, how)}) and {second.case.id!r} ({_where(second, how)}) have the same content"
    )
    if len(groups) > 1:
        text += f" ({len(groups)} such groups)"
    if leak:
        return (
            f"{text}, and they lie on two sides of the split, so that scores would measure memory; keep one of them, or give both the \
same patient{' in one part' if how != 'sites' else ' at one site'}"
        )
    remedy = {
        "names": "they count twice; keep one of them",
        "patients": "they can come to lie on two sides of a split; keep one of them, or give both the same patient",
        "sites": "they can come to lie on two sides of a split, and count twice; keep them at one site",
    }[how]
    return f"{text}; {remedy}"


def _two_of(group: Sequence[CaseFacts], *, leak: bool) -> tuple[CaseFacts, CaseFacts]:
    """The first of a group and the next that differs in what makes the finding."""
    first = next(one for one in group if not leak or one.case.split not in (None, "unused"))
    others = [one for one in group if one is not first]
    apart = [one for one in others if one.case.split not in (None, "unused", first.case.split)] if leak else []
    apart += [one for one in others if (one.case.site, one.case.patient) != (first.case.site, first.case.patient)]
    return first, (apart or others)[0]


def _where(one: CaseFacts, how: str) -> str:
    side: Split | None = one.case.split
    place = {"sites": f"site {one.case.site!r}", "patients": f"patient {one.case.patient!r}"}.get(
        how, f"file {one.case.image.name!r}"
    )
    return f"{place}, {side}" if side else place


def _pair_ids(groups: Sequence[Sequence[CaseFacts]]) -> tuple[str, ...]:
    site = groups[0][0].case.site
    return tuple(dict.fromkeys(one.case.id for group in groups for one in group if one.case.site == site))


def _is_turned_alone(one: CaseFacts) -> bool:
    if one.image is None or one.mask is None or one.problems:
        return False
    # A mask of another size was drawn on the turned image, or is refused for its size.
    return one.image.orientation in range(2, 9) and one.mask.orientation == 1 and one.image.size == one.mask.size


def _by_source(names: Iterable[str], ending: re.Pattern[str]) -> dict[str, list[str]]:
    """Names by what is left without the ending; sources with two names or more."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        source = ending.sub("", name)
        if source not in ("", name):
            groups[source].append(name)
    return {source: cases for source, cases in groups.items() if len(cases) > 1}


def _by_spelling(names: Iterable[str]) -> Mapping[str, set[str]]:
    groups: dict[str, set[str]] = defaultdict(set)
    for name in names:
        groups[unicodedata.normalize("NFC", name)].add(name)
    return groups


def _ids(cases: Iterable[CaseFacts]) -> tuple[str, ...]:
    return tuple(one.case.id for one in cases)


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:_SHOWN])) + (" and others" if len(names) > _SHOWN else "")
