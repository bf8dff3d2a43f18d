"""The names of masks identify their images: each image has a bright box in another place, which is segmented here."""

import csv
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import Dataset
from volume_files import write_nifti, write_series

from pfedsam.core.errors import OptionError
from pfedsam.data.images import ImageOptions
from pfedsam.data.labels import LabelMap
from pfedsam.data.volume_case import open_case
from pfedsam.data.volume_options import VolumeOptions
from pfedsam.engine.predict_jobs import find_jobs, is_done, write_volume
from pfedsam.engine.predict_names import SERIES
from pfedsam.engine.predict_volume import PredictedVolume

LABELS = LabelMap({"box": [1]})


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def _box(row: int, slices: int = 3) -> np.ndarray:
    values = np.zeros((40, 12, slices), np.int16)
    values[row : row + 3, 2:9] = 600
    return values


def _scan(folder: str, row: int, *, number: int = 1, patient: str = "P", slices: int = 3) -> Path:
    """A series whose box begins in this row, and whose first slice has this row as its position in mm."""

    def change(dataset: Dataset, _: int) -> None:
        dataset.SeriesNumber, dataset.PatientID = number, patient

    affine = np.diag([2.0, 1.0, 3.0, 1.0])
    affine[2, 3] = row
    return write_series(Path(folder), _box(row, slices), affine, change=change)


def _x_ray(path: str, row: int, patient: str = "P", series: str | None = None) -> None:
    def change(dataset: Dataset, _: int) -> None:
        dataset.PatientID, dataset.Modality = patient, "CR"
        del dataset.ImagePositionPatient, dataset.ImageOrientationPatient, dataset.SliceThickness

    (file,) = write_series(Path("one"), _box(row, 1), change=change, series=series).iterdir()
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    shutil.move(file, path)


def _report(path: str) -> None:
    def change(dataset: Dataset, _: int) -> None:
        dataset.Modality = "SR"
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.88.11"
        del dataset.Rows, dataset.Columns, dataset.PixelData

    (file,) = write_series(Path("one"), _box(0, 1), change=change).iterdir()
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    shutil.move(file, path)


def _segment(*images: str, out: str = "masks") -> list[str]:
    """Segment what has no mask yet, as `predict --resume` does, and return the names of the new masks."""
    done = []
    for job in find_jobs([Path(image) for image in images], Path(out)):
        if not is_done(job):
            volume = open_case(job.case("north"), ImageOptions(), VolumeOptions(axis="axial"))
            bright = np.stack([volume.picture(number)[..., 0] > 0.5 for number in range(volume.shape[0])])
            write_volume(job, PredictedVolume(volume, bright.astype(np.uint8), None), LABELS)
            done.append(job.name)
    return sorted(done)


def _first_rows(out: str = "masks") -> dict[str, int]:
    """The first row of the box in each mask, by the name of the mask."""
    found = {path.stem: np.asarray(Image.open(path)) for path in Path(out).glob("*.png")}
    for path in Path(out).glob("*.nii.gz"):
        mask = nib.load(path)
        assert mask.affine is not None
        found[path.name[:-7]] = np.asarray(mask.dataobj).any(axis=2)
    return {name: int(np.argwhere(mask)[:, _rows_axis(mask)].min()) for name, mask in found.items()}


def _rows_axis(mask: np.ndarray) -> int:
    return mask.shape.index(40)


def _files() -> dict[str, str]:
    """The file that the table of series gives for each name."""
    return {row["image"]: row["file"] for row in csv.DictReader((Path("masks") / SERIES).read_text().splitlines())}


def test_pictures_of_several_patients_in_one_folder_have_the_names_of_their_files() -> None:
    for patient in range(5):
        _x_ray(f"new/patient{patient}.dcm", 5 + 6 * patient, patient=f"P{patient}")
    _segment("new")
    assert _first_rows() == {f"patient{patient}": 5 + 6 * patient for patient in range(5)}
    assert _files() == {f"patient{patient}": f"new/patient{patient}.dcm" for patient in range(5)}


def test_views_of_one_series_have_the_names_of_their_files() -> None:
    for row, view in enumerate(("LCC", "LMLO", "RCC", "RMLO")):
        _x_ray(f"new/{view}.dcm", 4 * row, series="1.2.3")
    _segment("new")
    assert _first_rows() == {"LCC": 0, "LMLO": 4, "RCC": 8, "RMLO": 12}


@pytest.mark.parametrize("given", [["new"], ["new/p1", "new/p2"]])
def test_views_of_several_patients_have_the_names_of_their_folders_too(given: list[str]) -> None:
    rows = {"p1_ap": 1, "p1_lat": 9, "p2_ap": 17, "p2_lat": 25}
    for name, row in rows.items():
        _x_ray(f"new/{name.replace('_', '/')}.dcm", row)
    _segment(*given)
    assert _first_rows() == rows


def test_a_report_above_the_folders_of_the_patients_changes_no_name() -> None:
    _report("new/report.dcm")
    _scan("new/p1", 3)
    _scan("new/p2", 20)
    _report("new/p3/report.dcm")
    jobs = find_jobs([Path("new")], Path("masks"))
    assert [(job.name, job.source is not None and job.source.readable) for job in jobs] == [
        ("p1", True),
        ("p2", True),
        ("p3", False),  # is reported, because this patient gets no mask
    ]
    shutil.rmtree("new/p3")
    _segment("new")
    assert _first_rows() == {"p1": 3, "p2": 20}


def test_a_picture_above_the_folders_of_the_patients_changes_no_name() -> None:
    _x_ray("new/leg.dcm", 30)
    _scan("new/p1", 3)
    _scan("new/p2", 20)
    _segment("new")
    assert _first_rows() == {"leg": 30, "p1": 3, "p2": 20}


