"""`pfedsam data check`: everything that is wrong, at once."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

Call = Callable[..., int]


def _site(folder: Path, *cases: str) -> None:
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
        for case in cases:
            Image.fromarray(np.eye(4, 6, dtype=np.uint8)).save(folder / part / f"{case}.png")


def _study(folder: Path, *sites: str, more: str = "") -> Path:
    named = ", ".join(f"{site}: {site}" for site in sites)
    (folder / "study.yaml").write_text(f"data:\n  sites: {{{named}}}\n  classes: {{n: [1]}}\n{more}")
    return folder / "study.yaml"


def test_sound_sites_pass_and_pictures_left_out_are_named(
    call: Call, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    _site(tmp_path / "north", "a", "b", "c")
    (tmp_path / "north" / "images" / "d.bmp").touch()
    assert call("data", "check", _study(tmp_path, "north")) == 0
    shown = " ".join(capsys.readouterr().err.split())
    assert shown.startswith(
        "Warning: site 'north': 'images/d.bmp' is left out (1 such file(s)); only .jpeg, .jpg, .png,"
    )


def test_every_site_is_looked_at_though_others_cannot_be_read(
    call: Call, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    _site(tmp_path / "east", "a", "b", "c")
    Image.fromarray(np.full((4, 6), 7, np.uint8)).save(tmp_path / "east" / "masks" / "b.png")
    assert call("data", "check", _study(tmp_path, "north", "east", "south")) == 3
    shown = " ".join(capsys.readouterr().err.split())
    for text in (
        "site 'north': the folder given for it does not exist",
        "site 'east', case 'b': its mask has the unknown label 7",
        "site 'south': the folder given for it does not exist",
    ):
        assert text in shown


def test_a_site_that_cannot_be_split_is_a_problem(
    call: Call, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    _site(tmp_path / "north", "only")
    _site(tmp_path / "south", "p_1", "p_2", "p_3")
    assert call("data", "check", _study(tmp_path, "north", "south", more="  patient_pattern: ^(.+)_\n")) == 3
    shown = " ".join(capsys.readouterr().err.split())
    assert "site 'north': patient_pattern '^(.+)_' matches none of its 1 file names, such as 'only'" in shown
    assert "site 'south' has no test case" in shown
    assert call("data", "check", _study(tmp_path, "north")) == 3
    assert "site 'north' has no test case" in " ".join(capsys.readouterr().err.split())


def test_import_writes_sites_that_check_accepts(
    call: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for part, name in (("train", "G-1-L"), ("train", "G-2-L"), ("test", "G-1-R"), ("test", "G-3-L")):
        for kind, value in (("image", 90), ("mask", 128)):
            path = tmp_path / "source" / "Domain2" / part / "ROIs" / kind / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.full((8, 8), 255 if kind == "mask" else value, np.uint8)
            pixels[2:6, 2:6], pixels[3, 3] = value, 0
            Image.fromarray(pixels).save(path)
    assert call("data", "import", tmp_path / "source", "--out", tmp_path / "sites") == 0
    assert "rim_one_r3" in capsys.readouterr().out
    assert call("data", "check", tmp_path / "sites" / "study.yaml") == 0
