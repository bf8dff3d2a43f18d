"""Training, validation and test parts of a site: split by patient, seeded, and stored in a file.

All cases of a patient are in one part, whatever the proportions: pictures of one patient resemble each other, so that a score would
measure memorisation if they were in both training and test. Proportions are counted in cases and met as closely as the patients allow.
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import chain, count
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import Field, ValidationError, model_validator

from pfedsam.core import rng
from pfedsam.core.atomic import write_json
from pfedsam.core.errors import DataError
from pfedsam.core.files import read_regular
from pfedsam.core.log import get_logger
from pfedsam.core.options import Options, first_mistake
from pfedsam.core.text import name_cases
from pfedsam.data.manifest import Case, Site
from pfedsam.data.manifest_lines import SPLITS, Split
from pfedsam.data.readers.dicom_folders import visible_files

_SCHEMA: Final = 2
"""Version of the file. Version 2 added digests of the cases' files; files of version 1 are still read."""
_LOG = get_logger(__name__)
USED: Final[tuple[Split, ...]] = ("train", "val", "test")
"""The parts of a split whose cases are used."""
_PARTS: Final[tuple[Split, ...]] = ("train", "test", "val")  # in the order in which a few patients are assigned


class SplitOptions(Options):
    """Proportions of the parts for sites whose manifest contains no split."""

    train: float = Field(default=0.6, gt=0, le=1, description="Share of a site's cases to train on.")
    val: float = Field(default=0.1, ge=0, lt=1, description="Share of a site's cases that choose the model.")
    test: float = Field(default=0.3, ge=0, lt=1, description="Share of a site's cases that are scored at the end.")
    max_train_cases: int | None = Field(
        default=None,
        ge=1,
        description="Keep at most so many training cases a site, patient by patient (few-label studies); a smaller "
        "number keeps a subset of what a larger one keeps, and validation and test do not change.",
    )

    @model_validator(mode="after")
    def _sum(self) -> "SplitOptions":
        if abs(self.train + self.val + self.test - 1) > 1e-6:
            raise ValueError(f"train, val and test are {self.train}, {self.val} and {self.test}; they must add up to 1")
        return self


class _SplitFile(Options):
    """The content of a file: the ids of the cases in each part, and for each used case a digest of its files, if the file has digests."""

    schema_: Literal[1, 2] = Field(alias="schema")
    site: str
    train: list[str]
    val: list[str]
    test: list[str]
    unused: list[str]
    digests: dict[str, str] | None = None

    def cases(self, part: Split) -> list[str]:
        """The ids of the cases in a part."""
        found: list[str] = getattr(self, part)
        return found


def split_site(site: Site, options: SplitOptions, seed: int) -> Site:
    """The site with every case in a part; a split in the manifest is not changed.

    Patients are assigned one by one to the part that lacks most cases. Those with most cases come first; the order of equal ones is drawn
    at random from the seed and the name of the site. With three patients or more, every part with a positive proportion has a case.

    Raises:
        DataError: the manifest splits only some of the cases, or puts a patient in two parts.
    """
    if all(case.split is None for case in site.cases):
        part_of = _deal({patient: len(cases) for patient, cases in site.patients().items()}, options, site.name, seed)
        site = _assigned(site, {case.id: part_of[case.patient] for case in site.cases})
    _refuse(split_problems(site))
    return _keep(site, options.max_train_cases, seed)


def cases_for_training(number: int, options: SplitOptions) -> int:
    """The smallest number of cases whose training part has at least `number` cases, if every case is of another patient."""
    least = max(number, math.floor((number - 1) / options.train))  # a part has at most one case more than its share
    return next(total for total in count(least) if _training_cases(total, options) >= number)


def _training_cases(total: int, options: SplitOptions) -> int:
    """The size of the training part of so many cases, each of another patient; it depends on neither site nor seed."""
    parts = _deal({str(patient): 1 for patient in range(total)}, options, "any", 0)
    return list(parts.values()).count("train")


