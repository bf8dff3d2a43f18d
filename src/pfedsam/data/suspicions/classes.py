"""Checks of the classes in the masks: ids in palettes, absent or very small classes, and shares of pixels that differ between sites."""

import math
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import median
from typing import Final

from pfedsam.core.text import percent, some_of
from pfedsam.data.facts import CaseFacts, SiteFacts
from pfedsam.data.images import Colour
from pfedsam.data.labels import BACKGROUND, LabelMap
from pfedsam.data.manifest_lines import SPLITS
from pfedsam.data.palettes import other_colours
from pfedsam.data.suspicions.finding import Finding, Study, case_ids

_FAR_SHARE: Final = 4.0
"""Distance in log odds from which two shares of a class are far apart: a factor of 55 in the odds."""
_INVERTED: Final = 1.0
"""Distance in log odds from which a share is far from that of other sites if the masks look inverted, that is, if the class fills the
edges of the images and the share of its complement is nearer to that of other sites."""
_INVERTED_EDGE: Final = 0.95
"""Share of the pixels on the edges of a mask from which a class may be the background of an inverted mask."""
_SPARSE: Final = 0.005
"""Share of the pixels below which training easily loses a class."""


def renumbered_palette(facts: SiteFacts, _: Study) -> Iterator[Finding]:
    """Masks with palettes that give one id several colours; an error if one colour also has different ids."""
    cases = [one for one in facts.cases if one.mask.colours]
    other = other_colours([one.mask.colours for one in cases])
    if other is not None:
        text, found = str(other), case_ids(cases[place] for place in other.masks)
        yield Finding(facts.name, "palette colours", text, found, error=other.renumbered)


def colours_of_other_classes(sites: Sequence[SiteFacts], study: Study) -> Iterator[Finding]:
    """Sites whose palettes give a colour other ids than those of another site, so that it means another class.

    A colour that has one id at both sites only repeats the id, and greys often do.
    """
    for here, there in combinations(sites, 2):
        ours, theirs = _ids_by_colour(here), _ids_by_colour(there)
        for colour in sorted(ours.keys() & theirs.keys()):
            classes = [
                _classes_of(ids[colour], study.labels_of(facts.name)) for facts, ids in ((here, ours), (there, theirs))
            ]
            if ours[colour].isdisjoint(theirs[colour]) and classes[0].isdisjoint(classes[1]):
                yield Finding(
                    here.name,
                    "palette colours",
                    f"the colour (R, G, B) {colour} means {_listed(classes[0])} in the palettes of its masks (id "
                    f"{some_of(sorted(ours[colour]), 3)}) and {_listed(classes[1])} in those of the site {there.name!r} (id "
                    f"{some_of(sorted(theirs[colour]), 3)}), so that the sites probably number the classes differently; give one of them "
                    "ids of its own (data.sites.<name>.labels), or save the masks with the same ids",
                )
                break


def _ids_by_colour(facts: SiteFacts) -> dict[Colour, set[int]]:
    """The ids of each colour, except greys, in the palettes of a site's masks."""
    found = defaultdict[Colour, set[int]](set)
    for one in facts.cases:
        for value, colour in one.mask.colours.items():
            if len(set(colour)) > 1:
                found[colour].add(value)
    return found


def _classes_of(ids: Collection[int], labels: LabelMap) -> set[str]:
    """The names of the classes, or of the background, that ids belong to."""
    return {name for name, values in labels.ids.items() if not set(ids).isdisjoint(values)}


def _listed(names: Collection[str]) -> str:
    return " and ".join(map(repr, sorted(names))) or "no class"


def absent_class(facts: SiteFacts, study: Study) -> Iterator[Finding]:
    """Classes that no mask of a site contains."""
    labels = study.labels_of(facts.name)
    seen: set[int] = set().union(*(one.mask.pixels for one in facts.cases))
    absent = [name for name in labels.annotated_names if seen.isdisjoint(labels.ids[name])]
    if not seen or not absent:
        return
    if seen <= set(labels.ids[BACKGROUND]):
        yield Finding(
            facts.name,
            "absent class",
            "its masks hold background alone, so nothing can be learnt or scored there; if that is not meant, export them again with "
            "the ids of data.classes",
        )
    else:
        ids = ", ".join(str(list(labels.ids[name])) for name in absent)
        yield Finding(
            facts.name,
            "absent class",
            f"none of its {sum(one.labelled for one in facts.cases)} masks has the class {', '.join(map(repr, absent))} (ids {ids}), "
            "so that the class cannot be learnt or scored there and counts as background; if the site has it under another id, correct "
            f"the masks or {labels.key}; if it does not annotate the class, name it under not_annotated of the site",
        )


def absent_from_training(facts: SiteFacts, study: Study) -> Iterator[Finding]:
    """Classes that some mask of a site contains and no mask of its training part; a site without a training case is for testing only."""
    labels = study.labels_of(facts.name)
    trained: set[int] = set().union(*(one.mask.pixels for one in facts.cases if one.case.split == "train"))
    absent = []
    for name in labels.annotated_names:
        having = {one.case.split for one in facts.cases if not set(labels.ids[name]).isdisjoint(one.mask.pixels)}
        if trained and having - {None} and "train" not in having:
            absent.append(f"{name!r} (only in {', '.join(part for part in SPLITS if part in having)})")
    if absent:
        yield Finding(
            facts.name,
            "absent from training",
            f"no training case has the class {', '.join(absent)}, so that the site cannot learn it; give a patient with it the split "
            "'train' in the manifest, or draw another split by another seed",
        )


