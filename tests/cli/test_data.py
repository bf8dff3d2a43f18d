"""`pfedsam data check` reports everything that is wrong at once."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from mask_files import write_rtstruct
from PIL import Image
from volume_files import write_series

from pfedsam.data.readers.dicom import DicomReader

Call = Callable[..., int]


def _site(folder: Path, *cases: str) -> None:
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
        for number, case in enumerate(cases):
            picture = np.full((4, 6), 100 + 10 * number, np.uint8)
            picture[0, 0] = 250
            content = picture if part == "images" else np.eye(4, 6, dtype=np.uint8)
            Image.fromarray(content).save(folder / part / f"{case}.png")


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
    assert shown.startswith("Warning: site 'north': 1 file(s) or folder(s) are left out ('images/d.bmp'); only .jpeg,")


def test_every_site_is_looked_at_though_others_cannot_be_read(
    call: Call, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    _site(tmp_path / "east", "a", "b", "c")
    Image.fromarray(np.full((4, 6), 7, np.uint8)).save(tmp_path / "east" / "masks" / "b.png")
    assert call("data", "check", _study(tmp_path, "north", "east", "south")) == 3
    shown = " ".join(capsys.readouterr().err.split())
    for text in (
        "site 'north': there is no folder",
        "site 'east', case 'b': its mask has the unknown label 7",
        "site 'south': there is no folder",
    ):
        assert text in shown


def test_a_link_to_nowhere_is_a_problem(call: Call, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    _site(tmp_path / "north", "a", "b", "c", "d")
    for part in ("images", "masks"):
        picture = tmp_path / "north" / part / "b.png"
        picture.unlink()
        picture.symlink_to("/mnt/archive/b.png")
    assert call("data", "check", _study(tmp_path, "north")) == 3
    said = " ".join(capsys.readouterr().err.split())
    assert "site 'north': images/b.png is a link to '/mnt/archive/b.png', which does not exist" in said


def test_a_link_to_nowhere_that_the_manifest_does_not_list_is_no_problem(call: Call, tmp_path: Path) -> None:
    _site(tmp_path / "north", "a", "b", "c")
    rows = [f"images/{case}.png,masks/{case}.png,{case}" for case in "abc"]
    (tmp_path / "north" / "manifest.csv").write_text("\n".join(["image,mask,patient", *rows]))
    (tmp_path / "north" / "images" / "d.png").symlink_to("/mnt/archive/d.png")
    assert call("data", "check", _study(tmp_path, "north")) == 0


def test_what_a_run_would_refuse_is_a_problem(call: Call, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    _site(tmp_path / "north", "a", "b", "c", "d")
    options = "evaluation: {flips: true}\n"
    assert call("data", "check", _study(tmp_path, "north", more=f"  augment: {{flips: false}}\n{options}")) == 3
    assert "evaluation.flips" in capsys.readouterr().err


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


def test_the_table_says_what_was_read(call: Call, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    _site(tmp_path / "north", "a", "b", "c")
    assert call("data", "check", _study(tmp_path, "north")) == 0
    rows = {
        cells[0].strip(): cells[1].strip()
        for line in capsys.readouterr().out.splitlines()
        if len(cells := line.strip("\u2502").split("\u2502")) == 2
    }
    assert rows["images"] == "3"
    assert rows["patients"] == "3"
    assert rows["split"] == "train 1, val 1, test 1"
    assert rows["size: width x height (x slices)"] == "6 x 4"
    assert rows["bits per value"] == "8"
    assert rows["values used"].endswith("of 0 to 255")
    assert rows["ids in the masks"] == "0 (3), 1 (3)"
    assert rows["class n"] == "3 cases, median 17 % of the pixels"  # 4 of 24
    assert (rows["empty masks"], rows["unlabelled images"], rows["problems"]) == ("0", "0", "0")


def test_a_page_with_pictures_is_written_also_where_there_are_problems(call: Call, tmp_path: Path) -> None:
    _site(tmp_path / "north", "a", "b<i>", "c")
    Image.fromarray(np.full((4, 6), 7, np.uint8)).save(tmp_path / "north" / "masks" / "c.png")
    page = tmp_path / "check.html"
    assert call("data", "check", _study(tmp_path, "north"), "--html", page) == 3
    text = page.read_text()
    assert text.count("data:image/png;base64,") == 2  # not of the case that has a problem
    assert "unknown label 7" in text
    assert "b&lt;i&gt;" in text
    assert "<i>" not in text


def test_leaks_between_train_and_test_are_errors(
    call: Call, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    _site(tmp_path / "north", "a", "b", "c")
    shutil.copy(tmp_path / "north" / "images" / "a.png", tmp_path / "north" / "images" / "b.png")
    rows = ["image,mask,patient,split"] + [
        f"images/{case}.png,masks/{case}.png,{case},{side}"
        for case, side in (("a", "train"), ("b", "test"), ("c", "val"))
    ]
    (tmp_path / "north" / "manifest.csv").write_text("\n".join(rows))
    assert call("data", "check", _study(tmp_path, "north")) == 3
    assert "they are in two parts of the split" in " ".join(capsys.readouterr().err.split())


def test_a_split_that_is_there_is_not_overwritten(
    call: Call, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    _site(tmp_path / "north", "a", "b", "c")
    study, out = _study(tmp_path, "north"), tmp_path / "split"
    assert call("data", "split", study, "--out", out) == 0
    before = (out / "north.json").read_bytes()
    assert call("data", "split", study, "--out", out) == 2
    assert "exists already" in capsys.readouterr().err
    assert (out / "north.json").read_bytes() == before


def test_one_patient_at_a_site_is_said_as_such(call: Call, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    _site(tmp_path / "north", "p_1", "p_2", "p_3")
    assert call("data", "check", _study(tmp_path, "north", more="  patient_pattern: ^(.+)_\n")) == 3
    shown = " ".join(capsys.readouterr().err.split())
    assert "site 'north' has no test case: its 3 case(s) belong to one patient, 'p'" in shown


def test_import_writes_sites_that_check_accepts(
    call: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = (("train", "G-1-L"), ("train", "G-2-L"), ("test", "G-1-R"), ("test", "G-3-L"))
    for number, (part, name) in enumerate(names):
        for kind, value in (("image", 90), ("mask", 128)):
            path = tmp_path / "source" / "Domain2" / part / "ROIs" / kind / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.full((8, 8), 255 if kind == "mask" else value, np.uint8)
            pixels[2:6, 2:6], pixels[3, 3] = value, 0
            if kind == "image":
                pixels[0, 0] = 200 + number  # no two pictures alike
            Image.fromarray(pixels).save(path)
    assert call("data", "import", tmp_path / "source", "--out", tmp_path / "sites") == 0
    assert "rim_one_r3" in capsys.readouterr().out
    assert call("data", "check", tmp_path / "sites" / "study.yaml") == 0


def test_summaries_are_written_and_compared(call: Call, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    _site(tmp_path / "north", "a", "b", "c")
    _site(tmp_path / "south", "a", "b", "c")
    for path in (tmp_path / "south" / "images").iterdir():
        Image.fromarray(np.full((4, 6), 250, np.uint8)).save(path)
    study = _study(tmp_path, "north", "south")
    assert call("data", "summary", study, "--out", tmp_path / "s", "--min-cases", "2") == 0
    files = [tmp_path / "s" / "north.json", tmp_path / "s" / "south.json"]
    assert call("data", "compare", *files, "--html", tmp_path / "page.html") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "north and south differ in intensity" in shown
    assert (tmp_path / "page.html").is_file()
    assert call("data", "compare", files[0]) == 3


@pytest.mark.parametrize("name", ["study.yaml", "north/masks/a.png", "notes.html"])
def test_a_page_does_not_replace_another_file(
    call: Call, capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str
) -> None:
    _site(tmp_path / "north", "a", "b", "c")
    (tmp_path / "notes.html").write_text("mine")
    study = _study(tmp_path, "north")
    before = (tmp_path / name).read_bytes()
    assert call("data", "check", study, "--html", tmp_path / name) == 2
    assert call("data", "compare", tmp_path / "none.json", "--html", tmp_path / name) == 2
    assert "OptionError" in capsys.readouterr().err
    assert (tmp_path / name).read_bytes() == before


def test_a_page_is_replaced_by_a_newer_one(call: Call, tmp_path: Path) -> None:
    _site(tmp_path / "north", "a", "b", "c")
    study, page = _study(tmp_path, "north"), tmp_path / "page.html"
    assert call("data", "check", study, "--html", page) == 0
    assert call("data", "check", study, "--html", page) == 0


def test_a_summary_that_is_there_is_not_overwritten(
    call: Call, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    _site(tmp_path / "north", "a", "b", "c")
    study, out = _study(tmp_path, "north"), tmp_path / "s"
    out.mkdir()
    (out / "north.json").write_text("mine")
    assert call("data", "summary", study, "--out", out) == 2
    assert "exists already (1 of 1 files)" in " ".join(capsys.readouterr().err.split())
    assert (out / "north.json").read_text() == "mine"


def test_a_summary_is_a_file_and_no_pipe(call: Call, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(b" " * 1_000_001)
    for path, said in ((tmp_path / "pipe", "not a file"), ("/dev/zero", "not a file"), (tmp_path / "large", "1000000")):
        assert call("data", "compare", path) == 3
        assert said in " ".join(capsys.readouterr().err.split())


def test_what_an_import_leaves_out_is_told(call: Call, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    _site(tmp_path / "source" / "north", "a", "b", "c")
    (tmp_path / "source" / "north" / "images" / "c.png").unlink()
    assert call("data", "import", tmp_path / "source", "--out", tmp_path / "sites") == 0
    said = capsys.readouterr()
    assert "'masks/c.png'" in " ".join(said.err.split())
    assert "? = not known: the data set does not name its patients" in " ".join(said.out.split())


def test_the_names_in_masks_are_shown_in_the_terminal_only(
    call: Call, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "north" / "masks").mkdir(parents=True)
    for number, case in enumerate("abc"):
        values = np.random.default_rng(number).integers(-500, 500, (6, 8, 5)).astype(np.int16)
        image = DicomReader(write_series(tmp_path / "north" / "images" / case, values, seed=number))
        body, organ = (
            (name, [("CLOSED_PLANAR", 1, [(1.0, 1.0), (1.0, 4.0), (high, 4.0)])])
            for name, high in (("Canary", 5.0), ("Organ", 4.0))
        )
        write_rtstruct(tmp_path / "north" / "masks" / f"{case}.dcm", image, body, organ)
    page = tmp_path / "page.html"
    assert call("data", "check", _study(tmp_path, "north"), "--html", page) == 3
    said = capsys.readouterr()
    assert "Canary" in said.out
    assert "has parts that overlap" in said.err
    assert "`pfedsam data check` lists the names" in " ".join(said.err.split())
    assert "Canary" not in said.err + page.read_text("utf-8")
    assert call("data", "check", _study(tmp_path, "north", more="  volume: {segments: {Organs: 1, Organ: 1}}\n")) == 0
    assert "no mask has a segment or structure of the name 'Organs'" in " ".join(capsys.readouterr().err.split())
