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

from pfedsam.core import sealed
from pfedsam.core.errors import OptionError, RunError, StoreError
from pfedsam.core.options import Options
from pfedsam.core.small_numbers import DEFAULT
from pfedsam.core.tensors import NamedTensors
from pfedsam.engine.scalar_metrics import allowed_metrics
from pfedsam.engine.server_files import RECORDS, SERVER, load_state, refuse_lost_state, save_state
from pfedsam.experiment.build import (
    BuiltModel,
    build_labels,
    build_method,
    build_model,
    build_roster,
    refuse_too_few_sites,
)
from pfedsam.experiment.load import read_config, write_config
from pfedsam.experiment.options import RunOptions
from pfedsam.federation.manifest import StudyManifest, largest_change, shared_tensors, write_manifest
from pfedsam.federation.pipeline.build import build_pipeline
from pfedsam.federation.server import ServerState
from pfedsam.model.backbones.checkpoint import backbone_file
from pfedsam.report.records import RecordWriter, read_records, validations_in
from pfedsam.training.schedule import end_of_training

T = TypeVar("T", bound=Options)
REVOKED = "revoked.json"
"""In the coordinator's folder, beside that of the studies: the sites that may take part in nothing any more."""
_REVOKED_COPY = ".revoked-copy.json"
"""The same once more, so that a list that was lost is not taken for an empty one."""
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
    options = with_min_cases(options)
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
    sealed.write_json(folder.path / _POLICY, policy.model_dump(mode="json"))
    refuse_lost_state(folder.path)
    if not (folder.path / SERVER).exists():
        write_config(folder.path / "config.yaml", options)
        write_manifest(folder.path / "manifest.json", manifest)
        folder.save_state(build_method(options).server.init(shared), manifest)
    folder.write_status("submitted", round_=folder.load_state(manifest).round, rounds=manifest.rounds, sites=[])
    return folder.path


def with_min_cases(options: RunOptions) -> RunOptions:
    """The options of a study between hospitals, in which small numbers stay at the sites where nothing else is said."""
    if options.communication.min_cases is not None:
        return options
    communication = options.communication.model_copy(update={"min_cases": DEFAULT})
    return options.model_copy(update={"communication": communication})


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
        class_tensors=_class_tensors(options, built),
        components={c: names for c, names in built.partition.components.items() if set(names) <= set(shared)},
        pipeline=build_pipeline(options.communication).describe(),
        min_cases=options.communication.least_cases,
        max_change=_largest_change(options, shared),
        scalar_metrics=allowed_metrics(options, built),
    )


def _largest_change(options: RunOptions, shared: NamedTensors) -> float:
    """How far one round may move the shared tensors, by what the sites and the method's server step do."""
    training, values = options.training, sum(tensor.numel() for tensor in shared.values())
    of_a_site = largest_change(shared, training.optimizer.learning_rate, training.steps_per_round)
    return build_method(options).server.largest_change(of_a_site, values)


def _class_tensors(options: RunOptions, built: BuiltModel) -> dict[str, tuple[str, ...]]:
    """The shared tensors that belong to single classes, with the names of these."""
    names, numbers = build_labels(options).names, built.model.class_numbers()
    return {one: tuple(names[n - 1] for n in numbers[one]) for one in built.partition.shared if one in numbers}


def read_revoked(coordinator: Path) -> set[str]:
    """The sites that were revoked; none where none ever was.

    Raises:
        StoreError: the list, or the copy that it is kept in too, is damaged or missing.
    """
    remedy = (
        "It says which sites may take part in nothing: name each of them again by `pfedsam coordinator revoke`, "
        "which writes it anew."
    )
    paths = [coordinator / REVOKED, coordinator / _REVOKED_COPY]
    if not any(path.exists() for path in paths):
        return set()
    first, second = (_read_names(path, remedy) for path in paths)
    if first != second:
        raise StoreError(f"{REVOKED} and its copy {_REVOKED_COPY} name different sites. {remedy}")
    return first


def _read_names(path: Path, remedy: str) -> set[str]:
    content = sealed.read_json(path, remedy)
    names = content.get("sites")
    if set(content) != {"sites"} or not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise StoreError(f"{path.name} is damaged, or of version 0.1. {remedy}")
    return set(names)


def write_revoked(coordinator: Path, sites: set[str]) -> None:
    """Keep the list of revoked sites; a coordinator that runs takes notice within a round."""
    for name in (_REVOKED_COPY, REVOKED):
        sealed.write_json(coordinator / name, {"sites": sorted(sites)})


