"""Official files are recognised by their content, and official names are kept for them."""

import hashlib
import os
import re
from pathlib import Path

import pytest

from pfedsam.core.errors import CheckpointError
from pfedsam.model import weights
from pfedsam.model.hub import is_hub_name
from pfedsam.model.weights import KNOWN_FILES, KnownFile, check_official_name, identify

CONTENT = bytes(range(256)) * 12
OTHER = bytes(reversed(CONTENT))


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> KnownFile:
    files = {
        name: KnownFile(
            name=name,
            file_name=f"{name}.pth",
            bytes=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
            hub=f"someone/{name}",
            url=None,
            about="for tests",
        )
        for name, content in {"small": CONTENT, "other": OTHER}.items()
    }
    monkeypatch.setattr(weights, "KNOWN_FILES", files)
    return files["small"]


def test_files_are_identified_by_content(tmp_path: Path, known: KnownFile) -> None:
    renamed = tmp_path / "mine.pth"
    renamed.write_bytes(CONTENT)
    assert identify(renamed) == (known, known.sha256)
    renamed.write_bytes(b"abc")
    # The digest of "abc" is the example in FIPS 180-2, appendix B.1.
    assert identify(renamed) == (None, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")


def test_what_cannot_be_read_is_not_waited_for(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none\.pth cannot be read.*Give the path of a weight file"):
        identify(tmp_path / "none.pth")
    os.mkfifo(tmp_path / "pipe.pth")
    with pytest.raises(CheckpointError, match=r"pipe\.pth cannot be read: it is a folder, a pipe or a device"):
        identify(tmp_path / "pipe.pth")


def test_official_names_are_kept_for_official_files(tmp_path: Path) -> None:
    (tmp_path / "mine.pth").write_bytes(b"a fine-tune of mine")
    check_official_name(tmp_path / "mine.pth")
    (tmp_path / "small.pth").write_bytes(CONTENT)
    check_official_name(tmp_path / "small.pth")
    (tmp_path / "small.pth").write_bytes(b"a fine-tune of mine")
    with pytest.raises(CheckpointError, match=r"has 19 bytes .* the official file has 3072 bytes .* a name of its own"):
        check_official_name(tmp_path / "small.pth")
    (tmp_path / "other.pth").write_bytes(CONTENT)
    with pytest.raises(CheckpointError, match=r"other\.pth holds small\.pth"):
        check_official_name(tmp_path / "other.pth")


def test_every_file_is_pinned_and_every_address_ends_in_its_name() -> None:
    files = [file for file in KNOWN_FILES.values() if file.url]
    assert [file.file_name for file in files] == [
        "sam_vit_b_01ec64.pth",
        "sam_vit_l_0b3195.pth",
        "sam_vit_h_4b8939.pth",
    ]
    assert all(file.url and file.url.endswith("/" + file.file_name) for file in files)
    assert all(re.fullmatch("[0-9a-f]{64}", file.sha256) for file in KNOWN_FILES.values())
    assert all(is_hub_name(file.hub) for file in KNOWN_FILES.values())
