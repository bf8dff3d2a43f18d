"""Checks of how the masks of volumes were read: names of segments and structures, and what was changed or left out."""

import re
from collections import defaultdict
from collections.abc import Iterator
from typing import Final

from pfedsam.data.facts import CaseFacts, SiteFacts
from pfedsam.data.readers.masks import LISTED_BY
from pfedsam.data.suspicions.finding import Finding, Study, case_ids

_NUMBER: Final = re.compile(r"-?\d+(\.\d+)?(e-?\d+)?")


def misspelt_names(facts: SiteFacts, study: Study) -> Iterator[Finding]:
    """Names of `data.volume.segments` that some files lack, while these have a part that is not named there: probably the same part.

    A part that also occurs beside the wanted one, such as the outline of the body, is not the same. Names from files are not shown.
    """
    labelled = [one for one in facts.cases if one.labelled]
    names = defaultdict[int, list[str]](list)
    for name, value in study.volume.segments.items():
        names[value].append(name)
    for wanted in names.values():
        without = [one for one in labelled if wanted[0] in one.mask.part_names.absent]
        beside = frozenset[str]().union(*(one.mask.part_names.others for one in labelled if one not in without))
        suspicious = [one for one in without if one.mask.part_names.others - beside]
        if suspicious:
            yield Finding(
                facts.name,
                "segment names",
                f"no part of the mask has the name {' or '.join(map(repr, wanted))}, and another part has a name that data.volume.segments "
                "does not give, so that it is left out and counts as background; if it is the same structure under another spelling, give "
                f"that name there with the same id ({LISTED_BY})",
                case_ids(suspicious),
            )


def mask_notes(facts: SiteFacts, _: Study) -> Iterator[Finding]:
    """What was changed or left out when masks were brought to the grid of their volumes; notes that differ in numbers are one finding."""
    groups = defaultdict[str, list[tuple[str, CaseFacts]]](list)
    for one in facts.cases:
        for note in one.mask.notes:
            groups[_NUMBER.sub("*", note)].append((note, one))
    for found in groups.values():
        texts, cases = zip(*found, strict=True)
        numbers = "" if len(set(texts)) == 1 else f" (the numbers are those of {cases[0].case.id!r})"
        yield Finding(facts.name, "mask notes", f"{texts[0]}{numbers}", case_ids(cases))
