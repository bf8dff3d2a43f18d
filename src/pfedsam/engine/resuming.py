"""What a run on this machine is checked for before it is continued: its version, its backbone, and the rounds of its sites."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel

from pfedsam.core.errors import RunError, StoreError
from pfedsam.core.log import get_logger
from pfedsam.core.yaml_files import read_mapping
from pfedsam.engine.inputs import refuse_other_backbone, starts_from_backbone
from pfedsam.engine.server_files import read_server
from pfedsam.experiment.load import holds
from pfedsam.experiment.options import RunOptions
from pfedsam.federation.manifest import CLASSES, StudyManifest
from pfedsam.federation.site_store import SiteStore
from pfedsam.model.backbones.checkpoint import backbone_file

_OTHER_VERSION: Final = "continue it with that version, or start again in a new folder"
_ORDER: Final = " The order of the classes counts: it is that of the model's outputs."
_LOG = get_logger(__name__)


def refuse_other_configuration(config: Path, changed: Sequence[str], options: RunOptions) -> None:
    """Refuse to continue a run with another configuration.

    Args:
        config: the stored configuration.
        changed: the paths of the keys that differ; if there are none, the configuration is the same.
        options: the present options.

    Raises:
        RunError: a key differs; the message says if this may be due to another version of pFedSAM.
    """
    if not changed:
        return
    stored = read_mapping(config)
    of_version = [key for key in changed if not holds(stored, key) or not _is_set(options, key)]
    hint = (
        f" If you did not change {', '.join(of_version[:8])}, the run was begun by another version of pFedSAM, without this option or with "
        f"another default: {_OTHER_VERSION}."
    )
    raise RunError(
        f"The run in {config.parent.name!r} has another configuration; different: {', '.join(changed[:8])}. "
        f"Resume with the configuration it was started with, or give another folder.{hint if of_version else ''}"
        f"{_moved_backbone(stored, options) if 'model.backbone' in changed else ''}"
        f"{_ORDER if CLASSES in changed else ''}"
    )


def _moved_backbone(stored: Mapping[str, Any], options: RunOptions) -> str:
    """What to do if the backbone of a run was moved; empty if it was no file or folder."""
    before, now = str(stored.get("model", {}).get("backbone", "")), options.model.backbone
    if not Path(before).is_absolute():
        return ""
    there = "" if backbone_file(now) else ", and there is no such file or folder"
    return (
        f" The run began with the backbone {before!r}; the configuration names {now!r} now{there}. If the weights were moved, give their "
        "present path as model.backbone, for example by --set; a run that has not finished its first round needs them at the earlier path."
    )


def _is_set(options: BaseModel, key: str) -> bool:
    """Whether a key such as `training.rounds` was set, and does not have its value by default."""
    for name in key.split("."):
        if name not in options.model_fields_set:
            return False
        value = getattr(options, name)
        if not isinstance(value, BaseModel):
            break
        options = value
    return True


def refuse_other_version(options: RunOptions, folder: Path, manifest: StudyManifest) -> None:
    """Refuse to continue a run whose identity has changed although its configuration has not.

    Args:
        options: the options of the run, which are those in its folder.
        folder: the folder of the run.
        manifest: the manifest that the run has now.

    Raises:
        RunError: the weights of the backbone have changed, or the run was begun by another version of pFedSAM.
        StoreError: the state of the run is damaged.
    """
    _, described = read_server(folder)
    if described["study"] == manifest.study:
        return
    known = "backbone" in described
    if known and starts_from_backbone(options):
        refuse_other_backbone(folder, manifest.backbone, manifest.study)
    also = "" if known else ", or with other weights of its backbone"
    raise RunError(
        f"The run in {folder.name!r} was begun by another version of pFedSAM{also}: this version has other options, with which its rounds "
        f"could differ from those before. To get the result of the run, {_OTHER_VERSION}."
    )


def refuse_earlier_sites(folder: Path, sites: Iterable[str], round_: int) -> None:
    """Refuse to continue a run if the state of a site is of an earlier round than the server's, as after the restoration of one folder.

    In a run on this machine every site that trains does so in every round. Between hospitals a site may miss rounds.

    Args:
        folder: the folder of the run.
        sites: the sites that train in every round.
        round_: the number of rounds that the server has committed.

    Raises:
        StoreError: the state of a site is of an earlier round, or damaged.
    """
    for name in sites if round_ else ():
        state = SiteStore(folder / "sites" / name / "state").load()
        if state is None:
            _LOG.warning(
                "The folder of site %r has no state of the %d round(s) that the run has done: the site begins anew, so that the result "
                "differs from that of a run without this loss.",
                name,
                round_,
            )
        elif state.round < round_:
            raise StoreError(
                f"The state of site {name!r} is that after round {state.round}, but the run in {folder.name!r} has done {round_} rounds, "
                "in all of which the site trained: its folder was replaced by an earlier copy. Restore the whole folder "
                f"{folder.name!r} from one copy, or start again in a new folder."
            )
