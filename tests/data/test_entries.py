import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset
from volume_files import write_enhanced, write_nifti, write_series

from pfedsam.core.errors import DataError
from pfedsam.data.entries import entry_of, find_entries, group_sequences, refuse_loose_series, stem_of

VALUES = np.zeros((4, 5, 3), np.int16)


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("a.png", "a"),
        ("a.b.JPG", "a.b"),
        ("a.nii.gz", "a"),
        ("A.NII", "A"),
        ("a.dcm", "a"),
        ("IM0001", "IM0001"),
        ("1.2.3", "1.2.3"),
    ],
)
def test_the_name_without_the_ending_of_a_format(name, stem):
    assert stem_of(Path(name)) == stem


def test_a_folder_keeps_its_whole_name(tmp_path):
    (tmp_path / "scan.dcm").mkdir()
    assert stem_of(tmp_path / "scan.dcm") == "scan.dcm"


def test_entries_are_pictures_volumes_and_folders_of_dicom_files(tmp_path):
    Image.fromarray(VALUES[..., 0].astype(np.uint8)).save(tmp_path / "b.png")
    write_nifti(tmp_path / "c.nii.gz", VALUES)
    write_series(tmp_path / "d", VALUES)
    (tmp_path / "notes.txt").write_text("nothing")
    (tmp_path / "._b.png").write_bytes(b"a Mac's")
    (tmp_path / "empty").mkdir()
    (tmp_path / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
    found = [(entry.path.name, entry.stem, entry.volume) for entry in find_entries(tmp_path)]
    assert found == [("b.png", "b", False), ("c.nii.gz", "c", True), ("d", "d", True)]
    assert find_entries(tmp_path / "nothing") == []


def test_a_damaged_volume_is_an_entry_by_its_ending_so_that_it_is_told_and_not_left_out(tmp_path):
    (tmp_path / "a.nii.gz").write_bytes(b"")
    entry = entry_of(tmp_path / "a.nii.gz")
    assert entry is not None
    assert entry.volume


def test_sequences_are_grouped_in_the_order_of_the_channels(tmp_path):
    for name in ("p2_t1", "p1_t2", "p1_t1", "p2_t2", "other"):
        write_nifti(tmp_path / f"{name}.nii", VALUES)
    found = group_sequences(find_entries(tmp_path), ["_t2", "_t1"])
    assert [(stem, [entry.path.name for entry in files]) for stem, files in found] == [
        ("p1", ["p1_t2.nii", "p1_t1.nii"]),
        ("p2", ["p2_t2.nii", "p2_t1.nii"]),
    ]
    assert len(group_sequences(find_entries(tmp_path), [])) == 5
    (tmp_path / "p2_t1.nii").unlink()
    with pytest.raises(DataError, match="case 'p2' has no file that ends with '_t1'"):
        group_sequences(find_entries(tmp_path), ["_t2", "_t1"])


def test_two_files_of_one_series_are_no_two_cases(tmp_path):
    write_series(tmp_path, VALUES[..., :2])
    with pytest.raises(DataError, match="are of one DICOM series; put the files of each series into a folder"):
        refuse_loose_series(find_entries(tmp_path))
    next(tmp_path.iterdir()).unlink()
    refuse_loose_series(find_entries(tmp_path))


def test_two_files_of_several_frames_of_one_series_are_no_two_cases(tmp_path):
    for name, place in (("a", 0.0), ("b", 9.0)):
        frames = [(VALUES[..., k], place + 3 * k, Dataset()) for k in range(3)]
        path = write_enhanced(tmp_path / name, frames)
        dataset = pydicom.dcmread(path)
        dataset.SeriesInstanceUID = "1.2.3"
        dataset.save_as(tmp_path / f"{name}.dcm")
        shutil.rmtree(tmp_path / name)
    with pytest.raises(DataError, match=r"'a\.dcm' and 'b\.dcm', which are of one DICOM series"):
        refuse_loose_series(find_entries(tmp_path))
