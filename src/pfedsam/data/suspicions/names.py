"""Checks of the names of one site: patients, file names, files that are left out, and the split."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Final

from pfedsam.core.text import SHOWN, some_of
from pfedsam.data.facts import SiteFacts
from pfedsam.data.manifest import PARTS_REMEDY, Case, are_parts, images_of_no_case
from pfedsam.data.manifest_lines import MANIFEST, READABLE
from pfedsam.data.suspicions.finding import Finding, Study, case_ids

_LISTED: Final = 20
"""Number of files that are left out and that a message names."""
_PERSON: Final = re.compile(r"(sub-[a-z0-9]+)_|(TCGA-\w\w-\w{4})-", re.IGNORECASE)
"""Beginnings of names that a standard defines as the person: the subject of BIDS, as in sub-01_ses-02_T2w, and the participant in a TCGA
barcode."""
_TILE: Final = re.compile(
    r"(.+?)(?:[ _.\-](?:(?:t|tile|patch|crop|part|slice|frame|z|roi)[ _\-]?\d+|[xrc]\d+[ _\-]?[yrc]\d+"
    r"|(?:aug(?:mented)?|orig(?:inal)?|[hv]?flip(?:ped)?|rot(?:ated?)?)[ _\-]?\d*)|[ _\-]?\[[^\]]*x=[^\]]*\]|\.rf\.[0-9a-f]{8,})$",
    re.IGNORECASE,
)
"""Endings of names that give the part of a source, such as _t3, -tile12, _x0_y512, _r0_c3, _slice07 and [x=0,y=512,w=512,h=512] (QuPath),
or a copy of it that was changed, such as _aug0, _orig, _hflip, _rot90 and .rf.0a1b2c3d (Roboflow)."""
_SIDES: Final = re.compile(
    r"(.+?)(?:[ _\-]?(?:left|right)|(?<=\d)[LR]|[ _\-](?:L|R|OD|OS)"
    r"|[ _\-](?:L|R|left|right)[ _\-]?(?:CC|MLO|ML|LM)|[ _\-](?:ED|ES))$",
    re.IGNORECASE,
)
"""Endings for the two sides of a body, such as the eyes of one person, for the views of a mammography, such as _LCC and _R_MLO, and for the
two phases of a heart."""
_NUMBERED: Final = re.compile(
    r"(.*?\d.*?)(?:(?<=\d)[ _\-]\d+"
    r"|[ _\-](?:ses|session|visit|exam|scan|study|run|tp|timepoint|im|img|image|view|fov|section)[ _\-]?\d+"
    r"|[ _\-](?:pre|post|baseline|follow[ _\-]?up[ _\-]?\d*))$",
    re.IGNORECASE,
)
"""A plain number after a number, such as p3_1, or an examination or a picture of a patient, such as _visit2, _img3 and _baseline, after
a name with a number: benign_img3 is no picture of a patient "benign"."""
_ENDINGS: Final = ((_PERSON, 1), (_TILE, 1), (_SIDES, 2), (_NUMBERED, 3))
"""Patterns whose group is the source in a name, each with the number of sources (groups of names of one source) from which names count as
those of parts."""


def pattern_partly(facts: SiteFacts, study: Study) -> Iterator[Finding]:
    """A patient pattern that matches some names of a site and not others."""
    pattern = study.pattern_of(facts.name)
    searched = [one for one in facts.cases if one.case.patient_source != "manifest"]
    missed = [one for one in searched if one.case.patient_source == "name"]
    if pattern is not None and 0 < len(missed) < len(searched):
        yield Finding(
            facts.name,
            "pattern partly",
            f"patient_pattern '{pattern}' matches {len(searched) - len(missed)} of {len(searched)} names and not "
            f"{'this one' if len(missed) == 1 else 'these'}: each becomes a patient of its own, so that pictures of one patient can "
            r"end up in two parts of the split; let it match every name (\d+ takes numbers of any length)",
            case_ids(missed),
        )


def tile_names(facts: SiteFacts, _: Study) -> Iterator[Finding]:
    """Names that look like parts of one source, where each is a patient of its own."""
    if any(one.case.patient_source == "pattern" for one in facts.cases):
        return  # `pattern_partly` reports the names that the pattern does not match
    sources = _shared_sources(facts)
    if sources:
        source, cases = next(iter(sources.items()))
        listed = any(one.case.patient_source == "manifest" for one in facts.cases)
        remedy = (
            f"correct the patients in {MANIFEST}, or empty that column and set data.patient_pattern"
            if listed
            else f"set data.patient_pattern, or give the patients in {MANIFEST}"
        )
        yield Finding(
            facts.name,
            "tile names",
            f"the names look like several pictures of one source ({len(cases)} of {source!r}, for example), and each counts as a patient "
            f"of its own, so that one source can end up in two parts of the split; {remedy}",
            tuple(chain.from_iterable(sources.values())),
        )


def _shared_sources(facts: SiteFacts) -> dict[str, list[str]]:
    """Cases without a patient, by the source in their names; empty unless most cases of the site share sources."""
    alone = [one.case.id for one in facts.cases if one.case.patient == one.case.id]
    for ending, least_sources in _ENDINGS:
        groups = _by_source(alone, ending)
        if len(groups) >= least_sources and 2 * sum(map(len, groups.values())) > len(facts.cases):
            return groups
    return {}


def _by_source(names: Iterable[str], ending: re.Pattern[str]) -> dict[str, list[str]]:
    """Names grouped by their source; groups of two names or more, of which one may be the source without an ending."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        match = ending.match(name)
        groups[match[match.lastindex or 0] if match else name].append(name)
    return {source: cases for source, cases in groups.items() if len(cases) > 1}


