import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid
from volume_files import CANARY, write_series

from pfedsam.data.readers.dicom import DicomReader
from pfedsam.data.readers.series_table import SeriesRow, list_series, series_of

pytestmark = pytest.mark.filterwarnings("ignore:Invalid value for VR CS")  # a name in ImageType

VALUES = np.zeros((6, 8, 4), np.int16)
CORONAL = np.array([[0.0, 2, 0, 0], [0, 0, 3, 0], [-1, 0, 0, 0], [0, 0, 0, 1]])
"""Rows to the feet in steps of 1 mm, columns to the right in steps of 2 mm, slices to the front."""


def _taken(date: str, time: str, number: int, image_type: list[str]):
    def change(dataset: Dataset, k: int) -> None:
        dataset.SeriesNumber, dataset.ImageType = number, image_type
        dataset.AcquisitionDate, dataset.AcquisitionTime = date, time

    return change


@pytest.fixture
def folder(tmp_path):
    axial, later = ["ORIGINAL", "PRIMARY", "AXIAL"], ["DERIVED", "SECONDARY", CANARY.split("^")[0], "MPR"]
    write_series(tmp_path / "s", VALUES, np.diag([0.5, 0.7, 5, 1]), change=_taken("20240228", "235000", 3, axial))
    write_series(tmp_path / "s", VALUES[..., :2], CORONAL, change=_taken("20240229", "000500.5", 7, later))
    (tmp_path / "s" / "notes.txt").write_text(CANARY)
    return tmp_path / "s"


def test_the_series_of_a_folder_with_plane_kind_time_and_spacing(folder):
    first, second = list_series(folder)
    assert first == SeriesRow(1, "CT", "axial", "ORIGINAL PRIMARY AXIAL", 0.0, 4, 1, (6, 8), (5.0, 0.5, 0.7), False)
    assert second == SeriesRow(2, "CT", "coronal", "DERIVED SECONDARY MPR", 900.0, 2, 1, (6, 8), (3.0, 1.0, 2.0), False)
    assert "Canary" not in repr((first, second))


def test_the_one_that_is_read_is_marked(folder):
    assert [row.chosen for row in series_of(DicomReader(folder, series="2"))] == [False, True]


def test_times_at_each_position_are_counted_and_tilted_planes_are_oblique(tmp_path):
    turn = np.radians(30)
    tilted = np.eye(4)
    tilted[:3, :3] = [[1, 0, 0], [0, np.cos(turn), -np.sin(turn)], [0, np.sin(turn), np.cos(turn)]]
    series, frame = generate_uid(), generate_uid()
    for seed in range(3):
        write_series(tmp_path / "s", VALUES, tilted, seed=seed, series=series, frame=frame)
        for file in (tmp_path / "s").glob("IM*"):
            file.rename(file.with_name(f"t{seed}{file.name}"))
    write_series(tmp_path / "s", VALUES, change=lambda dataset, k: dataset.update({"SeriesNumber": 9}))
    first, second = list_series(tmp_path / "s")
    assert (first.plane, first.slices, first.times, first.seconds) == ("oblique axial", 4, 3, None)
    assert (second.plane, second.slices, second.times) == ("axial", 4, 1)


def test_one_series_is_no_choice(tmp_path):
    path = write_series(tmp_path / "s", VALUES)
    assert list_series(path) == series_of(DicomReader(path)) == ()
    next(path.iterdir()).write_bytes(b"\0" * 128 + b"DICM")
    assert list_series(path) == ()
    assert list_series(tmp_path / "nothing") == ()
