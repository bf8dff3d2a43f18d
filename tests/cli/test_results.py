"""`pfedsam predict`: which files it writes, and their content."""

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from pfedsam.core.errors import DataError
from pfedsam.data.images import read_mask
from pfedsam.data.trained_on import IntensityRange, TrainedOn
from pfedsam.experiment.load import load_options

Call = Callable[..., int]
Finished = Callable[..., list[Path]]


@pytest.fixture
def finished(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Finished:
    """Makes every folder a run with these classes, which predicts the classes 0, 1, 2; gives the images that it was asked for."""
    monkeypatch.chdir(tmp_path)  # short paths, which messages do not break

    def make(classes: str, *, volumes: bool = False) -> list[Path]:
        Path("study.yaml").write_text(f"data:\n  sites: {{north: north}}\n  classes: {classes}\n")
        asked: list[Path] = []

        def predict(image: Path) -> npt.NDArray[np.uint8]:
            asked.append(image)
            return np.array([[0, 1, 2]], np.uint8)

        def open_run(_: Path, overrides: list[str]) -> SimpleNamespace:
            options = load_options(Path("study.yaml"), overrides)
            return SimpleNamespace(
                options=options,
                site=lambda _, wanted: SimpleNamespace(
                    predict=predict,
                    name="north",
                    options=options,
                    uses="personal" if wanted == "in-use" else wanted,
                    trained_on=TrainedOn(sequences=1) if volumes else TrainedOn(IntensityRange(1, 1)),
                ),
            )

        monkeypatch.setattr("pfedsam.engine.opened.open_run", open_run)
        return asked

    return make


def test_a_present_folder_of_a_site_needs_a_name(call: Call, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("evaluate", "run", "--site-folder", "/data/north") == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "--site-folder '/data/north' is not of the form NAME=FOLDER, such as north=/data/north." in said


def test_mirror_images_are_refused_for_a_picture_and_a_model_of_volumes(
    call: Call, finished: Finished, capsys: pytest.CaptureFixture[str]
) -> None:
    """The model of volumes has not learnt mirror images, whatever it is used on; a model of pictures has."""
    Image.new("L", (3, 1)).save("a.png")
    words = ("predict", "run", "a.png", "--site", "north", "--out", "masks", "--tta")
    asked = finished("{organ: [128], lesion: [255]}", volumes=True)
    assert call(*words) == 2
    assert "(--tta) averages predictions over mirror images" in " ".join(capsys.readouterr().err.split())
    assert not asked
    finished("{organ: [128], lesion: [255]}", volumes=False)
    assert call(*words) == 0


@pytest.mark.parametrize(
    ("classes", "ids", "mode"),
    [
        ("{organ: [128, 7], lesion: [255]}", [0, 128, 255], "L"),
        ("{organ: [300], lesion: [2]}", [0, 300, 2], "I;16"),
        ("{cup: [0], background: [255], rim: [9]}", [255, 0, 9], "L"),
    ],
)
def test_masks_hold_the_first_id_of_each_class(
    call: Call, finished: Finished, classes: str, ids: list[int], mode: str
) -> None:
    finished(classes)
    assert call("predict", "run", "a.jpg", "--site", "north", "--out", "masks") == 0
    assert read_mask(Path("masks/a.png")).tolist() == [ids]
    with Image.open("masks/a.png") as mask:
        assert mask.mode == mode


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_a_mask_has_the_permissions_that_the_user_gives_new_files(
    call: Call, finished: Finished, umask: int, mode: int
) -> None:
    finished("{organ: [1], lesion: [2]}")
    before = os.umask(umask)
    try:
        assert call("predict", "run", "a.jpg", "--site", "north", "--out", "masks") == 0
    finally:
        os.umask(before)
    assert Path("masks/a.png").stat().st_mode & 0o777 == mode
    assert [path.name for path in Path("masks").iterdir()] == ["a.png"]


@pytest.mark.parametrize(
    ("images", "there", "message"),
    [
        (
            ["b.jpg", "imgs/a.png"],
            "imgs/a.png",
            "'imgs/a.png' would overwrite 'imgs/a.png', which is one of the images.",
        ),
        (["b.jpg", "a.tif"], "imgs/a.png", "'a.tif' would overwrite 'imgs/a.png', which exists already."),
        (["a.png", "b.jpg", "x/a.jpg"], "c.png", "'a.png' and 'x/a.jpg' have the same name without its ending"),
    ],
)
def test_nothing_is_predicted_where_a_file_would_be_overwritten(
    call: Call,
    finished: Finished,
    capsys: pytest.CaptureFixture[str],
    images: list[str],
    there: str,
    message: str,
) -> None:
    asked = finished("{a: [1], b: [2]}")
    Path("imgs").mkdir()
    Path(there).write_bytes(b"of the patient")
    assert call("predict", "run", *images, "--site", "north", "--out", "imgs") == 2
    shown = " ".join(capsys.readouterr().err.split())
    assert message in shown
    assert "Nothing was written; " in shown
    assert "--out" in shown
    assert Path(there).read_bytes() == b"of the patient"
    assert not Path("imgs/b.png").exists()
    assert asked == []


def test_an_id_that_no_png_holds_is_told_before_anything_is_predicted(
    call: Call, finished: Finished, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = finished("{a: [70000], b: [2]}")
    assert call("predict", "run", "a.png", "--site", "north", "--out", "masks") == 2
    assert "70000 is above 65535" in " ".join(capsys.readouterr().err.split())
    assert asked == []
    assert not Path("masks").exists()


def test_a_folder_stands_for_the_images_in_it(call: Call, finished: Finished) -> None:
    asked = finished("{a: [1], b: [2]}")
    Path("new").mkdir()
    for name in ("c.tif", "b.PNG", ".hidden.png", "notes.txt"):
        Path("new", name).touch()
    assert call("predict", "run", "a.png", "new", "--site", "north", "--out", "masks") == 0
    assert asked == [Path("a.png"), Path("new/b.PNG"), Path("new/c.tif")]


def test_a_folder_without_images_is_told(call: Call, finished: Finished, capsys: pytest.CaptureFixture[str]) -> None:
    asked = finished("{a: [1], b: [2]}")
    Path("new").mkdir()
    assert call("predict", "run", "a.png", "new", "--site", "north", "--out", "masks") == 2
    assert "The folder 'new' holds no image (.jpeg, .jpg, .png, .tif, .tiff" in capsys.readouterr().err
    assert asked == []


@pytest.mark.parametrize("pattern", ["nosuch/*.png", "scan[12].png", "**/x?.nii"])
def test_a_pattern_that_no_file_matches_is_told(
    call: Call, finished: Finished, capsys: pytest.CaptureFixture[str], pattern: str
) -> None:
    asked = finished("{a: [1], b: [2]}")
    assert call("predict", "run", "a.png", pattern, "--site", "north", "--out", "masks") == 2
    assert f"No file matches '{pattern}'. Nothing was written" in " ".join(capsys.readouterr().err.split())
    assert asked == []
    Path("new").mkdir()
    Path("new", "b.png").touch()
    assert call("predict", "run", "n?w/*.png", "--site", "north", "--out", "masks") == 0
    assert asked == [Path("new/b.png")]


def test_which_model_was_used_is_said(call: Call, finished: Finished, capsys: pytest.CaptureFixture[str]) -> None:
    finished("{a: [1], b: [2]}")
    assert call("predict", "run", "a.png", "--site", "north", "--out", "m1") == 0
    assert "Model: the personal one of site north (in use there)" in capsys.readouterr().out
    assert call("predict", "run", "a.png", "--site", "north", "--out", "m2", "--model", "shared") == 0
    assert "Model: the shared one of site north\n" in capsys.readouterr().out


def test_a_key_can_be_overridden_when_predicting(
    call: Call, finished: Finished, capsys: pytest.CaptureFixture[str]
) -> None:
    finished("{a: [1], b: [2]}")
    words = ("predict", "run", "a.png", "--site", "north", "--out", "masks", "--set")
    assert call(*words, "data.image.max_megapixel=5") == 2
    assert "did you mean 'max_megapixels'?" in capsys.readouterr().err
    assert call(*words, "data.image.max_megapixels=5") == 0


def test_an_image_that_cannot_be_read_costs_the_others_nothing(
    call: Call, finished: Finished, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    finished("{a: [1], b: [2]}")

    def predict(image: Path) -> npt.NDArray[np.uint8]:
        if image.stem == "cut":
            raise DataError("'cut.png' is damaged")
        return np.array([[0, 1, 2]], np.uint8)

    run = SimpleNamespace(
        options=load_options(Path("study.yaml")),
        site=lambda _, wanted: SimpleNamespace(
            predict=predict,
            uses="personal",
            name="north",
            options=load_options(Path("study.yaml")),
            trained_on=TrainedOn(IntensityRange(1, 1)),
        ),
    )
    monkeypatch.setattr("pfedsam.engine.opened.open_run", lambda _, overrides: run)
    assert call("predict", "run", "a.png", "cut.png", "z.png", "--site", "north", "--out", "masks") == 3
    assert "2 mask(s) written; 1 image(s) could not be segmented: 'cut.png' is damaged" in " ".join(
        capsys.readouterr().err.split()
    )
    assert sorted(path.name for path in Path("masks").iterdir()) == ["a.png", "z.png"]