def unlisted(facts: SiteFacts, study: Study) -> Iterator[Finding]:
    """Files that the manifest does not list, files of formats that are not read, and images without an ending of a sequence."""
    if facts.unlisted:
        yield Finding(
            facts.name,
            "unlisted files",
            f"{MANIFEST} does not list {len(facts.unlisted)} file(s) of its folder ({_quoted(facts.unlisted, SHOWN)}), which are left out; "
            "add them to it, or take them out",
        )
    if facts.unread:
        yield Finding(
            facts.name,
            "unread files",
            f"{len(facts.unread)} file(s) or folder(s) are left out ({_quoted(facts.unread, _LISTED)}); only {READABLE} are read: save "
            "them as one of these (masks not as JPEG), unpack them, or take them out",
        )
    left = images_of_no_case(facts.site) if study.volume.channels else ()
    if left:
        yield Finding(
            facts.name,
            "unread files",
            f"{len(left)} image(s) in images/ are left out ({_quoted(left, _LISTED)}), because their names end with none of "
            f"{', '.join(map(repr, study.volume.channels))} (data.volume.channels); rename them, or take them out",
        )


def shared_masks(facts: SiteFacts, _: Study) -> Iterator[Finding]:
    """Lines of a manifest that name one mask for several images, such as a cell that was copied down; an error for several patients.

    Volumes of one patient may share a mask, because several sequences of one grid are often drawn once.
    """
    for mask, cases in _cases_by_mask(facts).items():
        patients = {case.patient for case in cases}
        if len({(case.image, case.sequences, case.series) for case in cases}) < 2:
            continue  # one image on several lines
        if len(patients) > 1 or not all(case.volume for case in cases):
            yield Finding(
                facts.name,
                "shared mask",
                f"{MANIFEST} names one mask, {mask!r}, for {len(cases)} images; name for each image its own mask (only volumes of one "
                "patient may share one)",
                tuple(case.id for case in cases),
                error=len(patients) > 1,
            )


