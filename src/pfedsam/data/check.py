"""Everything that is wrong with a site's data, at once: a folder is mended in one go instead of error by error."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from pfedsam.core.errors import DataError
from pfedsam.data.about import about
from pfedsam.data.images import ImageOptions
from pfedsam.data.labels import BACKGROUND, LabelMap
from pfedsam.data.loader import check_sizes, load_ids, load_image
from pfedsam.data.manifest import READABLE, SPLITS, Case, Site, orphan_masks, pattern_is_idle, unread_pictures
from pfedsam.data.split import split_problems
from pfedsam.data.volume_case import open_case, open_case_mask
from pfedsam.data.volume_options import VolumeOptions


@dataclass(frozen=True)
class SiteReport:
    """What a site has, and what is wrong with it."""

    site: str
    cases: int
    patients: int
    parts: Mapping[str, int]
    """Part of the split -> cases; empty before a split."""
    sizes: Mapping[tuple[int, ...], int]
    """(H, W), or (D, H, W) of volumes -> images."""
    ids: Mapping[int, int]
    """Id in the mask files -> cases that have it."""
    classes: Mapping[str, int]
    """Class -> cases that have it, 0 included."""
    problems: tuple[str, ...]
    """One message each, with site, case and remedy; empty where all is well."""
    warnings: tuple[str, ...] = ()
    """What may be wrong or meant so, in the same form."""


_NAMED = 20
"""Problems that an error names one by one."""


@dataclass
class _Seen:
    """What looking at one case found."""

    size: tuple[int, ...] | None
    ids: frozenset[int]
    problems: list[str]


def check_site(
    site: Site,
    labels: LabelMap,
    image: ImageOptions | None = None,
    volume: VolumeOptions | None = None,
    *,
    patient_pattern: str | None = None,
) -> SiteReport:
    """Reads every file of the site and reports what it found; a bad case does not end it.

    Args:
        site: As read with `masks_required=False`, so that every missing mask is named.
        labels: What the ids in the masks mean.
        image: How the images would be read.
        volume: How volumes would be read; of these only headers and masks are decoded.
        patient_pattern: What the site was read with; a pattern that matches nothing is a problem.
    """
    seen = [_look(case, labels, image or ImageOptions(), volume or VolumeOptions()) for case in site.cases]
    problems = [] if site.cases else [f"site {site.name!r}: has no cases; add images and masks"]
    problems += [problem for one in seen for problem in one.problems]
    problems += [
        f"site {site.name!r}: mask {name!r} has no image; name it like its image in images/, or take it out"
        for name in orphan_masks(site)
    ]
    if site.cases and pattern_is_idle(site, patient_pattern):
        problems.append(
            f"site {site.name!r}: patient_pattern {patient_pattern!r} matches none of its {len(site.cases)} file names, such "
            f"as {site.cases[0].id!r} (the ending left out), so that every case would be a patient; correct or remove it, or "
            r"let it match the names of every site: '^(.+?)(_t[0-9])?$' takes those with and without the ending _t0"
        )
    ids = Counter(value for one in seen for value in one.ids)
    return SiteReport(
        site=site.name,
        cases=len(site.cases),
        patients=len(site.patients()),
        parts={split: len(site.of(split)) for split in SPLITS if site.of(split)},
        sizes=dict(Counter(one.size for one in seen if one.size is not None)),
        ids=dict(sorted(ids.items())),
        classes={name: sum(not one.ids.isdisjoint(labels.ids[name]) for one in seen) for name in labels.names},
        problems=(*problems, *split_problems(site)),
        warnings=(*_left_out(site), *_blank(site, labels, set(ids))),
    )


def refuse_problems(
    sites: Iterable[Site], labels: LabelMap, image: ImageOptions | None = None, volume: VolumeOptions | None = None
) -> None:
    """Lets only sites pass whose files are all sound; arguments as of `check_site`.

    Raises:
        DataError: they are not; the first problems are named.
    """
    problems = [problem for site in sites for problem in check_site(site, labels, image, volume).problems]
    if problems:
        more = len(problems) - _NAMED
        ending = f"\n... and {more} more; `pfedsam data check` lists them all." if more > 0 else ""
        raise DataError(f"The data has {len(problems)} problem(s):\n" + "\n".join(problems[:_NAMED]) + ending)


def _left_out(site: Site) -> tuple[str, ...]:
    unread = unread_pictures(site)
    if not unread:
        return ()
    return (
        f"site {site.name!r}: {unread[0]!r} is left out ({len(unread)} such file(s)); only {READABLE} are read: "
        "save it as one of these (masks not as JPEG), or take it out",
    )


def _blank(site: Site, labels: LabelMap, ids: set[int]) -> tuple[str, ...]:
    if not ids or not ids <= set(labels.ids[BACKGROUND]):
        return ()
    return (
        f"site {site.name!r}: its masks hold background alone, so nothing can be learnt or scored there; "
        "if that is not meant, export them again with the ids of data.classes",
    )


def _look(case: Case, labels: LabelMap, options: ImageOptions, volume: VolumeOptions) -> _Seen:
    seen = _look_at_volume(case, options, volume) if case.volume else _look_at_picture(case, options)
    unknown = labels.unknown(seen.ids)
    if unknown:
        seen.problems.append(f"site {case.site!r}, case {case.id!r}: {labels.complaint(unknown)}")
    return seen


def _look_at_volume(case: Case, image: ImageOptions, options: VolumeOptions) -> _Seen:
    """Headers of image and mask, and the ids in the mask, one slice at a time."""
    seen = _Seen(None, frozenset(), [])
    try:
        volume = open_case(case, image, options)
        seen.size = volume.shape
        mask = open_case_mask(case, volume, options)
        with about(case):
            for ids in volume.all_ids(mask):
                seen.ids |= frozenset(np.unique(ids).tolist())
    except DataError as exc:
        seen.problems.append(str(exc))
    return seen


def _look_at_picture(case: Case, options: ImageOptions) -> _Seen:
    seen = _Seen(None, frozenset(), [])
    try:
        height, width = load_image(case, options).shape[:2]
        seen.size = height, width
    except DataError as exc:
        seen.problems.append(str(exc))
    try:
        mask = load_ids(case, max_megapixels=options.max_megapixels)
        seen.ids = frozenset(np.unique(mask).tolist())
        if seen.size is not None:
            check_sizes(case, seen.size, mask.shape)
    except DataError as exc:
        seen.problems.append(str(exc))
    return seen
