"""A study's folder at the coordinator: manifest, policy, shared parameters, records and status, but no data of a site.

It has the same layout as a run's folder (`engine.run`), so that `pfedsam report` can read it; the content of `sites/` stays at the sites.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeVar

from pydantic import ValidationError

from pfedsam.core import atomic, sealed
from pfedsam.core.errors import OptionError, RunError, StoreError
from pfedsam.core.lock import in_turn
from pfedsam.core.options import Options
from pfedsam.core.small_numbers import DEFAULT
from pfedsam.core.tensors import NamedTensors
from pfedsam.engine.scalar_metrics import allowed_metrics
from pfedsam.engine.server_files import (
    EARLIER,
    RECORDS,
    SERVER,
    earlier_states,
    load_state,
    read_server,
    refuse_lost_state,
    save_state,
)
from pfedsam.experiment.build import (
    BuiltModel,
    build_method,
    build_model,
    refuse_too_few_sites,
)
from pfedsam.experiment.load import read_config, write_config
from pfedsam.experiment.options import RunOptions
from pfedsam.federation.manifest import StudyManifest, largest_change, shared_tensors, write_manifest
from pfedsam.federation.pipeline.build import build_pipeline
from pfedsam.federation.server import ServerState, initial_state
from pfedsam.model.backbones.checkpoint import backbone_file
from pfedsam.report.records import RecordWriter, read_records, validations_in
from pfedsam.training.schedule import end_of_training

T = TypeVar("T", bound=Options)
REVOKED = "revoked.json"
"""A file in the coordinator's folder with the revoked sites, which are excluded from all studies."""
_REVOKED_COPY = ".revoked-copy.json"
"""A copy of this file, so that the loss of one of the two is noticed."""
_REVOKED_LOCK = ".revoked.lock"
"""The lock file of both, because a running coordinator may read them while a command writes them."""
CONNECTED = "connected.json"
"""A file in the coordinator's folder with the sites that are connected now."""
STUDIES_FOLDER = "studies"
"""The folder in the coordinator's folder that contains a folder for each study."""
EARLIER_STATES = 3
"""Number of committed states that are kept in addition to the current one."""
AGAIN = "again"
"""A file of this name in a study's folder requests a new job, which continues with all sites and rules that the folder then has."""
STOP = "stop"
"""A file of this name in a study's folder lets a running coordinator stop the study; a new submission removes it."""
STOPPED: Final = "the coordinator's operator stopped it; submit the study again to continue"
UNFINISHED: Final = ("submitted", "running", "interrupted")
"""The states of a study that the coordinator runs, or will."""
CONFIG, _POLICY, _REGISTERED, STATUS = "config.yaml", "policy.json", "registered.json", "status.json"


@dataclass(frozen=True)
class PreparedStudy:
    """A study that is complete, but not written to a coordinator's folder yet."""

    options: RunOptions
    manifest: StudyManifest
    state: ServerState
    """The state before the first round."""


def prepare_study(options: RunOptions) -> PreparedStudy:
    """The study with these options.

    Raises:
        OptionError: the method cannot run over several machines, or needs more sites.
        CheckpointError: the backbone cannot be loaded.
    """
    if build_method(options).roster.pool:
        raise OptionError(
            f"method {options.method!r} needs all images in one place; use pfedsam, fedavg or local-only."
        )
    refuse_too_few_sites(options)
    options = with_min_cases(options)
    built = build_model(options)
    content = options.model_dump(mode="json", exclude={"runtime": True, "data": {"sites", "split_folder"}})
    if file := backbone_file(options.model.backbone):
        # Sites get the backbone's hash in the manifest, but not its path on this machine.
        content["model"]["backbone"] = file.name
    manifest = build_manifest(options, built, study_id(content, built.backbone), content)
    state = initial_state(build_method(options).server, built.start("shared"), manifest.spec)
    return PreparedStudy(options, manifest, state)


def create_study(options: RunOptions, root: Path, policy: Options) -> Path:
    """Make the folder of a study under `root`, or use the existing one, as `store_study` does.

    Raises:
        OptionError: the method cannot run over several machines, or needs more sites.
        CheckpointError: the backbone cannot be loaded.
    """
    return store_study(prepare_study(options), root, policy)


