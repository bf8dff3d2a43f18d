import contextlib
import errno
import json
import os
import shutil
import stat
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pfedsam.core import tensors
from pfedsam.core.errors import StoreError
from pfedsam.core.tensors import digest
from pfedsam.federation.site_store import MIGRATIONS, SCHEMA, SiteState, SiteStore


def state(round, phase="local", value=None):
    local = {"moe.up": torch.full((3, 2), float(round if value is None else value)), "moe.router": torch.ones(2)}
    optimizer = {f"{name}.exp_avg": tensor / 2 for name, tensor in local.items()} | {
        "rng": torch.Generator().manual_seed(round).get_state()
    }
    shared = {"lora.a": torch.full((2,), round / 3)}
    uses = "shared" if round % 2 else "personal"
    return SiteState(
        "study-1", "north", round, phase, local, optimizer, shared, shared, round or None, round / 3, uses, round > 1
    )


def same(one, other):
    return (
        digest(one.local) == digest(other.local)
        and digest(one.optimizer) == digest(other.optimizer)
        and digest(one.memory) == digest(other.memory)
        and digest(one.shared) == digest(other.shared)
        and _described(one) == _described(other)
    )


def _described(state):
    return (
        state.study,
        state.site,
        state.round,
        state.phase,
        state.shared_round,
        state.best,
        state.uses,
        state.kept,
    )


@pytest.fixture
def store(tmp_path):
    return SiteStore(tmp_path / "runs" / "north")


def test_a_new_site_has_no_state(store):
    assert store.load() is None


def test_the_last_state_comes_back_equal(store):
    for round in range(3):
        store.commit(state(round))
    assert same(store.load(), state(2))


def test_a_state_without_tensors_comes_back(store):
    empty = SiteState("study-1", "north", 0, "global", {}, {})
    store.commit(empty)
    assert same(store.load(), empty)


def test_two_generations_stay_and_one_can_go_back_a_round(store):
    for round in range(5):
        store.commit(state(round))
    assert len(list(store.folder.iterdir())) == 2
    assert same(store.load(round=3), state(3))
    assert same(store.load(round=4), state(4))
    assert store.load(round=2) is None


def test_a_round_that_was_done_again_is_the_one_that_counts(store):
    store.commit(state(0))
    store.commit(state(1))
    store.commit(state(1, value=9))
    assert same(store.load(round=1), state(1, value=9))


@pytest.mark.parametrize("version", range(1, SCHEMA + 1))
def test_a_state_that_any_version_stored_is_read_and_goes_on_in_this_one(tmp_path, version):
    """The files were written by the package as it was then; none of them may ever be changed."""
    shutil.copytree(Path(__file__).parent / "stored" / f"schema-{version}", tmp_path / "state")
    index = Path(__file__).parent / "stored" / f"schema-{version}.json"
    if index.exists():  # since version 3
        shutil.copy(index, tmp_path / "state.json")
    store = SiteStore(tmp_path / "state")
    found = store.load()
    assert (found.study, found.site, found.round, found.phase) == ("0123456789abcdef", "north", 4, "round")
    assert found.local["moe.up"].tolist() == [[0.5, -1.0], [2.0, 0.25]]
    assert found.optimizer["local:moe.up:step"].item() == 7.0
    kept = {1: ({}, None, None), 2: ({"lora.a": [0.5, 0.75]}, 3, 0.625)}[min(version, 2)]
    assert ({name: value.tolist() for name, value in found.shared.items()}, found.shared_round, found.best) == kept
    store.commit(replace(found, round=5))
    assert _versions(store) == [version, SCHEMA]
    assert same(store.load(), replace(found, round=5))
    assert same(store.rewind(4), found)  # a coordinator that stands a round before the upgrade