def check_no_leak(site: Site) -> None:
    """Refuse a site with a patient in two parts of the split; unused cases do not count.

    Raises:
        DataError: there is such a patient; the message names the first one and its cases.
    """
    _refuse(_leaks(site))


def split_problems(site: Site) -> list[str]:
    """What is wrong with the split that the cases already have: cases without a part, patients in two parts."""
    problems = []
    without = _without_part(site)
    if 0 < len(without) < len(site.cases):
        problems.append(
            f"site {site.name!r}, case {without[0]!r}: has no split where other cases have one "
            f"({len(without)} such cases); give every line of the manifest one of {', '.join(SPLITS)}, or none of them"
        )
    return problems + _leaks(site)


def _without_part(site: Site) -> list[str]:
    return [case.id for case in site.cases if case.split is None]


def _refuse(problems: Sequence[str]) -> None:
    if problems:
        raise DataError(problems[0])


def _leaks(site: Site) -> list[str]:
    problems = []
    for patient, cases in site.patients().items():
        first: dict[Split, Case] = {}
        for case in cases:
            if case.split is not None and case.split != "unused":
                first.setdefault(case.split, case)
        if len(first) > 1:
            found = " and ".join(f"{case.id!r} in {split}" for split, case in first.items())
            problems.append(
                f"site {site.name!r}, case {next(iter(first.values())).id!r}: patient {patient!r} is in two parts "
                f"of the split ({found}); put all cases of a patient in one part"
            )
    return problems


def write_split(path: Path, site: Site, *, digests: bool = False) -> None:
    """Write the ids of the cases in each part as JSON.

    Args:
        path: the file to write.
        site: the site, already split.
        digests: whether to write digests of the files of all used cases, so that `read_split` notices when they change.

    Raises:
        DataError: a case has no part yet, or a file cannot be read.
    """
    undecided = _without_part(site)
    if undecided:
        raise DataError(f"site {site.name!r}, case {undecided[0]!r}: has no split to write; split the site first")
    content: dict[str, Any] = {split: [case.id for case in site.of(split)] for split in SPLITS}
    if digests:
        content["digests"] = {case.id: file_digest(case) for case in _cases_of(site, USED)}
    write_json(path, {"schema": _SCHEMA, "site": site.name, **content})


def read_split(
    path: Path, site: Site, parts: Sequence[Split] = USED, *, digest: Callable[[Case], str] | None = None
) -> Site:
    """The site with its cases in the parts that are stored in a file.

    A case that is not in the file becomes unused, and a warning is logged. If the file contains digests, the files of the cases must not
    have changed.

    Args:
        path: the file, written by `write_split`.
        site: the site as it is now.
        parts: the parts that are needed; missing or changed cases of other parts are accepted.
        digest: the function that computes the digest of a case as `file_digest` does; None for that function itself.

    Raises:
        DataError: the file is no split, is that of another site, or lists a case twice; a case of the needed parts is missing or has
            changed; or a patient is in two parts.
    """
    stored = _read_file(path, site.name)
    part_of = _part_by_case(path, site, stored)
    known = {case.id for case in site.cases}
    needed = chain.from_iterable(map(stored.cases, parts))
    _refuse_removed(path, site, [case for case in needed if case not in known])
    _warn_of_new(path, site, sorted(known - part_of.keys()))
    site = _assigned(site, {case: part_of.get(case, "unused") for case in known})
    check_no_leak(site)
    _refuse_changed(path, site, _cases_of(site, parts), stored.digests, digest or file_digest)
    return site


def refuse_changed_files(path: Path, site: Site, parts: Sequence[Split] = USED) -> None:
    """Refuse a site whose files have changed since its split was written; for a process that has had the split in memory for long.

    Args:
        path: the file, written by `write_split`; if it has no digests, nothing is compared.
        site: the site in the parts that the file stores.
        parts: the parts whose files are compared.

    Raises:
        DataError: the file is no split, or that of another site; the files of a case have changed or cannot be read.
    """
    _refuse_changed(path, site, _cases_of(site, parts), _read_file(path, site.name).digests, file_digest)


