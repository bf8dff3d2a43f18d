import os
import re
import shutil
from pathlib import Path

import numpy as np
import pydicom
import pydicom.data
import pytest
from pydicom.dataset import Dataset
from pydicom.fileset import FileSet
from volume_files import CANARY, write_enhanced, write_series

from pfedsam.core.errors import DataError
from pfedsam.data.readers.dicom_files import choose_series, find_images, read_head

VALUES = np.zeros((6, 8, 3), np.int16)
INDEXES = sorted(Path(pydicom.data.__file__).parent.glob("test_files/dicomdirtests/**/DICOMDIR*"))
"""The DICOMDIR files that pydicom is tested with."""


def _numbered(number: int, description: str):
    def change(dataset: Dataset, _: int) -> None:
        dataset.SeriesNumber, dataset.SeriesDescription = number, description

    return change


@pytest.fixture
def folder(tmp_path):
    write_series(tmp_path / "s", VALUES, change=_numbered(12, "T2 axial"))
    write_series(tmp_path / "s", VALUES[..., :2], change=_numbered(3, "T1 axial contrast"))
    (tmp_path / "s/readme.txt").write_text("not an image")
    return tmp_path / "s"


def test_series_are_listed_by_their_number_in_the_header(folder):
    found = find_images(folder)
    assert [(one.number, len(one.planes)) for one in found.series] == [(1, 2), (2, 3)]
    assert dict(found.others) == {"not DICOM": 1}


@pytest.mark.parametrize("left", [0, 100, 131])
def test_a_last_slice_of_which_nothing_can_be_read_is_not_left_out(folder, left):
    last = max(folder.glob("IM002*"))
    last.write_bytes(last.read_bytes()[:left])
    with pytest.raises(DataError, match=f"'s/{last.name}' is among DICOM files, but is not DICOM"):
        find_images(folder)


@pytest.mark.parametrize(("wanted", "number"), [("1", 1), ("2", 2), ("t2", 2), ("contrast T1", 1)])
def test_a_series_is_chosen_by_its_place_in_the_list_or_words_of_its_description(folder, wanted, number):
    assert choose_series(find_images(folder), wanted, "s").number == number


def test_a_series_is_chosen_by_its_uid_which_is_not_shown(tmp_path):
    for number, uid in enumerate(("1.2.840.7", "1.2.840.77"), start=1):
        write_series(tmp_path / "s", VALUES[..., :number], series=uid)
    found = find_images(tmp_path / "s")
    for wanted, slices in (("1.2.840.7", 1), (" 1.2.840.77 ", 2)):
        assert len(choose_series(found, wanted, "s").planes) == slices
    assert "1.2.840" not in repr(found)
    with pytest.raises(DataError, match="none of which fits") as caught:
        choose_series(found, "1.2.840", "s")
    assert "1.2.840" not in str(caught.value)


@pytest.mark.parametrize(
    ("wanted", "what"), [(None, "of which one must be named"), ("axial", "of which 2 fit"), ("3", "none of which fits")]
)
def test_what_fits_none_or_several_is_told_with_numbers_and_no_words_of_a_header(folder, wanted, what):
    with pytest.raises(DataError, match=what) as caught:
        choose_series(find_images(folder), wanted, "s")
    assert "(1: CT, 2 picture(s) of 8 x 6; 2: CT, 3 picture(s) of 8 x 6)" in str(caught.value)
    assert "axial" not in str(caught.value)


@pytest.mark.parametrize("length", [140, 300, 700])
def test_a_head_that_was_cut_off_is_told_and_is_no_empty_file(tmp_path, length):
    (path,) = write_series(tmp_path / "s", VALUES[..., :1]).iterdir()
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(DataError, match="is a damaged or cut off DICOM file") as caught:
        read_head(path)
    assert "Canary" not in str(caught.value)