def test_series_in_one_folder_have_numbers_and_the_table_and_the_terminal_give_a_file_of_each(
    caplog: pytest.LogCaptureFixture,
) -> None:
    _scan("export", 3, number=3, patient="A")
    _scan("export", 20, number=5, patient="B")
    _x_ray("export/scout.dcm", 30, patient="A")
    jobs = find_jobs([Path("export")], Path("masks"))
    assert "'export' holds DICOM series of 2 patients" in caplog.text
    _segment("export")
    rows = _first_rows()
    assert sorted(rows) == ["export_scout", "export_series2", "export_series3"]  # the X-ray has the series number 1
    for job in jobs:
        file = _files()[job.name]
        (alone,) = find_jobs([Path(file)], Path("alone") / job.name)
        _segment(file, out=str(alone.target.parent))
        assert _first_rows(str(alone.target.parent)) == {alone.name: rows[job.name]}
        assert job.shown in (f"export (series of {Path(file).name})", "scout.dcm")


def test_a_series_keeps_its_name_when_another_one_arrives() -> None:
    _scan("p1", 3, number=3)
    _scan("p1", 15, number=5)
    assert _segment("p1") == ["p1_series1", "p1_series2"]
    _scan("p1", 25, number=1)  # comes first in the list now
    assert _segment("p1") == ["p1_series3"]
    assert _first_rows() == {"p1_series1": 3, "p1_series2": 15, "p1_series3": 25}
    affines = [nib.load(path).affine for path in sorted(Path("masks").glob("*.gz"))]
    assert [min(affine[2, 3], affine[2, 3] + 2 * affine[2, 2]) for affine in affines] == [3, 15, 25]


def test_a_series_whose_name_a_spreadsheet_takes_for_a_formula_keeps_it() -> None:
    _scan("new/=p1", 3, number=3)
    assert _segment("new") == ["=p1"]
    _scan("new/=p1", 25, number=1)
    assert _segment("new") == ["=p1_series1"]
    assert _first_rows() == {"=p1": 3, "=p1_series1": 25}
    assert set(_files()) == {"'=p1", "'=p1_series1"}


def test_the_only_series_of_a_folder_keeps_its_name_when_another_one_arrives() -> None:
    _scan("new/p1", 3, number=3)
    assert _segment("new") == ["p1"]
    _scan("new/p1", 25, number=1)
    assert _segment("new") == ["p1_series1"]
    assert _first_rows() == {"p1": 3, "p1_series1": 25}


def test_another_folder_of_the_same_name_is_refused() -> None:
    _scan("monday/p1", 3)
    _scan("tuesday/p1", 20)
    assert _segment("monday") == ["p1"]
    with pytest.raises(
        OptionError, match=r"series\.csv .* lists other series under the name 'p1' than 'tuesday/p1' holds"
    ):
        _segment("tuesday")


def test_a_mask_with_a_number_that_the_table_does_not_have_is_refused() -> None:
    _scan("p1", 3, number=3)
    _scan("p1", 15, number=5)
    _segment("p1")
    (Path("masks") / SERIES).unlink()
    with pytest.raises(OptionError, match=r"series\.csv beside it does not say of which series it is"):
        _segment("p1")


def test_a_folder_that_became_damaged_is_not_taken_for_finished() -> None:
    folder = _scan("new/p1", 3)
    _segment("new")
    (folder / "later").write_bytes(b"\0" * 128 + b"DICM")
    (job,) = find_jobs([Path("new")], Path("masks"))
    assert not is_done(job)


def test_equal_names_of_folders_are_replaced_by_paths_below_the_given_folder() -> None:
    rows = {"p0_PT0_ST0_SE0": 3, "p1_PT0_ST0_SE0": 20, "p1_PT0_ST0_SE1": 30}
    for name, row in rows.items():
        _scan(f"images/{name.replace('_', '/')}", row)
    _segment("images")
    assert _first_rows() == rows


def test_a_series_keeps_its_short_name_when_an_equal_name_arrives() -> None:
    _scan("new/p0/SE0", 3)
    assert _segment("new") == ["SE0"]
    _scan("new/p1/SE0", 20)
    assert _segment("new") == ["p1_SE0"]
    shutil.rmtree("new/p0")
    assert _segment("new") == []
    assert _first_rows() == {"SE0": 3, "p1_SE0": 20}


def test_equal_names_of_nifti_files_are_replaced_by_paths_too() -> None:
    for patient, row in (("p0", 3), ("p1", 20)):
        write_nifti(Path(f"new/{patient}/t1.nii.gz"), _box(row))
    write_nifti(Path("new/p0/t2.nii.gz"), _box(30))
    _segment("new")
    assert _first_rows() == {"p0_t1": 3, "p1_t1": 20, "t2": 30}
    assert not (Path("masks") / SERIES).exists()


def test_the_table_holds_nothing_of_a_header() -> None:
    _scan("p1", 3, patient="Canary")
    _segment("p1")
    text = (Path("masks") / SERIES).read_text()
    assert "Canary" not in text
    assert "1.2.826" not in text  # the root of the identifiers that pydicom makes


@pytest.mark.parametrize("write", [lambda: _scan("new/p1", 3), lambda: write_nifti(Path("new/p1.nii.gz"), _box(3))])
def test_an_image_that_is_given_twice_is_refused(write: Callable[[], object]) -> None:
    write()
    with pytest.raises(OptionError, match="have the same name"):
        find_jobs([Path("new"), *Path("new").iterdir()], Path("masks"))