def stored_split(path: Path, site: Site, options: SplitOptions, seed: int) -> Site:
    """The site in the parts that a file of `data.split_folder` stores, with at most `max_train_cases` training cases.

    Raises:
        DataError: as for `read_split`, or the manifest assigns a case to another part than the file.
    """
    found = read_split(path, site)
    wanted = {case.id: case.split for case in site.cases}
    for case in found.cases:
        before = wanted[case.id]
        # Cases that `max_train_cases` left out when the file was written are unused in it.
        if before not in (None, case.split) and not (before == "train" and case.split == "unused"):
            raise DataError(
                f"site {site.name!r}, case {case.id!r}: the manifest has it in the part {before!r}, and {path.name!r} in {case.split!r}; "
                "leave out data.split_folder to use the manifest, or delete the file and write it again by `pfedsam data split`"
            )
    return _keep(found, options.max_train_cases, seed)


def same_part(first: Path, second: Path, site: str, part: Split) -> bool:
    """Whether two files of splits have the same cases in a part, with equal digests as far as both files contain digests.

    Raises:
        DataError: a file is no split, or that of another site.
    """
    one, other = _read_file(first, site), _read_file(second, site)
    same = sorted(one.cases(part)) == sorted(other.cases(part))
    if not same or one.digests is None or other.digests is None:
        return same
    return all(one.digests.get(case) == other.digests.get(case) for case in one.cases(part))


def refuse_other_split(path: Path, site: Site, *, digest: Callable[[Case], str] | None = None) -> None:
    """Refuse a site whose parts or files differ from those with which a finished run wrote its split.

    A file without digests is of an earlier version, and is only checked as `read_split` does.

    Args:
        path: the file, written by `write_split`.
        site: the site as a new run would split it now.
        digest: as for `read_split`.

    Raises:
        DataError: as for `read_split`, or a case is in another part now.
    """
    before = {case.id: case.split for case in read_split(path, site, digest=digest).cases}
    if _read_file(path, site.name).digests is None:
        return
    moved = [case.id for case in site.cases if case.split != before[case.id]]
    if moved:
        raise DataError(
            f"site {site.name!r}, {name_cases(moved)}: in another part of the split now than in {path.name!r}, because cases were added or "
            "assigned anew, so that results before and after would be of different data; remove the cases that were added and put the "
            "earlier ones back, or start in another folder"
        )


def _part_by_case(path: Path, site: Site, stored: _SplitFile) -> dict[str, Split]:
    """The part of each case.

    Raises:
        DataError: a case is stored twice.
    """
    part_of: dict[str, Split] = {}
    for split in SPLITS:
        for case in stored.cases(split):
            if case in part_of:
                raise DataError(
                    f"site {site.name!r}, case {case!r}: is listed twice in {path.name!r}; leave it in one part"
                )
            part_of[case] = split
    return part_of


def _cases_of(site: Site, parts: Sequence[Split]) -> list[Case]:
    """The cases of several parts, part by part."""
    return list(chain.from_iterable(map(site.of, parts)))


def file_digest(case: Case) -> str:
    """SHA-256 over what the case is read from: the content of its files, image first, and the choice of a series.

    Of a folder, these are its files sorted by name, without hidden ones, which are not read.

    Raises:
        DataError: a file cannot be read.
    """
    digest = hashlib.sha256()
    for path in case.files:
        for file in _files_of(path):
            try:
                digest.update(hashlib.sha256(file.read_bytes()).digest())
            except OSError as error:
                raise DataError(
                    f"site {case.site!r}, case {case.id!r}: {file.name!r} cannot be read ({error.strerror}); restore it"
                ) from error
        digest.update(b"|")
    if case.series is not None:
        digest.update(case.series.encode())
    return digest.hexdigest()


def _files_of(path: Path | None) -> list[Path]:
    if path is None:
        return []
    return [one for one in visible_files(path) if one.is_file()] if path.is_dir() else [path]


