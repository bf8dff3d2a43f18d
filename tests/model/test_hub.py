"""Models on the hub come from its cache or through `huggingface_hub`; every failure says what to do."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import RepositoryNotFoundError

from pfedsam.core.errors import CheckpointError
from pfedsam.model.hub import find_on_hub, is_hub_name

REVISION = "0" * 40


@pytest.fixture
def cached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder of someone/toy in a cache as the hub's library lays it out: refs name a commit, snapshots hold its files."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    model = tmp_path / "models--someone--toy"
    folder = model / "snapshots" / REVISION
    folder.mkdir(parents=True)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(REVISION)
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_text("{}")
    return folder


def failing(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def download(*_: object, **__: object) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("facebook/sam-vit-base", True),
        ("wanglab/medsam-vit-base", True),
        ("sam-tiny", False),
        ("weights/mine.pth", False),
        ("weights/mine.PTH", False),
        ("folder/model.safetensors", False),
        ("a/b/c", False),
        ("../x", False),
        ("", False),
    ],
)
def test_names_on_the_hub(text: str, expected: bool) -> None:
    assert is_hub_name(text) is expected


@pytest.mark.parametrize("offline", [True, False])
def test_a_model_in_the_cache_needs_no_network(monkeypatch: pytest.MonkeyPatch, cached: Path, offline: bool) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    assert find_on_hub("someone/toy", may_download=offline) == cached


def test_the_offline_switch_is_named(monkeypatch: pytest.MonkeyPatch, cached: Path) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        CheckpointError, match=r"facebook/sam-vit-base is not in .* HF_HUB_OFFLINE .* Unset it .* or copy"
    ):
        find_on_hub("facebook/sam-vit-base", may_download=True)


def test_only_the_files_that_are_read_are_asked_for(monkeypatch: pytest.MonkeyPatch, cached: Path) -> None:
    asked: dict[str, Any] = {}

    def download(name: str, **more: Any) -> str:
        asked.update(more, name=name)
        return str(cached)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    find_on_hub("someone/toy", may_download=True)
    assert asked == {
        "name": "someone/toy",
        "allow_patterns": ["config.json", "model.safetensors"],
        "local_files_only": False,
    }


def test_a_model_without_safetensors(monkeypatch: pytest.MonkeyPatch, cached: Path) -> None:
    (cached / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"someone/toy has no model\.safetensors on the hub"):
        find_on_hub("someone/toy", may_download=False)


def test_a_lost_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, ConnectionError("the peer closed the connection"))
    with pytest.raises(
        CheckpointError, match=r"\(the peer closed the connection\).* again: it continues where it stopped"
    ):
        find_on_hub("someone/toy", may_download=True)


def test_a_name_that_the_hub_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    response: Any = SimpleNamespace(headers={}, request=None)
    failing(monkeypatch, RepositoryNotFoundError("404", response=response))
    with pytest.raises(CheckpointError, match=r"The hub has no model someone/typo.*HF_TOKEN"):
        find_on_hub("someone/typo", may_download=True)


def test_a_study_downloads_nothing(monkeypatch: pytest.MonkeyPatch, cached: Path) -> None:
    with pytest.raises(CheckpointError, match=r"Fetch it yourself, .*`pfedsam weights fetch facebook/sam-vit-base`"):
        find_on_hub("facebook/sam-vit-base", may_download=False)