def read_connected(coordinator: Path) -> list[str]:
    """The sites that are connected, as the coordinator wrote them last; none where its file is missing or damaged."""
    try:
        names = json.loads((coordinator / CONNECTED).read_bytes())
    except (OSError, ValueError, RecursionError):
        return []
    return [str(name) for name in names] if isinstance(names, list) else []


class StudyFolder:
    """Reads and writes what a study's folder holds."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read_policy(self, kind: type[T]) -> T:
        """The round policy of the study.

        Raises:
            StoreError: it is missing or damaged.
        """
        remedy = "Submit the study again, with the quorum and the deadlines that it had; no round is lost."
        content = sealed.read_json(self.path / _POLICY, remedy)
        try:
            return kind.model_validate(content)
        except ValidationError as error:
            raise StoreError(f"{_POLICY} is damaged: it is not the policy of a study. {remedy}") from error

    def load_state(self, manifest: StudyManifest) -> ServerState:
        """The state after the last committed round.

        Raises:
            RunError: it belongs to another study.
        """
        return load_state(self.path, manifest.study)

    def save_state(self, state: ServerState, manifest: StudyManifest, records: RecordWriter | None = None) -> None:
        """Commit a round: with this rename it is done. The states before it are kept for `roll_back`, `EARLIER_STATES` of them."""
        self._keep_state(manifest)
        save_state(self.path, manifest.study, state, records, mode=0o700)

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
        if current.round >= self._ends():
            raise RunError(
                f"the study has had all of its rounds. The state after {to_round} round(s) lies in "
                f"{self._earlier.relative_to(self.path)}; submit a new study to train on."
            )
        earlier = load_state(self.path, manifest.study, self._earlier.relative_to(self.path) / _state_name(to_round))
        with RecordWriter(self.path / "records.jsonl") as records:
            records.truncate_after(current.round - 1)
            records.write({"kind": "rollback", "round": current.round, "to_round": to_round})
            state = replace(earlier, round=current.round + 1)
            self.save_state(state, manifest, records)
        return state

    def _ends(self) -> int:
        """The number of rounds after which the study ends, as far as its validations determine it."""
        training, path = read_config(self.path / "config.yaml").training, self.path / RECORDS
        return end_of_training(training, validations_in(read_records(path)) if path.exists() else {})

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
        """The number of training cases of every site that ever joined; a site's weight cannot change in a study.

        Raises:
            StoreError: the file is damaged, or missing although a record is of a site's join.
        """
        path = self.path / _REGISTERED
        if not path.exists() and not self._has_records():
            return {}
        remedy = (
            "It holds what each site weighs in the average: bring it back from a copy of the study's folder; without one, submit the "
            "study to a new coordinator's folder."
        )
        content = sealed.read_json(path, remedy)
        if not all(type(cases) is int and cases > 0 for cases in content.values()):
            raise StoreError(f"{path.name} is damaged: it does not hold the number of cases of each site. {remedy}")
        return content

    def _has_records(self) -> bool:
        """Whether a round was recorded; registrations are written before that."""
        path = self.path / RECORDS
        return path.exists() and any(row["kind"] in ("round", "aggregate") for row in read_records(path))

    def write_registered(self, registered: Mapping[str, int]) -> None:
        """Keep the registrations."""
        sealed.write_json(self.path / _REGISTERED, dict(sorted(registered.items())))

    def write_status(self, state: str, *, round_: int, rounds: int, sites: Sequence[str], reason: str = "") -> None:
        """Say where the study stands, for `pfedsam coordinator status`."""
        content = {"state": state, "round": round_, "rounds": rounds, "sites": list(sites), "reason": reason}
        now = datetime.now(UTC).isoformat(timespec="seconds")
        sealed.write_json(self.path / STATUS, {**content, "time": now})

    def read_status(self) -> dict[str, Any]:
        """Where the study stands.

        Raises:
            StoreError: the file is missing or damaged.
        """
        remedy = f"Submit study {self.path.name} again: it goes on from its last committed round."
        content = sealed.read_json(self.path / STATUS, remedy)
        kinds = {"state": str, "round": int, "rounds": int, "sites": list, "reason": str, "time": str}
        if set(content) != set(kinds) or not all(isinstance(content[key], kind) for key, kind in kinds.items()):
            raise StoreError(f"{STATUS} is damaged: it does not say where a study stands. {remedy}")
        return content