def test_the_model_that_version_3_named_by_a_phase_is_read(tmp_path):
    for name in ("state", "state.json"):
        source = Path(__file__).parent / "stored" / name.replace("state", "schema-3-kept-shared")
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / name)
    found = SiteStore(tmp_path / "state").load()
    assert (found.phase, found.uses, found.kept, found.round) == ("validation", "shared", True, 4)
    assert found.memory["lora.a"].tolist() == [0.125, -0.25]


def _versions(store):
    files = sorted(store.folder.iterdir())
    return [json.loads(tensors.load(path, unsealed=("state",))[1]["state"])["schema"] for path in files]


def test_every_version_has_a_way_to_the_next():
    assert list(MIGRATIONS) == list(range(1, SCHEMA))


def test_going_back_forgets_what_came_after_and_keeps_what_came_before(store):
    for round in (3, 4):
        store.commit(state(round))
    assert same(store.rewind(7), state(4))  # three rounds were missed: the site goes on with what it had
    assert same(store.rewind(3), state(3))
    assert store.load(round=4) is None
    assert store.rewind(2) is None


def test_files_are_private(store):
    store.commit(state(0))
    assert stat.S_IMODE(store.folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in store.folder.iterdir()} == {0o600}


class Killed(BaseException):
    """Replaces SIGKILL: from one system call on, no further one has an effect."""


def test_a_kill_at_any_moment_of_a_commit_leaves_one_of_the_two_states(store, monkeypatch):
    store.commit(state(0))
    found = []
    for kill in range(24):
        with monkeypatch.context() as patch, contextlib.suppress(Killed):
            _die_after(patch, steps=kill % 8)
            store.commit(state(1))
        found.append(SiteStore(store.folder).load())
        assert same(found[-1], state(0)) or same(found[-1], state(1))
        store.commit(state(0))
        assert len(list(store.folder.iterdir())) == 2  # the next commit removes what the killed one left
    assert {loaded.round for loaded in found} == {0, 1}


def _die_after(patch, steps):
    left = [steps]

    def mortal(real):
        def call(*args, **keywords):
            if left[0] == 0:
                raise Killed
            left[0] -= 1
            return real(*args, **keywords)

        return call

    for name in ("fchmod", "write", "fsync", "replace", "unlink"):
        patch.setattr(os, name, mortal(getattr(os, name)))


@pytest.mark.parametrize("call", ["mkdir", "open", "write", "fsync", "replace"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_a_full_or_read_only_disk_keeps_the_last_state_and_goes_on_later(store, monkeypatch, call, code):
    if call != "mkdir":
        store.commit(state(0))

    def fail(*args, **keywords):
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(StoreError) as caught:
            store.commit(state(1))
    assert caught.value.exit_code == 7
    assert call == "mkdir" or same(store.load(), state(0))
    store.commit(state(1))
    assert same(store.load(), state(1))


def test_what_json_cannot_hold_is_refused_before_anything_is_written(store):
    store.commit(state(0))
    bad = SiteState("study-1", "north", 1, "local", {}, {}, best=float("nan"))
    with pytest.raises(StoreError, match="site north holds what JSON cannot"):
        store.commit(bad)
    assert same(store.load(), state(0))


def test_damage_is_seen(store):
    store.commit(state(0))
    (path,) = store.folder.iterdir()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(StoreError, match="is damaged"):
        store.load()
    path.write_bytes(data[:-1])
    with pytest.raises(StoreError, match="not a valid safetensors file"):
        store.load()


def test_another_version_and_a_foreign_file_are_refused(store):
    store.commit(state(0))
    (path,) = store.folder.iterdir()
    named, metadata = tensors.load(path)
    for version in (0, SCHEMA + 1):
        state_ = metadata["state"].replace(f'"schema": {SCHEMA}', f'"schema": {version}')
        tensors.save(path, named, {"state": state_})
        with pytest.raises(
            StoreError, match=f"version {version} and this pFedSAM reads up to {SCHEMA}: use the version"
        ):
            store.load()
    tensors.save(path, named)
    with pytest.raises(StoreError, match="not a site's state"):
        store.load()
