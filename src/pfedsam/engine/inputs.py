"""The inputs on which the results of a run depend besides its options: the files of the cases, and the weights of the backbone."""

from pathlib import Path

from pfedsam.core.errors import RunError
from pfedsam.core.log import get_logger
from pfedsam.data.manifest import Case
from pfedsam.data.split import file_digest, refuse_other_split
from pfedsam.engine.server_files import read_server
from pfedsam.engine.site_files import SPLIT
from pfedsam.experiment.build import build_method, build_sites
from pfedsam.experiment.options import RunOptions
from pfedsam.model.backbones.checkpoint import load_backbone

_LOG = get_logger(__name__)


class Inputs:
    """The present inputs of several runs; every file of a case and every backbone is read once, however many runs use it."""

    def __init__(self) -> None:
        self._digests: dict[tuple[tuple[Path | None, ...], str | None], str] = {}
        self._backbones: dict[tuple[str, int | None], str] = {}

    def digest(self, case: Case) -> str:
        """The digest of the files of a case, as `file_digest`.

        Raises:
            DataError: a file cannot be read.
        """
        key = (case.files, case.series)
        if key not in self._digests:
            self._digests[key] = file_digest(case)
        return self._digests[key]

    def backbone(self, options: RunOptions) -> str | None:
        """The hash of the backbone of a run; None for a U-Net, whose initial weights come from the options alone.

        Raises:
            CheckpointError: the backbone cannot be loaded.
        """
        if not starts_from_backbone(options):
            return None
        model = build_method(options).adapt(options.model)
        key = (model.backbone, model.image_size)
        if key not in self._backbones:
            self._backbones[key] = load_backbone(model.backbone, image_size=model.image_size).hash
        return self._backbones[key]


def refuse_other_data(options: RunOptions, folder: Path, inputs: Inputs) -> None:
    """Refuse a finished run on other data than those that a new run with its options would use now.

    Raises:
        DataError: the files of a case have changed, or a site's parts have other cases now.
    """
    for name, site in build_sites(options).items():
        refuse_other_split(folder / "sites" / name / SPLIT, site, digest=inputs.digest)


def starts_from_backbone(options: RunOptions) -> bool:
    """Whether the model of a run has the weights of a backbone; a U-Net has none."""
    return build_method(options).adapt(options.model).unet is None


def refuse_other_backbone(folder: Path, backbone: str, study: str) -> None:
    """Refuse the parameters of a run that began with other weights than its backbone has now.

    Args:
        folder: the folder of the run.
        backbone: the hash of the backbone now.
        study: the identity that the run would have with this backbone.

    Raises:
        RunError: the run began with other weights.
        StoreError: the state of the run is damaged or missing.
    """
    _, described = read_server(folder)
    before = described.get("backbone")
    if before == backbone or described["study"] == study:
        return
    if before is None:
        # Earlier versions stored only the identity of the run, which also differs if this version has further options.
        _LOG.warning(
            "The run in %r is of an earlier version, which did not store the hash of its backbone: it is not checked that the backbone "
            "still has the weights with which the run was made.",
            folder.name,
        )
        return
    raise RunError(
        f"The backbone of the run in {folder.name!r} has other weights now (model.backbone, or another model.image_size) than when the run "
        "began, and the trained parameters fit only the earlier ones. Put them back, or start a run in another folder."
    )