def store_study(study: PreparedStudy, root: Path, policy: Options) -> Path:
    """Make the folder of a study under `root`, or use the existing one; the name of the folder is the study's id.

    In an existing folder the policy and the configuration are replaced. The new configuration can only name other sites or other paths,
    because the study's id follows from everything else; `engine.submission` checks whether the change of the sites is allowed.
    """
    folder, manifest = StudyFolder(root / study.manifest.study), study.manifest
    refuse_lost_state(folder.path)
    folder.path.mkdir(parents=True, exist_ok=True, mode=0o700)
    (folder.path / STOP).unlink(missing_ok=True)
    sealed.write_json(folder.path / _POLICY, policy.model_dump(mode="json"))
    write_config(folder.path / CONFIG, study.options)
    if not folder.exists:
        write_manifest(folder.path / "manifest.json", manifest)
        folder.save_state(study.state, manifest)
    folder.write_status("submitted", round_=folder.load_state(manifest).round, rounds=manifest.rounds, sites=[])
    return folder.path


def with_min_cases(options: RunOptions) -> RunOptions:
    """The options of a study between hospitals: unless `communication.min_cases` is set, it gets the default for such studies."""
    if options.communication.min_cases is not None:
        return options
    communication = options.communication.model_copy(update={"min_cases": DEFAULT})
    return options.model_copy(update={"communication": communication})


def _state_name(round_: int) -> str:
    return f"after-{round_:06d}.safetensors"


def study_id(configuration: Mapping[str, Any], backbone: str) -> str:
    """The identity of a study: a digest of the configuration that sites get, and of the backbone's hash."""
    return hashlib.sha256(json.dumps([configuration, backbone], sort_keys=True).encode()).hexdigest()[:16]


