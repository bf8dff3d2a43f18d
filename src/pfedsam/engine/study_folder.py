"""A study's folder at the coordinator: manifest, policy, the shared parameters, records, status; nothing from a site's data.

It has the form of a run's folder (`engine.run`), so that `pfedsam report` reads it too; what stands in `sites/` there
stays at the sites here.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from pfedsam.core import atomic
from pfedsam.core.errors import OptionError, RunError
from pfedsam.core.options import Options
from pfedsam.core.tensors import NamedTensors
from pfedsam.engine.scalar_metrics import allowed_metrics
from pfedsam.engine.server_files import SERVER, load_state, save_state
from pfedsam.experiment.build import BuiltModel, build_method, build_model, build_roster, refuse_too_few_sites
from pfedsam.experiment.load import dump_options
from pfedsam.experiment.options import RunOptions
from pfedsam.federation.manifest import StudyManifest, largest_change, shared_tensors, write_manifest
from pfedsam.federation.server import ServerState
from pfedsam.model.backbones.checkpoint import backbone_file
from pfedsam.report.records import RecordWriter

T = TypeVar("T", bound=Options)
J = TypeVar("J", list[Any], dict[str, Any])
REVOKED = "revoked.json"
"""In the coordinator's folder, beside that of the studies: the sites that may take part in nothing any more."""
CONNECTED = "connected.json"
"""Beside it: the sites that are connected now."""
STUDIES_FOLDER = "studies"
"""Beside it: a folder for each study."""
EARLIER_STATES = 3
"""How many committed states are kept beside the current one."""
_POLICY, _REGISTERED, STATUS = "policy.json", "registered.json", "status.json"


def create_study(options: RunOptions, root: Path, policy: Options) -> Path:
    """Make the folder of a study under `root`, or find the one that is there; the study's id is its name.

    Raises:
        OptionError: the method cannot run over several machines, or not with so few sites.
        CheckpointError: the backbone cannot be loaded.
    """
    if build_roster(options).pool:
        raise OptionError(
            f"method {options.method!r} needs all images in one place; use pfedsam, fedavg or local-only."
        )
    refuse_too_few_sites(options)
    built = build_model(options)
    content = options.model_dump(mode="json", exclude={"runtime": True, "data": {"sites", "split_folder"}})
    if file := backbone_file(options.model.backbone):
        content["model"]["backbone"] = (
            file.name
        )  # its hash is in the manifest; where it lies here is nobody else's business
    study = study_id(content, built.backbone)
    manifest, shared = build_manifest(options, built, study, content), built.start("shared")
    folder = StudyFolder(root / study)
    folder.path.mkdir(parents=True, exist_ok=True, mode=0o700)
    atomic.write_json(folder.path / _POLICY, policy.model_dump(mode="json"))
    if not (folder.path / SERVER).exists():
        atomic.write_text(folder.path / "config.yaml", dump_options(options))
        write_manifest(folder.path / "manifest.json", manifest)
        folder.save_state(build_method(options).server.init(shared), manifest)
    folder.write_status("submitted", round_=folder.load_state(manifest).round, rounds=manifest.rounds, sites=[])
    return folder.path


def _state_name(round_: int) -> str:
    return f"after-{round_:06d}.safetensors"


def study_id(configuration: Mapping[str, Any], backbone: str) -> str:
    """What identifies a study: its configuration as sites get to see it, and its backbone's hash."""
    return hashlib.sha256(json.dumps([configuration, backbone], sort_keys=True).encode()).hexdigest()[:16]


def build_manifest(options: RunOptions, built: BuiltModel, study: str, content: dict[str, Any]) -> StudyManifest:
    """The manifest of a study.

    Args:
        options: of the study.
        built: its model.
        study: its id.
        content: the configuration as sites get to see it.
    """
    shared = built.start("shared")
    return StudyManifest(
        study=study,
        name=options.name,
        method=options.method,
        rounds=options.training.rounds,
        configuration=content,
        backbone=built.backbone,
        tensors=shared_tensors(shared),
        components={c: names for c, names in built.partition.components.items() if set(names) <= set(shared)},
        communication=options.communication,
        max_change=_largest_change(options, shared),
        scalar_metrics=allowed_metrics(options, built),
    )


def _largest_change(options: RunOptions, shared: NamedTensors) -> float:
    """How far one round may move the shared tensors, by what the sites and the method's server step do."""
    training, values = options.training, sum(tensor.numel() for tensor in shared.values())
    of_a_site = largest_change(shared, training.optimizer.learning_rate, training.steps_per_round)
    return build_method(options).server.largest_change(of_a_site, values)


