"""The folder of a study at the coordinator; the message about a damaged or missing file says what to do."""

import errno
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch

from pfedsam.core import sealed
from pfedsam.core.errors import RunError, StoreError
from pfedsam.engine.round_policy import RoundPolicy
from pfedsam.engine.study_folder import (
    REVOKED,
    StudyFolder,
    create_study,
    read_connected,
    read_revoked,
    study_id,
    write_revoked,
)
from pfedsam.experiment.options import RunOptions
from pfedsam.federation.manifest import StudyManifest, read_manifest
from pfedsam.federation.server import ServerState
from pfedsam.report.records import RecordWriter


def test_revoked_sites_are_kept_twice(tmp_path: Path) -> None:
    assert read_revoked(tmp_path) == set()
    write_revoked(tmp_path, {"south", "north"})
    assert read_revoked(tmp_path) == {"north", "south"}
    (tmp_path / REVOKED).unlink()
    with pytest.raises(StoreError, match="revoke each of them again with `pfedsam coordinator revoke`"):
        read_revoked(tmp_path)


def test_the_revoked_sites_are_not_read_while_they_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A coordinator that read them between the two files would end."""
    write_revoked(tmp_path, {"south"})
    halfway, go_on, write = Event(), Event(), sealed.write_json

    def slow(path: Path, content: Mapping[str, Any]) -> None:
        write(path, content)
        halfway.set()
        go_on.wait(30)

    monkeypatch.setattr(sealed, "write_json", slow)
    with ThreadPoolExecutor(2) as pool:
        writing = pool.submit(write_revoked, tmp_path, {"north", "south"})
        assert halfway.wait(30)
        reading = pool.submit(read_revoked, tmp_path)
        wait([reading], 0.3)
        go_on.set()
        assert reading.result(30) == {"north", "south"}
        writing.result(30)


def test_connected_sites_are_none_where_the_file_is_damaged(tmp_path: Path) -> None:
    assert read_connected(tmp_path) == []
    (tmp_path / "connected.json").write_text('["north"]')
    assert read_connected(tmp_path) == ["north"]
    (tmp_path / "connected.json").write_text("[")
    assert read_connected(tmp_path) == []


def test_a_study_is_its_configuration_and_its_backbone() -> None:
    assert study_id({"a": 1, "b": 2}, "x") == study_id({"b": 2, "a": 1}, "x")
    assert len({study_id({"a": 1}, "x"), study_id({"a": 2}, "x"), study_id({"a": 1}, "y")}) == 3


def test_the_same_study_is_found_again_and_its_rounds_are_kept(tmp_path: Path, toy_options: RunOptions) -> None:
    path = create_study(toy_options, tmp_path, RoundPolicy(quorum=2))
    assert create_study(toy_options, tmp_path, RoundPolicy(quorum=3)) == path
    folder, manifest = StudyFolder(path), read_manifest(path / "manifest.json")
    assert folder.read_policy(RoundPolicy).quorum == 3
    assert folder.read_status()["state"] == "submitted"
    state = folder.load_state(manifest)
    assert (state.round, folder.earlier_states()) == (0, [])
    for round_ in range(1, 6):
        folder.save_state(type(state)(round_, state.shared, state.memory), manifest)
    assert folder.earlier_states() == [2, 3, 4]
    with pytest.raises(RunError, match=r"after 1 round\(s\) is not stored; stored are the states after 2, 3, 4"):
        folder.roll_back(manifest, 1)


def test_registrations_are_whole_numbers_of_cases(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path)
    assert folder.read_registered() == {}
    folder.write_registered({"south": 3, "north": 4})
    assert folder.read_registered() == {"north": 4, "south": 3}
    folder.write_registered({"south": 0})
    with pytest.raises(StoreError, match="does not contain the number of cases of each site"):
        folder.read_registered()


def after_rounds(path: Path, rounds: int) -> StudyFolder:
    """The study's folder after this many rounds; the parameters after round n all have the value n."""
    folder, manifest = StudyFolder(path), read_manifest(path / "manifest.json")
    for round_ in range(1, rounds + 1):
        commit(folder, manifest, round_)
    return folder