def build_manifest(options: RunOptions, built: BuiltModel, study: str, content: dict[str, Any]) -> StudyManifest:
    """The manifest of a study.

    Args:
        options: the options of the study.
        built: the model of the study.
        study: the id of the study.
        content: the configuration that sites get.

    Raises:
        OptionError: a site does not annotate all classes, and the shared model cannot be averaged by class.
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
    """The largest L2 norm by which one round can change the shared tensors, from the sites' training and the method's server step."""
    training, values = options.training, sum(tensor.numel() for tensor in shared.values())
    of_a_site = largest_change(shared, training.optimizer.learning_rate, training.steps_per_round)
    return build_method(options).server.largest_change(of_a_site, values)


def _class_tensors(options: RunOptions, built: BuiltModel) -> dict[str, tuple[str, ...]]:
    """The shared tensors that belong to single classes, each with the names of its classes.

    Raises:
        OptionError: a site does not annotate all classes, and no parameter of the model belongs to single classes.
    """
    names, numbers = options.data.label_map().names, built.model.class_numbers()
    partial = [site for site in options.data.sites if options.data.label_map(site).not_annotated]
    if built.partition.shared and partial and not numbers:
        raise OptionError(
            f"site {partial[0]!r} does not annotate all classes (not_annotated), and the U-Net without residual units "
            "(model.unet.residual_units: 0) has no layer that is averaged by class, so that this class would not be learnt. Set "
            "model.unet.residual_units to 1 or more, or choose a method that shares nothing, such as unet-local."
        )
    return {one: tuple(names[n - 1] for n in numbers[one]) for one in built.partition.shared if one in numbers}


def read_revoked(coordinator: Path) -> set[str]:
    """The revoked sites; an empty set if no site was ever revoked.

    Raises:
        StoreError: the list or its copy is damaged or missing.
    """
    remedy = (
        "It lists the sites that are excluded from all studies: revoke each of them again with `pfedsam coordinator revoke`, "
        "which writes a new list."
    )
    paths = [coordinator / REVOKED, coordinator / _REVOKED_COPY]
    if not any(path.exists() for path in paths):
        return set()
    with in_turn(coordinator / _REVOKED_LOCK):
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
    """Write the list of revoked sites; a running coordinator applies it within one round."""
    with in_turn(coordinator / _REVOKED_LOCK):
        for name in (_REVOKED_COPY, REVOKED):
            sealed.write_json(coordinator / name, {"sites": sorted(sites)})


def read_connected(coordinator: Path) -> list[str]:
    """The connected sites in the file that the coordinator wrote last; an empty list if the file is missing or damaged."""
    try:
        names = json.loads((coordinator / CONNECTED).read_bytes())
    except (OSError, ValueError, RecursionError):
        return []
    return [str(name) for name in names] if isinstance(names, list) else []


class StudyFolder:
    """Reads and writes the files in a study's folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def exists(self) -> bool:
        """Whether the study has a committed state; the folder of a submission that was interrupted has none."""
        return (self.path / SERVER).exists()

    def read_sites(self) -> list[str]:
        """The names of the study's sites, in the order of its configuration.

        Raises:
            StoreError: the configuration is missing or damaged.
        """
        return list(read_config(self.path / CONFIG).data.sites)

    def request_new_job(self) -> None:
        """Let a running job of the study end after its current round; the next one reads sites and policy again."""
        atomic.write_text(self.path / AGAIN, "")

    def request_stop(self, *, running: bool) -> bool:
        """Stop the study after its last committed round, also one that has not begun; return False if it has stopped or ended already.

        Args:
            running: whether the coordinator is running, which then stops the study itself.
        """
        now = self.read_status()
        if now["state"] not in UNFINISHED:
            return False
        if running:
            atomic.write_text(self.path / STOP, "")
        else:
            self.write_status("stopped", round_=now["round"], rounds=now["rounds"], sites=now["sites"], reason=STOPPED)
        return True

    def read_policy(self, kind: type[T]) -> T:
        """The round policy of the study.

        Raises:
            StoreError: the policy is missing or damaged.
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
            RunError: the state belongs to another study.
        """
        return load_state(self.path, manifest.study)

    def save_state(self, state: ServerState, manifest: StudyManifest, records: RecordWriter | None = None) -> None:
        """Commit a round by renaming its state into place; the last `EARLIER_STATES` states are kept for `roll_back`."""
        self._keep_state(manifest, state.round)
        save_state(self.path, manifest.study, state, records, backbone=manifest.backbone, mode=0o700)

    def stored_states(self) -> list[int]:
        """The number of rounds after which each of the stored states was committed, in ascending order."""
        return [int(path.stem.removeprefix("after-")) for path in earlier_states(self.path)]

    def earlier_states(self) -> list[int]:
        """The stored states that led to the present one, without those that a rollback left behind; the last is one step back.

        Raises:
            StoreError: the present state or the records are damaged or missing.
        """
        stored = self.stored_states()
        if not stored:
            return []
        left = self._left_behind(int(read_server(self.path)[1]["round"]))
        return [number for number in stored if number not in left]

    def _left_behind(self, round_: int) -> set[int]:
        """The numbers of the states that rollbacks before this round have left, or have made the present state again."""
        path = self.path / RECORDS
        rows = read_records(path) if path.exists() else []
        back = [row for row in rows if row["kind"] == "rollback" and row["round"] < round_]
        return {number for row in back for number in range(row["to_round"], row["round"] + 1)}

    def roll_back(self, manifest: StudyManifest, to_round: int | None, skip_to: int | None = None) -> ServerState:
        """Reset the shared parameters to those after `to_round` rounds, and commit them as the state before the next round.

        The number of the round does not go back, because sites train each round only once; their local parameters are not reset. The
        unfinished round of the coordinator is skipped. The states after `to_round` are left behind: they stay stored for a while, but are
        no earlier states any more, so that a further rollback goes further back.

        Args:
            manifest: the manifest of the study.
            to_round: the number of rounds after which the state was stored; None for the present state.
            skip_to: the number of rounds after which the study continues, if the sites have trained rounds that this folder does not
                have; None to skip the unfinished round only.

        Raises:
            RunError: there is no such state, or the study has no round left, or not the round to skip to.
        """
        current = self.load_state(manifest)
        if to_round is not None and to_round not in self.stored_states():
            raise RunError(f"the state after {to_round} round(s) is not stored; stored are {self.describe_states()}.")
        if current.round >= self.ends():
            raise RunError(
                f"all rounds of the study are done. The state after {to_round} round(s) is in "
                f"{EARLIER.as_posix()}; submit a new study to continue the training."
            )
        if skip_to is not None and not current.round < skip_to < self.ends():
            raise RunError(
                f"the study cannot continue with round {skip_to + 1}: give a round after {current.round + 1} and not after {self.ends()}. "
                "If the sites have trained all rounds, they keep their models; submit a new study to continue the training."
            )
        following = current.round + 1 if skip_to is None else skip_to
        earlier = current
        if to_round is not None:
            earlier = load_state(self.path, manifest.study, EARLIER / _state_name(to_round))
        with RecordWriter(self.path / RECORDS) as records:
            records.truncate_after(current.round - 1)
            to = current.round if to_round is None else to_round
            records.write({"kind": "rollback", "round": following - 1, "to_round": to})
            state = replace(earlier, round=following)
            self.save_state(state, manifest, records)
        return state

    def describe_states(self) -> str:
        """The stored states in words, those that rollbacks have left behind separately."""
        kept = self.earlier_states()
        left = [number for number in self.stored_states() if number not in kept]
        told = f"the states after {', '.join(map(str, kept)) or 'none'} round(s)"
        return f"{told}, and those after {', '.join(map(str, left))}, which a rollback has left" if left else told

    def ends(self) -> int:
        """The number of rounds after which the study ends, as far as its validations determine it."""
        training, path = read_config(self.path / CONFIG).training, self.path / RECORDS
        return end_of_training(training, validations_in(read_records(path)) if path.exists() else {})

    @property
    def _earlier(self) -> Path:
        return self.path / EARLIER

    def _keep_state(self, manifest: StudyManifest, next_round: int) -> None:
        """Keep the committed state under its number; the following rename does not change it.

        The states that a rollback left behind do not count among the `EARLIER_STATES`, and are removed together with the older ones.
        """
        path = self.path / SERVER
        if not path.exists():
            return
        self._earlier.mkdir(exist_ok=True, mode=0o700)
        atomic.keep_copy(path, self._earlier / _state_name(self.load_state(manifest).round))
        stored, left = self.stored_states(), self._left_behind(next_round)
        good = [number for number in stored if number not in left]
        oldest = min(good[-EARLIER_STATES:], default=0)
        for old in [number for number in stored if number < oldest]:
            (self._earlier / _state_name(old)).unlink(missing_ok=True)

    def read_registered(self) -> dict[str, int]:
        """The number of training cases of every site that has ever joined; a site's weight cannot change in a study.

        Raises:
            StoreError: the file is damaged, or missing although rounds were recorded.
        """
        path = self.path / _REGISTERED
        if not path.exists() and not self._has_records():
            return {}
        remedy = (
            "It contains the weight of each site in the average: restore it from a copy of the study's folder; if there is none, submit "
            "the study in a new coordinator's folder."
        )
        content = sealed.read_json(path, remedy)
        if not all(type(cases) is int and cases > 0 for cases in content.values()):
            raise StoreError(f"{path.name} is damaged: it does not contain the number of cases of each site. {remedy}")
        return content

    def _has_records(self) -> bool:
        """Whether a round was recorded; the registrations are written before the first record of a round."""
        path = self.path / RECORDS
        return path.exists() and any(row["kind"] in ("round", "aggregate") for row in read_records(path))

    def write_registered(self, registered: Mapping[str, int]) -> None:
        """Write the numbers of training cases by site."""
        sealed.write_json(self.path / _REGISTERED, dict(sorted(registered.items())))

    def write_status(self, state: str, *, round_: int, rounds: int, sites: Sequence[str], reason: str = "") -> None:
        """Write the status of the study, for `pfedsam coordinator status`."""
        content = {"state": state, "round": round_, "rounds": rounds, "sites": list(sites), "reason": reason}
        now = datetime.now(UTC).isoformat(timespec="seconds")
        sealed.write_json(self.path / STATUS, {**content, "time": now})

    def read_status(self) -> dict[str, Any]:
        """The status of the study.

        Raises:
            StoreError: the file is missing or damaged.
        """
        remedy = f"Submit study {self.path.name} again: it continues from its last committed round."
        content = sealed.read_json(self.path / STATUS, remedy)
        kinds = {"state": str, "round": int, "rounds": int, "sites": list, "reason": str, "time": str}
        if set(content) != set(kinds) or not all(isinstance(content[key], kind) for key, kind in kinds.items()):
            raise StoreError(f"{STATUS} is damaged: it does not contain the status of a study. {remedy}")
        return content
