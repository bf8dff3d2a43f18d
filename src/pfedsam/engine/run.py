"""A run on this machine: all sites of a study, deterministic, and resumable after a kill at any moment."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from pfedsam.core.errors import RunError
from pfedsam.core.lock import LOCK, exclusive, refuse_unreadable_name
from pfedsam.core.log import get_logger
from pfedsam.data.check import refuse_problems
from pfedsam.data.facts import SiteFacts
from pfedsam.data.manifest import Site
from pfedsam.data.split import read_split
from pfedsam.engine.inputs import Inputs, refuse_other_backbone, refuse_other_data
from pfedsam.engine.local import LocalStudy, LocalTransport, worker_count
from pfedsam.engine.progress import Event, Progress, silent
from pfedsam.engine.resuming import refuse_earlier_sites, refuse_other_configuration, refuse_other_version
from pfedsam.engine.round_policy import RoundPolicy
from pfedsam.engine.rounds import Study, StudyRun
from pfedsam.engine.run_end import SUMMARY, part_sizes
from pfedsam.engine.server_files import SERVER, load_state, refuse_lost_state
from pfedsam.engine.site_files import SITE_FILES, SPLIT, write_site
from pfedsam.engine.study_folder import build_manifest, study_id
from pfedsam.experiment.build import (
    BuiltModel,
    build_method,
    build_model,
    build_sites,
    build_study,
    check_cases,
    read_sites,
    refuse_too_few_sites,
    with_pool,
)
from pfedsam.experiment.effect import without_unused
from pfedsam.experiment.load import read_config, write_config
from pfedsam.experiment.options import RunOptions
from pfedsam.federation.manifest import StudyManifest, differences
from pfedsam.federation.server import ServerState, initial_state
from pfedsam.model.backbones.checkpoint import backbone_file
from pfedsam.model.numerics import CPU, configure_numerics, describe, find_device
from pfedsam.report.summary_file import Summary, read_summary

_LOG = get_logger(__name__)


def run(options: RunOptions, folder: Path | str, *, resume: bool = False, progress: Progress | None = None) -> Summary:
    """Train and evaluate a federation; all results are written to `folder`.

    Args:
        options: options of the run.
        folder: a new or empty folder, or with `resume` that of an interrupted run.
        resume: whether to continue the run in `folder`; if it contains none, a new run begins, and a warning is logged.
        progress: called after each step, and at the start of the stages prepare and train with what is done already.

    Raises:
        DataError: a site's data is wrong; every problem is named, and nothing was written.
        OptionError: there is no such device, too few sites for the method, or an option that does not fit the images or the labels; nothing
            was written.
        RunError: the folder holds another run, another process works in it, or its path is no text in UTF-8.
    """
    tell, folder = progress or silent, Path(folder)
    refuse_unreadable_name(folder)
    device = find_device(options.runtime.device)
    refuse_too_few_sites(options)
    check_folder(options, folder, resume)
    if resume and not (folder / "config.yaml").exists():
        warn_nothing_to_resume(folder)
    tell(Event("prepare", 0, 2, "checking the sites' data"))
    sites, facts = _sites(options, folder, tell)
    tell(Event("prepare", 1, 2, f"loading the backbone; sites compute on {describe(device)}"))
    one_process = worker_count(options) == 1
    built = build_model(
        options, configure_numerics(options.runtime.threads, options.runtime.device) if one_process else CPU
    )
    for site in sites.values():  # the sites check this too, but only when the run has a folder
        check_cases(options, site, built.model.image_size)
    identity = run_id(_in_first_place(options, folder), built.backbone)
    manifest = build_manifest(options, built, identity, options.model_dump(mode="json"))
    with exclusive(folder):
        check_folder(options, folder, resume)  # again: another process may have begun meanwhile
        _begin(options, folder, facts)
        tell(Event("prepare", 2, 2, "ready"))
        return _run(options, folder, sites, built, manifest, tell)


def _run(
    options: RunOptions,
    folder: Path,
    sites: Mapping[str, Site],
    built: BuiltModel,
    manifest: StudyManifest,
    tell: Progress,
) -> Summary:
    """Run a federation in its folder, from its last committed round to its report."""
    local = LocalStudy(options, manifest, with_pool(options, sites), folder)
    trainers = [site for site in local.sites if build_method(options).roster.asks(site, "train")]
    state = _state(options, folder, manifest, built)
    refuse_earlier_sites(folder, trainers, state.round)
    study = Study(options, manifest, RoundPolicy(quorum=1), state, built, part_sizes(sites))
    rounds, done, each = manifest.rounds, state.round, len(trainers)
    images = options.training.images_per_round
    drawn = (done * images, rounds * images)
    tell(Event("train", done * each, rounds * each, f"round {min(done + 1, rounds)} of {rounds}", drawn))
    transport = LocalTransport(local, built, tell)
    try:
        StudyRun(folder, transport, study).run()
    finally:
        transport.close()
    return read_summary(folder / SUMMARY)


def _state(options: RunOptions, folder: Path, manifest: StudyManifest, built: BuiltModel) -> ServerState:
    if (folder / SERVER).exists():
        refuse_other_version(options, folder, manifest)
        return load_state(folder, manifest.study)
    refuse_lost_state(folder)
    return initial_state(build_method(options).server, built.start("shared"), manifest.spec)


def run_id(options: RunOptions, backbone: str) -> str:
    """The identity of the study that a run makes: its configuration, without options that do not affect results, and its backbone.

    A run that is continued after its data or its backbone were moved keeps the identity that it had with the first paths.
    """
    return study_id(options.model_dump(mode="json", exclude={"runtime", "name"}), backbone)


def _in_first_place(options: RunOptions, folder: Path) -> RunOptions:
    """The options of a run with the paths of its data, its splits and its backbone when it began; unchanged for a new run.

    They may be moved, because the run stores the digests of the data's files and, after its first round, that of the backbone; the identity
    of the run keeps the first paths.
    """
    if not (folder / "config.yaml").exists():
        return options
    first, model = read_config(folder / "config.yaml"), options.model
    folders = {name: first.data.folder(name) for name in first.data.sites}
    data = options.data.with_folders(folders).model_copy(update={"split_folder": first.data.split_folder})
    if (folder / SERVER).exists() and backbone_file(model.backbone) and Path(first.model.backbone).is_absolute():
        model = model.model_copy(update={"backbone": first.model.backbone})
    return options.model_copy(update={"data": data, "model": model})


def is_finished(options: RunOptions, folder: Path, inputs: Inputs | None = None) -> bool:
    """Whether `folder` contains this run, of the data and the backbone as they are now, and the run is finished.

    An unfinished run is checked when it is resumed.

    Args:
        options: the options of the run.
        folder: the folder of the run.
        inputs: the present inputs, as far as they were read for other runs.

    Raises:
        CheckpointError: the backbone cannot be loaded.
        DataError: the run is finished, and its data have changed since.
        RunError: the folder contains another run, or something else, or the weights of the backbone have changed.
        StoreError: the state of the run is damaged.
    """
    check_folder(options, folder, True)
    if not (folder / SUMMARY).exists():
        return False
    refuse_other_inputs(options, folder, inputs or Inputs())
    return True


def refuse_other_inputs(options: RunOptions, folder: Path, inputs: Inputs) -> None:
    """Refuse a run with another configuration, other data or another backbone than a new run with these options would have now.

    Args:
        options: the options of the run.
        folder: the folder of the run, which has begun.
        inputs: the present inputs, as far as they were read for other runs.

    Raises:
        CheckpointError: the backbone cannot be loaded.
        DataError: the data of the run have changed since it began.
        RunError: the folder contains another run, or the weights of the backbone have changed.
        StoreError: the state of the run is damaged.
    """
    check_folder(options, folder, True)
    refuse_other_data(options, folder, inputs)
    backbone = inputs.backbone(options)
    # A run has no state of the server before the end of its first round.
    if backbone is not None and any((folder / name).exists() for name in (SERVER, SUMMARY)):
        refuse_other_backbone(folder, backbone, run_id(_in_first_place(options, folder), backbone))


def warn_nothing_to_resume(folder: Path) -> None:
    """Log a warning that `resume` was given, but the folder contains nothing to continue, for example because its name is misspelt."""
    _LOG.warning("%r contains no run that could be continued: a new one begins there.", str(folder))


def check_folder(options: RunOptions, folder: Path, resume: bool) -> None:
    """Refuse a folder that does not contain this run, if it is to be continued, and otherwise one that is not empty.

    Raises:
        RunError: the folder is refused; the message says what it contains.
        StoreError: the configuration in it is damaged or missing.
    """
    config = folder / "config.yaml"
    if not config.exists():
        if folder.exists() and not folder.is_dir():
            raise RunError(f"{folder.name!r} is a file, where a folder has to be. Give a new or an empty folder.")
        if (folder / SERVER).exists():
            read_config(config)  # raises the error that it is missing
        if folder.exists() and not _is_unstarted(folder):
            raise RunError(
                f"The folder {folder.name!r} is not empty and contains no run. Give a new or an empty folder."
            )
        return
    before = read_config(config).model_dump(mode="json", exclude={"runtime", "name"})
    if not resume:
        raise RunError(
            f"The folder {folder.name!r} contains a run already. Continue it with --resume, or give another folder."
        )
    now = without_unused(_in_first_place(options, folder)).model_dump(mode="json", exclude={"runtime", "name"})
    changed = differences(before, now)
    refuse_other_configuration(config, changed, options)


def _is_unstarted(folder: Path) -> bool:
    """Whether the folder contains only the files of the sites of a run that was killed before it wrote its configuration."""
    left = (path for path in folder.rglob("*") if not path.is_dir())
    return all(path.name in (*SITE_FILES, LOCK) or path.suffix == ".tmp" for path in left)


def _sites(options: RunOptions, folder: Path, tell: Progress) -> tuple[dict[str, Site], tuple[SiteFacts, ...]]:
    """The checked sites, and for a new run the facts about their images; a resumed run keeps its split and cases.

    Raises:
        DataError: the data have problems, all of which are named, or have changed since the run began.
    """
    if (folder / "config.yaml").exists():
        now = read_sites(options, masks_required=False)
        return {name: read_split(folder / "sites" / name / SPLIT, site) for name, site in now.items()}, ()
    sites = build_sites(options)
    report = refuse_problems(
        list(sites.values()),
        build_study(options),
        tell=lambda done, total, site: tell(Event("check", done, total, site)),
    )
    for warning in report.warnings:
        _LOG.warning("%s", warning)
    return sites, report.facts


def _begin(options: RunOptions, folder: Path, facts: Sequence[SiteFacts]) -> None:
    """Write the folder of a new run; nothing is written if it contains the run already."""
    if (folder / "config.yaml").exists():
        return
    for one in facts:
        place = folder / "sites" / one.name
        place.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_site(place, one)
    # The configuration is written last, because a folder with a configuration can be resumed.
    write_config(folder / "config.yaml", options)
