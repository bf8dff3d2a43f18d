"""Submitting a study to a coordinator, also one that is there already.

A study's id follows from its configuration without the sites. A study that is submitted again is therefore the same study, whatever sites
the new configuration names: they replace the stored ones if this does not contradict the rounds that were trained, and are refused if it
does. A rule of the rounds that the submission does not set stays as it is.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pfedsam.core.errors import OptionError, RunError, StoreError
from pfedsam.engine.round_policy import RoundPolicy
from pfedsam.engine.study_folder import CONFIG, UNFINISHED, StudyFolder, prepare_study, store_study
from pfedsam.experiment.load import read_config, validate
from pfedsam.experiment.options import RunOptions
from pfedsam.federation.manifest import StudyManifest, differences, read_manifest


@dataclass(frozen=True)
class Earlier:
    """A study as it was stored before it was submitted again."""

    sites: tuple[str, ...]
    policy: RoundPolicy | None
    """None if the file was lost or damaged."""
    round: int
    """The number of committed rounds."""
    ends: int
    """The number of rounds after which the study ends."""


@dataclass(frozen=True)
class SameTitle:
    """Another study of the same title."""

    study: str
    state: str
    differences: tuple[str, ...]
    """The keys in which its configuration differs."""

    @property
    def unfinished(self) -> bool:
        """Whether the coordinator runs it, or will."""
        return self.state in UNFINISHED


@dataclass(frozen=True)
class Submission:
    """A study that was submitted."""

    folder: Path
    sites: tuple[str, ...]
    policy: RoundPolicy
    earlier: Earlier | None
    """What was stored before; None for a new study."""
    same_title: tuple[SameTitle, ...] = ()
    """The other studies of the same title, if this study is new."""

    @property
    def changed(self) -> bool:
        """Whether a stored study has other sites or other rules now."""
        before = self.earlier
        return before is not None and (set(before.sites) != set(self.sites) or before.policy != self.policy)


def submit_study(options: RunOptions, root: Path, rules: Mapping[str, Any], *, running: bool) -> Submission:
    """Store a study under `root`, or store the sites and rules of one that is there already.

    Args:
        options: the options of the study.
        root: the folder of the coordinator's studies.
        rules: the fields of the round policy that the operator sets. The others keep their stored values, or get their defaults if the
            study is new or its policy was lost.
        running: whether the coordinator is running. If something changes, its job of the study then ends after the current round.

    Raises:
        OptionError: the rules or options are not valid, the quorum is larger than the number of sites, or the sites or the order of the
            classes contradict the stored study. Nothing was changed.
        StoreError: a file of the stored study is damaged or missing.
    """
    study = prepare_study(options)
    folder, sites = StudyFolder(root / study.manifest.study), tuple(study.options.data.sites)
    earlier = _read_earlier(folder, study.manifest) if folder.exists else None
    stored = earlier.policy if earlier else None
    policy = validate(RoundPolicy, {**(stored.model_dump() if stored else {}), **rules}, "The submission")
    if earlier:
        _check_classes(folder, study.options.data.classes)
        _check_sites(folder, earlier, sites, running=running)
    _check_quorum(policy.quorum, sites, stored=earlier is not None)
    same_title = () if earlier else tuple(_of_same_title(root, study.manifest))
    submission = Submission(store_study(study, root, policy), sites, policy, earlier, same_title)
    if running and submission.changed:
        folder.request_new_job()
    return submission


def _of_same_title(root: Path, manifest: StudyManifest) -> Iterator[SameTitle]:
    """The other studies under `root` with the title of this manifest; a study that cannot be read is left out."""
    for path in sorted(root.glob("*/manifest.json")):
        with suppress(RunError, StoreError):
            other = read_manifest(path)
            if other.name == manifest.name and other.study != manifest.study:
                keys = differences(dict(other.configuration), dict(manifest.configuration))
                state = str(StudyFolder(path.parent).read_status()["state"])
                yield SameTitle(other.study, state, tuple(keys) or ("model.backbone",))


def _read_earlier(folder: StudyFolder, manifest: StudyManifest) -> Earlier:
    try:
        policy = folder.read_policy(RoundPolicy)
    except StoreError:
        policy = None
    return Earlier(tuple(folder.read_sites()), policy, folder.load_state(manifest).round, folder.ends())


def _check_quorum(quorum: int, sites: Sequence[str], *, stored: bool) -> None:
    """Refuse a quorum that the sites cannot reach.

    Raises:
        OptionError: it is larger than the number of sites.
    """
    if quorum > len(sites):
        raise OptionError(
            f"The quorum of {quorum} cannot be reached: the study has {len(sites)} site(s), {', '.join(sites)}. Give a --quorum of at most "
            f"{len(sites)}, or more sites (data.sites). {'Nothing was changed.' if stored else 'Nothing was submitted.'}"
        )


def _check_classes(folder: StudyFolder, classes: Iterable[str]) -> None:
    """Refuse the classes of a stored study in another order, on which the study's id does not depend: the order of the outputs stays.

    Raises:
        OptionError: the order is another one.
    """
    before = list(read_config(folder.path / CONFIG).data.classes)
    if before != list(classes):
        raise OptionError(
            f"Study {folder.path.name} has the classes {', '.join(before)} in this order, which is that of the model's outputs; "
            f"data.classes has {', '.join(classes)} now. Nothing was changed. Give them in the first order, or give the new study another "
            "title (name)."
        )


def _check_sites(folder: StudyFolder, earlier: Earlier, sites: Sequence[str], *, running: bool) -> None:
    """Refuse other sites than the stored ones if they contradict what was trained.

    After the first round sites may be added, and names that never joined may be removed: a site that joins late is part of every study. A
    site that took part cannot be removed, because the shared parameters contain its updates. A study that has ended keeps its sites.

    Raises:
        OptionError: a site that took part is not among the new sites, or the study has ended with other sites.
    """
    study = folder.path.name
    if set(sites) == set(earlier.sites):
        return
    if earlier.round >= earlier.ends:
        raise OptionError(
            f"All {earlier.ends} round(s) of study {study} are done with its sites {', '.join(earlier.sites)}; data.sites has "
            f"{', '.join(sites)} now. Nothing was changed. To train with other sites, give the new study another title (name). A hospital "
            "that comes after the end gets a model by `pfedsam onboard`."
        )
    if not earlier.round and not running:
        return
    removed = [site for site in earlier.sites if site not in sites]
    joined = [site for site in removed if site in folder.read_registered()] if removed else []
    if joined and not earlier.round:
        raise OptionError(
            f"Study {study} is being started with {', '.join(joined)}, which data.sites does not name any more. Nothing was changed. Stop "
            "the coordinator (`pfedsam coordinator stop`) and submit the study again."
        )
    if joined:
        raise OptionError(
            f"{', '.join(joined)} took part in study {study}, which has {earlier.round} committed round(s), and is not in data.sites any "
            "more. Nothing was changed: sites can be added, and names that never joined can be removed, but the shared parameters contain "
            f"the updates of a site that took part. To go on without {', '.join(joined)}, leave the name in data.sites and exclude the "
            "site with `pfedsam coordinator revoke`; to begin anew with other sites, give the new study another title (name)."
        )
