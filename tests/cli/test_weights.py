import hashlib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pfedsam.cli.weights import app
from pfedsam.core.errors import CheckpointError, OptionError
from pfedsam.model import weights
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
    file = KnownFile(name="tiny", file_name="tiny.pth", bytes=7, sha256=digest, url=None, about="for tests")
    monkeypatch.setattr(weights, "KNOWN_FILES", {"tiny": file})
    return file


def test_fetch_and_verify_a_file_that_is_there(known: KnownFile, tmp_path: Path) -> None:
    (tmp_path / known.file_name).write_bytes(CONTENT)
    mirror = "http://127.0.0.1:9/"  # nothing listens there: a file that is there needs no server
    result = CliRunner().invoke(app, ["fetch", "tiny", "--folder", str(tmp_path), "--base-url", mirror])
    assert result.exit_code == 0
    assert "complete and verified" in result.stdout
    result = CliRunner().invoke(app, ["verify", str(tmp_path / known.file_name)])
    assert result.exit_code == 0
    assert "is tiny.pth (for tests)" in result.stdout


def test_errors_reach_the_caller(known: KnownFile, tmp_path: Path) -> None:
    (tmp_path / known.file_name).write_bytes(b"wrong")
    result = CliRunner().invoke(app, ["verify", str(tmp_path / known.file_name)])
    assert isinstance(result.exception, CheckpointError)
    result = CliRunner().invoke(app, ["fetch", "huge", "--folder", str(tmp_path)])
    assert isinstance(result.exception, OptionError)
