import hashlib
from pathlib import Path

import huggingface_hub
import pytest
import torch
from transformers import SamConfig, SamModel
from typer.testing import CliRunner

from pfedsam.cli.weights import app
from pfedsam.core.errors import CheckpointError, OptionError
from pfedsam.model import weights
from pfedsam.model.backbones.compact import compact_config, new_network
from pfedsam.model.weights import KNOWN_FILES, KnownFile

CONTENT = b"weights"


def test_list_names_every_file_and_what_ships() -> None:
    result = CliRunner().invoke(app, ["list"])
    assert result.exit_code == 0
    assert "Shipped" in result.stdout
    for file in KNOWN_FILES.values():
        assert file.file_name in result.stdout
        assert file.sha256 in result.stdout


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> KnownFile:
    digest = hashlib.sha256(CONTENT).hexdigest()
    file = KnownFile(
        name="tiny", file_name="tiny.pth", bytes=7, sha256=digest, hub="someone/toy", url=None, about="for tests"
    )
    monkeypatch.setattr(weights, "KNOWN_FILES", {"tiny": file})
    return file


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    new_network(compact_config("sam-toy"), torch.Generator().manual_seed(3)).save_pretrained(tmp_path / "toy")
    return tmp_path / "toy"


def test_verify_answers_for_every_file(known: KnownFile, tmp_path: Path, folder: Path) -> None:
    (tmp_path / "renamed.pth").write_bytes(CONTENT)
    (tmp_path / "tiny.pth").write_bytes(b"a fine-tune of mine")
    (tmp_path / "page.pth").write_text("<html>")
    names = ["renamed.pth", "tiny.pth", "page.pth", "none.pth", "toy"]
    result = CliRunner().invoke(app, ["verify", *(str(tmp_path / name) for name in names)])
    assert isinstance(result.exception, CheckpointError)
    assert "3 of 5 cannot be used" in str(result.exception)
    lines = result.stdout.splitlines()
    verdicts = [
        "OFFICIAL. It is tiny.pth",
        "UNUSABLE. tiny.pth is not",
        "UNUSABLE. page.pth is not",
        "MISSING",
        "READABLE.",
    ]
    assert len(lines) == len(names)
    for name, line, verdict in zip(names, lines, verdicts, strict=True):
        assert f"{tmp_path / name}: {verdict}" in line
    assert "a SAM with 2 encoder blocks of width 32, for images of 64 pixels" in lines[-1]
    assert CliRunner().invoke(app, ["verify", str(tmp_path / "renamed.pth"), str(folder)]).exit_code == 0


def test_verify_does_not_call_a_model_readable_that_cannot_work(tmp_path: Path) -> None:
    table = compact_config("sam-toy").to_dict()
    table["vision_config"]["num_channels"] = 1
    SamModel(SamConfig.from_dict(table)).save_pretrained(tmp_path / "grey")
    result = CliRunner().invoke(app, ["verify", str(tmp_path / "grey")])
    assert isinstance(result.exception, CheckpointError)
    assert (
        "UNUSABLE. grey/config.json does not describe a SAM or SAM-HQ: its encoder's num_channels is 1" in result.stdout
    )


@pytest.mark.parametrize("name", ["tiny", "someone/toy"])
def test_fetch_asks_the_hub(known: KnownFile, folder: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    asked: list[str] = []

    def download(hub_name: str, **_: object) -> str:
        asked.append(hub_name)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    result = CliRunner().invoke(app, ["fetch", name])
    assert result.exit_code == 0
    assert set(asked) == {"someone/toy"}
    assert "use someone/toy as the backbone" in result.stdout


def test_fetch_of_a_name_that_nobody_knows() -> None:
    result = CliRunner().invoke(app, ["fetch", "huge"])
    assert isinstance(result.exception, OptionError)
    assert "sam-vit-b, sam-vit-l" in str(result.exception)
