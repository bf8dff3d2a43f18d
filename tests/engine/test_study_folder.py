"""What a study's folder at the coordinator holds; a damaged or missing file is told with what to do."""

from pathlib import Path

import pytest

from pfedsam.core.errors import RunError, StoreError
from pfedsam.engine.rounds import RoundPolicy
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
from pfedsam.federation.manifest import read_manifest


def test_revoked_sites_are_kept_twice(tmp_path: Path) -> None:
    assert read_revoked(tmp_path) == set()
    write_revoked(tmp_path, {"south", "north"})
    assert read_revoked(tmp_path) == {"north", "south"}
    (tmp_path / REVOKED).unlink()
    with pytest.raises(StoreError, match="revoke each of them again with `pfedsam coordinator revoke`"):
        read_revoked(tmp_path)


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