def read_revoked(coordinator: Path) -> set[str]:
    """The sites that were revoked.

    Raises:
        RunError: the list is damaged; nobody is let in on a guess.
    """
    path = coordinator / REVOKED
    return set(_read_json(path, list)) if path.exists() else set()


def write_revoked(coordinator: Path, sites: set[str]) -> None:
    """Keep the list of revoked sites; a coordinator that runs takes notice within a round."""
    atomic.write_json(coordinator / REVOKED, sorted(sites))


def read_connected(coordinator: Path) -> list[str]:
    """The sites that are connected, as the coordinator wrote them last; none where its file is missing or damaged."""
    try:
        return [str(site) for site in _read_json(coordinator / CONNECTED, list)]
    except RunError:
        return []


def _read_json(path: Path, kind: type[J]) -> J:
    """The list or table in a file.

    Raises:
        RunError: it cannot be read, or holds something else.
    """
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(
            f"{path.name} in {path.parent.name!r} is damaged or missing: restore it, or submit the study again."
        ) from error
    if not isinstance(content, kind):
        raise RunError(
            f"{path.name} in {path.parent.name!r} does not hold what it should: restore it, or submit the study again."
        )
    return content


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
        """Commit a round: with this rename it is done. The states before it are kept for `roll_back`, `EARLIER_STATES` of them."""
        self._keep_state(manifest)
        save_state(self.path, manifest.study, state, mode=0o700)

    def earlier_states(self) -> list[int]:
        """After how many rounds each of the states that are kept stood, the newest last."""
        return sorted(int(path.stem.removeprefix("after-")) for path in self._earlier.glob("after-*.safetensors"))

    def roll_back(self, manifest: StudyManifest, to_round: int) -> ServerState:
        """Make the shared parameters those after `to_round` rounds again, and commit them as the state of the round that comes next.

        The number of the round does not go back: sites train each round once, and what they learnt meanwhile stays with them. The round
        that the coordinator was in is left out.

        Raises:
            RunError: there is no such state, or the study has no round left.
        """
        current = self.load_state(manifest)
        if to_round not in self.earlier_states():
            kept = ", ".join(map(str, self.earlier_states())) or "none"
            raise RunError(f"the state after {to_round} round(s) is not kept; kept are those after {kept} round(s).")
        if current.round >= manifest.rounds:
            raise RunError(
                f"the study has had all of its rounds. The state after {to_round} round(s) lies in "
                f"{self._earlier.relative_to(self.path)}; submit a new study to train on."
            )
        earlier = load_state(self.path, manifest.study, self._earlier.relative_to(self.path) / _state_name(to_round))
        with RecordWriter(self.path / "records.jsonl") as records:
            records.truncate_after(current.round - 1)
            records.write({"kind": "rollback", "round": current.round, "to_round": to_round})
        state = replace(earlier, round=current.round + 1)
        self.save_state(state, manifest)
        return state

    @property
    def _earlier(self) -> Path:
        return (self.path / SERVER).parent / "earlier"

    def _keep_state(self, manifest: StudyManifest) -> None:
        """Link the committed state under its number; the rename that follows leaves the link as it is."""
        path = self.path / SERVER
        if not path.exists():
            return
        self._earlier.mkdir(exist_ok=True, mode=0o700)
        kept = self._earlier / _state_name(self.load_state(manifest).round)
        kept.unlink(missing_ok=True)
        kept.hardlink_to(path)
        for old in self.earlier_states()[:-EARLIER_STATES]:
            (self._earlier / _state_name(old)).unlink(missing_ok=True)

    def read_registered(self) -> dict[str, int]:
        """The number of training cases of every site that ever joined; a site's weight cannot change in a study."""
        path = self.path / _REGISTERED
        return _read_json(path, dict) if path.exists() else {}

    def write_registered(self, registered: Mapping[str, int]) -> None:
        """Keep the registrations."""
        atomic.write_json(self.path / _REGISTERED, dict(sorted(registered.items())))

    def write_status(self, state: str, *, round_: int, rounds: int, sites: Sequence[str], reason: str = "") -> None:
        """Say where the study stands, for `pfedsam coordinator status`."""
        content = {"state": state, "round": round_, "rounds": rounds, "sites": list(sites), "reason": reason}
        now = datetime.now(UTC).isoformat(timespec="seconds")
        atomic.write_json(self.path / STATUS, {**content, "time": now})

    def read_status(self) -> dict[str, Any]:
        """Where the study stands.

        Raises:
            RunError: its file is damaged.
        """
        status = _read_json(self.path / STATUS, dict)
        if not {"state", "round", "rounds", "sites", "reason"} <= status.keys():
            raise RunError(f"{STATUS} of study {self.path.name} is not whole: submit the study again.")
        return status