def test_the_head_holds_nothing_that_says_who_was_scanned_but_a_digest_of_the_number(tmp_path):
    (path,) = write_series(tmp_path / "s", VALUES[..., :1]).iterdir()
    assert pydicom.dcmread(path).PatientName == CANARY
    head = read_head(path)
    about = {element.keyword for element in head if element.keyword.startswith(("Patient", "Study"))}
    assert about == {"PatientID", "StudyInstanceUID"}
    assert re.fullmatch("[0-9a-f]{16}", head.PatientID)


def _with(field: str, value: str, slices: tuple[int, ...]):
    def change(dataset: Dataset, k: int) -> None:
        if k in slices:
            setattr(dataset, field, value)

    return change


@pytest.mark.parametrize(
    ("field", "what"),
    [("PatientID", "patients"), ("StudyInstanceUID", "studies"), ("FrameOfReferenceUID", "coordinate systems")],
)
def test_a_series_is_of_one_patient_study_and_frame_of_reference(tmp_path, field, what):
    mixed = write_series(tmp_path / "mixed", VALUES, change=_with(field, "1.2.3", (1,)))
    with pytest.raises(
        DataError, match=f"'mixed' holds one DICOM series whose pictures belong to several {what}"
    ) as caught:
        choose_series(find_images(mixed), None, "mixed")
    assert CANARY not in str(caught.value)
    incomplete = write_series(tmp_path / "incomplete", VALUES, change=_with(field, "", (1,)))
    assert len(choose_series(find_images(incomplete), None, "incomplete").planes) == 3


@pytest.mark.parametrize(("patients", "help_with_uids"), [("1", True), ("123", False)])
def test_slices_that_were_written_one_by_one_are_told_apart_from_several_studies(tmp_path, patients, help_with_uids):
    """The example DicomSeriesFromArray of SimpleITK writes each slice with a StudyInstanceUID of its own."""

    def singly(dataset: Dataset, k: int) -> None:
        dataset.StudyInstanceUID, dataset.PatientID = f"1.2.{k + 1}", patients[k % len(patients)]

    folder = write_series(tmp_path / "s", VALUES, change=singly)
    with pytest.raises(DataError, match=r"belong to several (patients and )?studies") as caught:
        choose_series(find_images(folder), None, "s")
    assert (
        "write the same StudyInstanceUID and FrameOfReferenceUID into all of them" in str(caught.value)
    ) is help_with_uids


@pytest.mark.parametrize("described", [1, 3])
def test_a_file_that_does_not_describe_each_of_its_frames_is_damaged(tmp_path, described):
    path = write_enhanced(tmp_path / "s", [(VALUES[..., k], 3.0 * k, Dataset()) for k in range(2)])
    assert len(find_images(path).series[0].planes) == 2
    dataset = pydicom.dcmread(path)
    dataset.PerFrameFunctionalGroupsSequence = (list(dataset.PerFrameFunctionalGroupsSequence) * 2)[:described]
    dataset.save_as(path)
    with pytest.raises(
        DataError, match=rf"is a damaged DICOM file: it has 2 frame\(s\), and functional groups of {described};"
    ):
        find_images(path)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.dcm")
    with pytest.raises(DataError, match=r"'a.dcm' is a damaged"):
        read_head(tmp_path / "a.dcm")


@pytest.mark.parametrize("index", INDEXES, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_a_dicomdir_is_counted_and_left_out(folder, index):
    shutil.copy(index, folder / "DICOMDIR")
    found = find_images(folder)
    assert [len(one.planes) for one in found.series] == [2, 3]
    assert dict(found.others) == {"not DICOM": 1, "DICOMDIR": 1}


def test_an_export_with_a_dicomdir_is_read(tmp_path):
    def dated(dataset: Dataset, _: int) -> None:
        dataset.StudyDate, dataset.StudyTime, dataset.StudyID = "20200101", "101010", "1"

    export = FileSet()
    for path in sorted(write_series(tmp_path / "s", VALUES, change=dated).iterdir()):
        export.add(path)
    export.write(tmp_path / "export")
    found = find_images(tmp_path / "export")
    assert [len(one.planes) for one in found.series] == [3]
    assert dict(found.others) == {"DICOMDIR": 1}