def foreground_share(sites: Sequence[SiteFacts], study: Study) -> Iterator[Finding]:
    """A class whose share of the pixels is far from that at the other sites, above all where the masks look inverted."""
    typical = {facts.name: _typical_shares(facts, study.labels_of(facts.name)) for facts in sites}
    for name in study.labels.names:
        yield from _compare_shares(name, {site: shares[name] for site, shares in typical.items() if name in shares})


def _compare_shares(name: str, shares: Mapping[str, "_Share"]) -> Iterator[Finding]:
    """A finding for each site whose share of the class `name` differs much from the median of the other sites."""
    for site, share in shares.items():
        others = [other.pixels for key, other in shares.items() if key != site]
        difference = _difference(share, others)
        if difference:
            compared = f" (other sites: {percent(median(others))})" if others else ""
            text = f"the class {name!r} fills {percent(share.pixels)} of the masks{compared}{difference}"
            yield Finding(site, "foreground share", text)


def partly_inverted(facts: SiteFacts, study: Study) -> Iterator[Finding]:
    """Masks of a site that look inverted, where the class fills less than half of every other mask."""
    labels = study.labels_of(facts.name)
    for name in labels.names:
        ids = frozenset(labels.ids[name])
        shares = {one.case.id: share for one in facts.cases if (share := one.mask.share(ids))}
        full = [one.case.id for one in facts.cases if shares.get(one.case.id, 0) > 0.5 and _fills_edges(one, ids)]
        others = [share for case, share in shares.items() if case not in full]
        inverted = [case for case in full if others and min(others) <= 1 - shares[case] <= max(others) < 0.5]
        if inverted:
            yield Finding(
                facts.name,
                "partly inverted",
                f"the class {name!r} fills more than half of the mask and nearly all of the pixels on its edges, where it fills "
                f"{percent(median(others))} of the other masks of the site: they look inverted, as from a program that draws 0 as white; "
                "invert these masks",
                tuple(inverted),
            )


def _fills_edges(one: CaseFacts, ids: frozenset[int]) -> bool:
    """Whether the class with these ids fills nearly all of the pixels on the edges of a mask."""
    return (one.mask.share(ids, edge=True) or 0.0) > _INVERTED_EDGE


def sparse_class(facts: SiteFacts, study: Study) -> Iterator[Finding]:
    """A class that fills so little of the images that training may end with empty masks, and no option that counteracts this."""
    option, sampled = _foreground_sampling(facts, study)
    if study.sparse_loss or sampled:
        return
    typical = _typical_shares(facts, study.labels_of(facts.name))
    rare = [f"{name!r} fills {percent(share.pixels)}" for name, share in typical.items() if share.pixels < _SPARSE]
    if rare:
        yield Finding(
            facts.name,
            "sparse class",
            f"the class {', '.join(rare)} of the masks that have it, so that training may end with empty masks; set "
            f"training.loss: focal_tversky, or {option} such as 0.5",
        )


def _foreground_sampling(facts: SiteFacts, study: Study) -> tuple[str, float]:
    """The option that sets the share of training examples with foreground at a site of volumes or of pictures, and its value."""
    if any(one.case.volume for one in facts.cases):
        return "data.volume.foreground_share", study.volume.foreground_share
    return "data.foreground_share", study.foreground_share


@dataclass(frozen=True)
class _Share:
    """The median share of a class in the masks of a site that contain it."""

    pixels: float
    """Of all pixels of a mask."""
    edge: float
    """Of the pixels on the outermost rows and columns."""


def _typical_shares(facts: SiteFacts, labels: LabelMap) -> dict[str, _Share]:
    """The share of each class that some mask of the site contains."""
    shares = {}
    for name in labels.names:
        ids = frozenset(labels.ids[name])
        having = [(share, one) for one in facts.cases if (share := one.mask.share(ids))]
        if having:
            edges = [one.mask.share(ids, edge=True) or 0.0 for _, one in having]
            shares[name] = _Share(median(share for share, _ in having), median(edges))
    return shares


def _difference(here: _Share, others: Sequence[float]) -> str | None:
    """What is suspicious about a share, compared with those of the other sites, and what to do; None if nothing is."""
    if _looks_inverted(here, others):
        return " and most of the pixels on their edges: they look inverted; exchange the ids of data.classes, or invert the masks"
    if others and abs(_log_odds(here.pixels) - _log_odds(median(others))) > _FAR_SHARE:
        return "; see whether the ids of data.classes mean the same at every site"
    return None


def _looks_inverted(here: _Share, others: Sequence[float]) -> bool:
    if here.pixels <= 0.5 or here.edge <= 0.5:
        return False
    if not others:
        return here.pixels > 0.8 and here.edge > _INVERTED_EDGE
    own, there = _log_odds(here.pixels), _log_odds(median(others))
    # The log odds of the complement of the class are minus those of the class.
    return abs(own - there) > _INVERTED and abs(-own - there) < abs(own - there)


def _log_odds(share: float) -> float:
    inside = min(max(share, 1e-6), 1 - 1e-6)
    return math.log(inside / (1 - inside))