def commit(folder: StudyFolder, manifest: StudyManifest, round_: int) -> None:
    shared = {name: torch.full_like(value, round_) for name, value in folder.load_state(manifest).shared.items()}
    with RecordWriter(folder.path / "records.jsonl") as records:
        records.write({"kind": "timing", "round": round_ - 1, "train_s": 1.0})
        folder.save_state(ServerState(round_, shared), manifest, records)


def value_in(folder: StudyFolder, manifest: StudyManifest) -> float:
    return next(iter(folder.load_state(manifest).shared.values())).reshape(-1)[0].item()


@pytest.fixture
def ten_rounds(tmp_path: Path, toy_options: RunOptions) -> Path:
    training = toy_options.training.model_copy(update={"rounds": 10})
    return create_study(toy_options.model_copy(update={"training": training}), tmp_path, RoundPolicy())


def test_each_rollback_goes_further_back_and_none_returns_to_what_was_left(ten_rounds: Path) -> None:
    manifest, folder = read_manifest(ten_rounds / "manifest.json"), after_rounds(ten_rounds, 5)
    found = []
    while kept := folder.earlier_states():
        folder.roll_back(manifest, kept[-1])
        found.append(value_in(folder, manifest))
    assert found == [4, 3, 2]
    assert folder.load_state(manifest).round == 8
    with pytest.raises(RunError, match=r"stored are the states after none round.s., and those after 2, 3, 4, 5, 6, 7,"):
        folder.roll_back(manifest, 1)
    folder.roll_back(manifest, 4)  # by its number, a state that was left can be chosen
    assert value_in(folder, manifest) == 4


def test_a_rollback_after_further_rounds_does_not_return_to_what_an_earlier_one_left(ten_rounds: Path) -> None:
    manifest, folder = read_manifest(ten_rounds / "manifest.json"), after_rounds(ten_rounds, 5)
    folder.roll_back(manifest, 3)
    commit(folder, manifest, 7)
    assert folder.earlier_states() == [2, 6]
    assert set(folder.stored_states()) >= {3, 4, 5}
    found = []
    for _ in range(2):
        folder.roll_back(manifest, folder.earlier_states()[-1])
        found.append(value_in(folder, manifest))
    assert found == [3, 2]


def test_states_that_were_left_are_removed_with_the_older_ones(ten_rounds: Path) -> None:
    manifest, folder = read_manifest(ten_rounds / "manifest.json"), after_rounds(ten_rounds, 5)
    folder.roll_back(manifest, 4)
    for round_ in (7, 8, 9):
        commit(folder, manifest, round_)
    assert folder.earlier_states() == folder.stored_states() == [6, 7, 8]


def test_a_rollback_that_was_killed_before_its_commit_left_nothing_behind(ten_rounds: Path) -> None:
    folder = after_rounds(ten_rounds, 5)
    with RecordWriter(ten_rounds / "records.jsonl") as records:
        records.write({"kind": "rollback", "round": 5, "to_round": 2})
    assert folder.earlier_states() == [2, 3, 4]


def test_the_states_of_a_study_that_an_earlier_version_rolled_back(ten_rounds: Path) -> None:
    """Before, the state that was left behind replaced the oldest good one."""
    manifest, folder = read_manifest(ten_rounds / "manifest.json"), after_rounds(ten_rounds, 5)
    folder.roll_back(manifest, 4)
    (ten_rounds / "shared" / "earlier" / "after-000002.safetensors").unlink()
    assert folder.stored_states() == [3, 4, 5]
    assert folder.earlier_states() == [3]


def test_a_folder_on_a_file_system_without_hard_links_keeps_earlier_states(
    ten_rounds: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, target: Path) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    manifest, folder = read_manifest(ten_rounds / "manifest.json"), after_rounds(ten_rounds, 5)
    assert folder.earlier_states() == [2, 3, 4]
    folder.roll_back(manifest, 3)
    assert value_in(folder, manifest) == 3