def _refuse_removed(path: Path, site: Site, gone: Sequence[str]) -> None:
    if gone:
        raise DataError(
            f"site {site.name!r}, {name_cases(gone)}: no longer there, but in {path.name!r}; bring the files back, or split the site again "
            "(for a run: in a new folder)"
        )


def _warn_of_new(path: Path, site: Site, new: Sequence[str]) -> None:
    if new:
        _LOG.warning(
            "site %r, %s: not in %r, so new since it was written, and left unused; split the site again to use it (for a run: in a "
            "new folder)",
            site.name,
            name_cases(new),
            path.name,
        )


def _refuse_changed(
    path: Path,
    site: Site,
    cases: Sequence[Case],
    digests: Mapping[str, str] | None,
    digest: Callable[[Case], str],
) -> None:
    if digests is None:
        return
    changed = [case.id for case in cases if digests.get(case.id) != digest(case)]
    if changed:
        raise DataError(
            f"site {site.name!r}, {name_cases(changed)}: image or mask was changed since {path.name!r} was written, so that results before "
            "and after would be of different data; put the earlier files back, or start a new run in another folder"
        )


def _deal(sizes: Mapping[str, int], options: SplitOptions, name: str, seed: int) -> dict[str, Split]:
    """The part of each patient, given the number of cases of each."""
    shares: dict[Split, float] = {"train": options.train, "test": options.test, "val": options.val}
    total = sum(sizes.values())
    lacking = {part: shares[part] * total for part in _PARTS if shares[part] > 0}
    members: dict[Split, list[str]] = {part: [] for part in lacking}
    order = _shuffled(sorted(sizes), name, seed, "split")
    for patient in sorted(order, key=lambda patient: -sizes[patient]):
        part = max(lacking, key=lambda part: lacking[part])
        members[part].append(patient)
        lacking[part] -= sizes[patient]
    _fill_empty_parts(members, lacking)
    return {patient: part for part, patients in members.items() for patient in patients}


def _fill_empty_parts(members: Mapping[Split, list[str]], lacking: Mapping[Split, float]) -> None:
    """Move one patient into each empty part, from the part of two patients or more that lacks fewest cases."""
    for part, patients in members.items():
        donor = min(members, key=lambda part: (len(members[part]) < 2, lacking[part]))
        if not patients and len(members[donor]) > 1:
            members[part].append(members[donor].pop())  # the patient that was assigned last has the fewest cases


def _keep(site: Site, most: int | None, seed: int) -> Site:
    """The site with all but `most` training cases unused; a smaller `most` keeps a subset of what a larger one keeps."""
    train = site.of("train")
    if most is None or len(train) <= most:
        return site
    order = _shuffled(sorted({case.patient for case in train}), site.name, seed, "train subset")
    ranked = sorted(train, key=lambda case: (order.index(case.patient), case.id))
    left_out = {case.id for case in ranked[most:]}
    return replace(
        site, cases=tuple(replace(case, split="unused") if case.id in left_out else case for case in site.cases)
    )


def _shuffled(names: Sequence[str], site: str, seed: int, purpose: str) -> list[str]:
    return [names[i] for i in rng.numpy_generator(seed, site, purpose).permutation(len(names))]


def _assigned(site: Site, part_of: Mapping[str, Split]) -> Site:
    return replace(site, cases=tuple(replace(case, split=part_of[case.id]) for case in site.cases))


def _read_file(path: Path, site: str) -> _SplitFile:
    """The content of a file with the split of this site.

    Raises:
        DataError: the file is no split, or that of another site.
    """
    try:
        found = _SplitFile.model_validate(json.loads(read_regular(path)))
    except ValidationError as error:
        raise DataError(
            f"site {site!r}: {path.name!r} is not a split that this version reads: {first_mistake(error)}; split the site again"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"site {site!r}: {path.name!r} cannot be read as a split; split the site again") from error
    if found.site != site:
        raise DataError(
            f"site {site!r}: {path.name!r} is the split of site {found.site!r}; give each site its own file"
        )
    return found
