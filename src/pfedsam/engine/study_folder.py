"""A study's folder at the coordinator: manifest, policy, the shared parameters, records, status; nothing from a site's data.

It has the form of a run's folder (`engine.in_process`), so that `pfedsam report` reads it too; what stands in `sites/` there
stays at the sites here.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from pfedsam.core import atomic
from pfedsam.core.errors import OptionError, RunError
from pfedsam.core.options import Options
from pfedsam.engine.export import export_adapter
from pfedsam.engine.scalar_metrics import allowed_metrics
from pfedsam.engine.server_files import SERVER, load_state, save_state
from pfedsam.experiment.build import BuiltModel, build_method, build_model
from pfedsam.experiment.load import dump_options
from pfedsam.experiment.options import RunOptions
from pfedsam.federation.manifest import StudyManifest, largest_change, shared_tensors, write_manifest
from pfedsam.federation.server import ServerState
from pfedsam.model.checkpoint import backbone_file

T = TypeVar("T", bound=Options)
REVOKED = "revoked.json"
"""In the coordinator's folder, beside that of the studies: the sites that may take part in nothing any more."""
CONNECTED = "connected.json"
"""Beside it: the sites that are connected now."""
STUDIES_FOLDER = "studies"
"""Beside it: a folder for each study."""
_POLICY, _REGISTERED, STATUS = "policy.json", "registered.json", "status.json"


def create_study(options: RunOptions, root: Path, policy: Options) -> Path:
    """Make the folder of a study under `root`, or find the one that is there; the study's id is its name.

    Raises:
        OptionError: the method cannot run over several machines.
        CheckpointError: the backbone cannot be loaded.
    """
    if build_method(options).pooled:
        raise OptionError(
            f"method {options.method!r} needs all images in one place; use pfedsam, fedavg or local-only."
        )
    built = build_model(options)
    content = options.model_dump(mode="json", exclude={"runtime": True, "data": {"sites", "split_folder"}})
    if file := backbone_file(options.model.backbone):
        content["model"]["backbone"] = (
            file.name
        )  # its hash is in the manifest; where it lies here is nobody else's business
    manifest = derive_manifest(options, built, content)
    folder = StudyFolder(root / manifest.study)
    folder.path.mkdir(parents=True, exist_ok=True, mode=0o700)
    atomic.write_json(folder.path / _POLICY, policy.model_dump(mode="json"))
    if not (folder.path / SERVER).exists():
        atomic.write_text(folder.path / "config.yaml", dump_options(options))
        write_manifest(folder.path / "manifest.json", manifest)
        folder.save_state(ServerState(0, built.start("shared")), manifest)
    folder.write_status("submitted", round_=folder.load_state(manifest).round, rounds=manifest.rounds, sites=[])
    return folder.path


def derive_manifest(options: RunOptions, built: BuiltModel, configuration: Mapping[str, Any]) -> StudyManifest:
    """The manifest that follows from a study's configuration: the coordinator writes it, and every site derives it again.

    Args:
        options: that the configuration gives; sites, folders and devices do not matter.
        built: the model of these options.
        configuration: as it stands in the manifest.
    """
    shared = built.start("shared")
    study = hashlib.sha256(json.dumps([configuration, built.backbone], sort_keys=True).encode()).hexdigest()[:16]
    return StudyManifest(
        study=study,
        name=options.name,
        method=options.method,
        rounds=options.training.rounds,
        configuration=dict(configuration),
        backbone=built.backbone,
        tensors=shared_tensors(shared),
        components={c: names for c, names in built.partition.components.items() if set(names) <= set(shared)},
        communication=options.communication,
        max_change=largest_change(shared, options.training.optimizer.learning_rate, options.training.steps_per_round),
        scalar_metrics=allowed_metrics(options, built),
    )


def read_revoked(coordinator: Path) -> set[str]:
    """The sites that were revoked."""
    path = coordinator / REVOKED
    return set(json.loads(path.read_text("utf-8"))) if path.exists() else set()


def write_revoked(coordinator: Path, sites: set[str]) -> None:
    """Keep the list of revoked sites; a coordinator that runs takes notice within a round."""
    atomic.write_json(coordinator / REVOKED, sorted(sites))


class StudyFolder:
    """Reads and writes what a study's folder holds."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read_policy(self, kind: type[T]) -> T:
        """The round policy of the study.

        Raises:
            RunError: it is missing or wrong.
        """
        try:
            return kind.model_validate_json((self.path / _POLICY).read_bytes())
        except (OSError, ValidationError) as error:
            raise RunError(f"the study's {_POLICY} cannot be read: submit the study again.") from error

    def load_state(self, manifest: StudyManifest) -> ServerState:
        """The state after the last committed round.

        Raises:
            RunError: it belongs to another study.
        """
        return load_state(self.path, manifest.study)

    def save_state(self, state: ServerState, manifest: StudyManifest) -> None:
        """Commit a round: with this rename it is done."""
        save_state(self.path, manifest.study, state, mode=0o700)

    def read_registered(self) -> dict[str, int]:
        """The number of training cases of every site that ever joined; a site's weight cannot change in a study."""
        path = self.path / _REGISTERED
        return json.loads(path.read_text("utf-8")) if path.exists() else {}

    def write_registered(self, registered: Mapping[str, int]) -> None:
        """Keep the registrations."""
        atomic.write_json(self.path / _REGISTERED, dict(sorted(registered.items())))

    def write_status(self, state: str, *, round_: int, rounds: int, sites: Sequence[str], reason: str = "") -> None:
        """Say where the study stands, for `pfedsam coordinator status`."""
        content = {"state": state, "round": round_, "rounds": rounds, "sites": list(sites), "reason": reason}
        now = datetime.now(UTC).isoformat(timespec="seconds")
        atomic.write_json(self.path / STATUS, {**content, "time": now})

    def read_status(self) -> dict[str, Any]:
        """Where the study stands."""
        return dict(json.loads((self.path / STATUS).read_text("utf-8")))

    def export_adapter(self, state: ServerState, options: RunOptions) -> None:
        """The shared LoRA once more, in peft's format."""
        export_adapter((self.path / SERVER).parent, options, build_model(options), state.shared)