def _cases_by_mask(facts: SiteFacts) -> dict[str, list[Case]]:
    """The cases of a manifest, without those that are unused, by the path of their mask below the site's folder."""
    found: dict[str, list[Case]] = defaultdict(list)
    for case in (one.case for one in facts.cases if facts.manifest and one.case.split != "unused"):
        if case.mask is not None:
            found[case.mask.relative_to(facts.site.folder).as_posix()].append(case)
    return found


def empty_patients(facts: SiteFacts, _: Study) -> Iterator[Finding]:
    """Lines of a manifest without a patient, each of which becomes a patient of its own."""
    empty = [one for one in facts.cases if facts.manifest and one.case.patient_source == "name"]
    if empty:
        yield Finding(
            facts.name,
            "empty patients",
            f"no patient in {MANIFEST}, so that each such case is a patient of its own; give the patient there (the case's own name where "
            "that is meant), or set data.patient_pattern, which finds the patients in the names",
            case_ids(empty),
        )


def no_validation(facts: SiteFacts, study: Study) -> Iterator[Finding]:
    """A site that is split and has no validation case."""
    parts = {one.case.split for one in facts.cases}
    if study.validation and parts - {None} and "val" not in parts:
        yield Finding(
            facts.name,
            "no validation case",
            "has no validation case, so that no model can be selected and overfitting stays unseen; give at least one patient the split "
            "'val', or add patients",
        )


def parts_as_sites(sites: Sequence[SiteFacts], _: Study) -> Iterator[Finding]:
    """Sites whose names are those of the parts of one data set."""
    names = [facts.name for facts in sites]
    if are_parts(names):
        yield Finding(names[0], "parts as sites", f"the sites {', '.join(map(repr, names))} {PARTS_REMEDY}")


def unicode_twins(facts: SiteFacts, _: Study) -> Iterator[Finding]:
    """Names of cases or patients that look alike and differ in how their accents are written (NFC or NFD), as in copies from a Mac."""
    return _twins(
        facts, "unicode twins", "look alike and differ only in how their accents are written (NFC and NFD)", _composed
    )


def letter_case_twins(facts: SiteFacts, _: Study) -> Iterator[Finding]:
    """Names of cases or patients that differ only in capital and small letters, as in lists that several people typed."""
    return _twins(facts, "letter case twins", "differ only in capital and small letters", str.casefold)


def _twins(facts: SiteFacts, finding: str, difference: str, key: Callable[[str], str]) -> Iterator[Finding]:
    """A finding where cases have names of an equal key, and one where patients have; `difference` says how such names differ."""
    cases = {one.case.id for one in facts.cases}
    patients = {one.case.patient for one in facts.cases if one.case.patient != one.case.id}
    for kind, names in (("case", cases), ("patient", patients)):
        twins = tuple(chain.from_iterable(map(sorted, _spelt_differently(names, key))))
        if twins:
            yield Finding(
                facts.name,
                finding,
                f"{kind} names that {difference}: {', '.join(map(ascii, twins[:2]))}, so that one {kind} counts as two; keep one of them, "
                "or write both alike",
                twins if kind == "case" else (),
            )


def unicode_masks(facts: SiteFacts, _: Study) -> Iterator[Finding]:
    """Masks without an image whose names look like that of a case and differ in how their accents are written."""
    masks = {name.rsplit(".", 1)[0] for name in facts.orphans}
    alike = [names for names in _spelt_differently({*masks, *case_ids(facts.cases)}, _composed) if names & masks]
    if alike:
        yield Finding(
            facts.name,
            "unicode twins",
            "the names of image and mask look alike and differ only in how their accents are written (NFC and NFD); write both alike",
            tuple(sorted(map(min, alike))),
        )


def _spelt_differently(names: Iterable[str], key: Callable[[str], str]) -> list[set[str]]:
    """The groups of names that have an equal key."""
    groups: Mapping[str, set[str]] = defaultdict(set)
    for name in names:
        groups[key(name)].add(name)
    return [spellings for spellings in groups.values() if len(spellings) > 1]


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _quoted(names: Sequence[str], most: int) -> str:
    return some_of([repr(name) for name in names], most)
