"""Checks for equal content under different names: equal images, different images with equal masks, and one patient under several names."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from typing import Final, Literal, TypeAlias

from pfedsam.data.facts import CaseFacts, SiteFacts
from pfedsam.data.suspicions.finding import Finding, Study, case_ids

_Group: TypeAlias = Sequence[CaseFacts]
"""Two or more cases of equal content, in the order of the sites."""
_Level: TypeAlias = Literal["sites", "patients", "names"]
"""The highest level at which the cases of a group differ."""
_NO_PART: Final = frozenset({None, "unused"})
"""Parts of the split that are neither trained on nor scored."""
_REMEDIES: Final[dict[_Level, str]] = {
    "names": "they count twice; keep one of them",
    "patients": "they can end up in two parts of a split; keep one of them, or give both the same patient",
    "sites": "they can end up in two parts of a split, and count twice; keep them at one site",
}
_MASK_REMEDIES: Final[dict[_Level, str]] = {
    "patients": "who can end up in two parts of the split; name the sequences of a case by data.volume.channels, or give them the same "
    "patient",
    "sites": "who can end up in two parts of the split, because every site is split alone; keep them at one site",
}
_PICTURE_REMEDIES: Final[dict[_Level, str]] = {
    **_MASK_REMEDIES,
    "patients": "who can end up in two parts of the split: if these are sequences of one scan, or one picture that was changed, give them "
    "the same patient; otherwise a mask was copied, and has to be drawn",
}


def equal_images(sites: Sequence[SiteFacts], _: Study) -> Iterator[Finding]:
    """Equal pictures or volumes under two names, patients or sites; an error where they are in two parts of the split."""
    similar: dict[tuple[str, _Level, bool, bool], list[_Group]] = defaultdict(list)
    for group in _equal_cases(sites, lambda one: one.content):
        parts = {one.case.split for one in group} - _NO_PART
        first = group[0].case
        similar[first.site, _level(group), len(parts) > 1, first.volume].append(group)
    for (site, level, leak, _volumes), groups in similar.items():
        text = _leak_text(groups, level) if leak else _equal_text(groups, level)
        yield Finding(site, "equal images", text, _cases_at_first_site(groups), error=leak)


def equal_masks(sites: Sequence[SiteFacts], _: Study) -> Iterator[Finding]:
    """Images of two patients with equal masks: sequences of one patient that were listed as patients, or changed copies of one image.

    Copies of images that are equal themselves, and cases that name one mask, are other findings.
    """
    similar: dict[tuple[str, _Level, bool], list[_Group]] = defaultdict(list)
    for group in _equal_cases(sites, lambda one: one.mask.content):
        images, masks = {one.content for one in group}, {one.case.mask for one in group}
        if _level(group) != "names" and len(images) > 1 and len(masks) > 1:
            similar[group[0].case.site, _level(group), group[0].case.volume].append(group)
    for (site, level, volume), groups in similar.items():
        first, second = _differing_pair(groups[0])
        remedy = _MASK_REMEDIES[level] if volume else _PICTURE_REMEDIES[level]
        yield Finding(
            site,
            "equal masks",
            f"the masks of {first.case.id!r} (site {first.case.site!r}, patient {first.case.patient!r}) and {second.case.id!r} (site "
            f"{second.case.site!r}, patient {second.case.patient!r}) are equal {'voxel by voxel' if volume else 'pixel by pixel'}"
            f"{_more(groups)}, so that they are probably of one patient, {remedy}",
            _cases_at_first_site(groups),
        )


def one_patient(facts: SiteFacts, _: Study) -> Iterator[Finding]:
    """DICOM cases of one PatientID that count as several patients.

    Where all cases of a site have the same PatientID, it was written by an anonymisation program and does not identify a patient.
    """
    by_digest = _by_patient_digest(facts)
    several = [group for group in by_digest.values() if len({one.case.patient for one in group}) > 1]
    if len(by_digest) > 1 and several:
        first, second = _differing_pair(several[0])
        yield Finding(
            facts.name,
            "one patient under several names",
            f"{first.case.id!r} (patient {first.case.patient!r}) and {second.case.id!r} (patient {second.case.patient!r}) have the same "
            f"PatientID in their DICOM files{_more(several)}, so that one patient can end up in two parts of the split; give both the same "
            "patient, by the manifest or by data.patient_pattern",
            case_ids([one for group in several for one in group]),
        )


def one_patient_at_sites(sites: Sequence[SiteFacts], _: Study) -> Iterator[Finding]:
    """DICOM cases of one PatientID at two sites, such as those of two scanners of one hospital.

    Where another site has every PatientID of a site, these are probably numbers that an anonymisation program gave at each site.
    """
    for here, there in combinations(sites, 2):
        ours, theirs = _by_patient_digest(here), _by_patient_digest(there)
        shared = ours.keys() & theirs.keys()
        if shared and shared < ours.keys() and shared < theirs.keys():
            same = [one for digest, cases in ours.items() if digest in shared for one in cases]
            other = theirs[str(same[0].patient_digest)][0]
            yield Finding(
                here.name,
                "one patient at two sites",
                f"{len(shared)} PatientID(s) of the DICOM files are also those of files at the site {there.name!r}, such as that of "
                f"{same[0].case.id!r}, which {other.case.id!r} has there: if that is one patient, the training part of one site and the "
                "test part of the other can both have this patient; keep all cases of a patient at one site",
                case_ids(same),
            )


def _by_patient_digest(facts: SiteFacts) -> dict[str, list[CaseFacts]]:
    """The cases of a site by the digest of the PatientID in their DICOM files; without those that have none."""
    found: dict[str, list[CaseFacts]] = defaultdict(list)
    for one in facts.cases:
        if one.patient_digest is not None:
            found[one.patient_digest].append(one)
    return found


def _equal_cases(sites: Sequence[SiteFacts], digest_of: Callable[[CaseFacts], str | None]) -> list[_Group]:
    """The groups of cases, of all sites, that have the same digest; cases without a digest are left out."""
    groups: dict[str, list[CaseFacts]] = defaultdict(list)
    for facts in sites:
        for one in facts.cases:
            digest = digest_of(one)
            if digest is not None:
                groups[digest].append(one)
    return [group for group in groups.values() if len(group) > 1]


def _level(group: _Group) -> _Level:
    if len({one.case.site for one in group}) > 1:
        return "sites"
    return "patients" if len({one.case.patient for one in group}) > 1 else "names"


def _equal_text(groups: Sequence[_Group], level: _Level) -> str:
    return f"{_same_content(_differing_pair(groups[0]), level)}{_more(groups)}; {_REMEDIES[level]}"


def _leak_text(groups: Sequence[_Group], level: _Level) -> str:
    remedy = "at one site" if level == "sites" else "in one part"
    return (
        f"{_same_content(_leaking_pair(groups[0]), level)}{_more(groups)}, and they are in two parts of the split, so that scores would "
        f"measure memorisation; keep one of them, or give both the same patient {remedy}"
    )


def _same_content(pair: tuple[CaseFacts, CaseFacts], level: _Level) -> str:
    first, second = (f"{one.case.id!r} ({_origin(one, level)})" for one in pair)
    return f"equal {'volumes' if pair[0].case.volume else 'pictures'} under two {level}: {first} and {second} have the same content"


def _more(groups: Sequence[_Group]) -> str:
    return f" ({len(groups)} such groups)" if len(groups) > 1 else ""


def _leaking_pair(group: _Group) -> tuple[CaseFacts, CaseFacts]:
    """The first two cases of a group that are in different parts of the split."""
    first, *others = (one for one in group if one.case.split not in _NO_PART)
    return first, next(one for one in others if one.case.split != first.case.split)


def _differing_pair(group: _Group) -> tuple[CaseFacts, CaseFacts]:
    """The first case of a group and the next of another site; if there is none, the next of another patient, or else the next case."""
    first, *others = group
    elsewhere = [one for one in others if one.case.site != first.case.site]
    of_others = [one for one in others if one.case.patient != first.case.patient]
    return first, (elsewhere or of_others or others)[0]


def _origin(one: CaseFacts, level: _Level) -> str:
    """Site, patient or file of a case, with its part of the split."""
    origins: dict[_Level, str] = {
        "sites": f"site {one.case.site!r}",
        "patients": f"patient {one.case.patient!r}",
        "names": f"file {one.case.image.name!r}",
    }
    return f"{origins[level]}, {one.case.split}" if one.case.split else origins[level]


def _cases_at_first_site(groups: Sequence[_Group]) -> tuple[str, ...]:
    """Ids of the cases of all groups that are at the site of the very first case; each id once."""
    site = groups[0][0].case.site
    return tuple(dict.fromkeys(one.case.id for group in groups for one in group if one.case.site == site))
