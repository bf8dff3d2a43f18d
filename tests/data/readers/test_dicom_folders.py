import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from volume_files import all_planes, write_series

from pfedsam.core.errors import DataError
from pfedsam.data.readers.dicom import DicomReader
from pfedsam.data.readers.dicom_folders import is_dicom, looks_like_dicom, refuse_lost_slices, start_of, visible_files


def test_dicom_is_told_by_its_content(tmp_path):
    (path,) = write_series(tmp_path / "s", np.zeros((6, 8, 1), np.int16)).iterdir()
    assert looks_like_dicom(path)
    bare = tmp_path / "bare"
    bare.write_bytes(path.read_bytes()[132:])  # without the preamble
    assert looks_like_dicom(bare)
    assert is_dicom(start_of(bare))
    for content in (b"", b"text that is no DICOM file, of some length" * 5, b"\x89PNG\r\n\x1a\n" + bytes(200)):
        bare.write_bytes(content)
        assert not looks_like_dicom(bare)
    assert not looks_like_dicom(tmp_path / "nothing")


def test_a_pipe_is_no_dicom_and_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.dcm")
    assert not looks_like_dicom(tmp_path / "a.dcm")
    with pytest.raises(DataError, match=r"/a\.dcm' cannot be read \(it is a folder, a pipe or a device"):
        start_of(tmp_path / "a.dcm")


def test_files_come_in_the_order_of_their_paths_and_links_to_folders_as_they_are(tmp_path):
    for name in ("s/b/2", "s/b/.Trash/3", "s/a", "s/.hidden", "s/.AppleDouble/a", "s/c", "other/1"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / "s/d").symlink_to(tmp_path / "other")
    (tmp_path / "s/e").symlink_to(tmp_path / "s")  # a cycle
    found = visible_files(tmp_path / "s")
    assert [str(path.relative_to(tmp_path)) for path in found] == ["s/a", "s/b/2", "s/c", "s/d", "s/e"]
    assert list(visible_files(tmp_path / "s/a")) == [tmp_path / "s/a"]


def test_what_hidden_folders_hold_is_no_slice(tmp_path):
    values = np.arange(120, dtype=np.int16).reshape(6, 5, 4)
    folder = write_series(tmp_path / "s", values)
    upright = all_planes(DicomReader(folder))
    for hidden in (".AppleDouble", ".Trash"):
        (folder / hidden).mkdir()
    (folder / ".AppleDouble/IM.dcm").write_bytes(b"\0\5\x16\7" + bytes(40))
    shutil.copy(next(folder.glob("IM*")), folder / ".Trash")
    np.testing.assert_array_equal(all_planes(DicomReader(folder)), upright)


def test_what_cannot_be_read_is_told(tmp_path):
    (tmp_path / "s/inner").mkdir(parents=True)
    (tmp_path / "s/file").symlink_to("/mnt/archive/1.dcm")
    (tmp_path / "s/folder").symlink_to(tmp_path)
    with pytest.raises(DataError, match=r"s/file is a link to '/mnt/archive/1\.dcm', which does not exist"):
        start_of(tmp_path / "s/file")
    with pytest.raises(
        DataError, match=r"'s/folder' is a link to a folder, which is not followed, so that slices may be"
    ):
        start_of(tmp_path / "s/folder")
    with pytest.raises(DataError, match=r"'s/inner' is a folder that cannot be listed"):
        start_of(tmp_path / "s/inner")


@pytest.mark.skipif(os.getuid() == 0, reason="root may read everything")
def test_files_and_folders_without_permission_are_told(tmp_path):
    for path in (tmp_path / "s/a", tmp_path / "s/b"):
        path.parent.mkdir(exist_ok=True)
        path.mkdir() if path.name == "b" else path.touch()
        path.chmod(0)
    try:
        assert list(visible_files(tmp_path / "s")) == [tmp_path / "s/a", tmp_path / "s/b"]
        assert not looks_like_dicom(tmp_path / "s/a")
        with pytest.raises(
            DataError, match=r"'s/a' cannot be read \(Permission denied\), so that slices may be missing"
        ):
            start_of(tmp_path / "s/a")
    finally:
        (tmp_path / "s/b").chmod(0o700)


@pytest.mark.parametrize(
    ("name", "start", "what"),
    [
        ("IM5", b"", "it is empty"),
        ("IM5", bytes(132), "it begins with zeros"),
        ("1.2.840.5", bytes(131) + b"D", None),
        ("IM5", b"II*\0" + bytes(96), "it has only 100 bytes"),
        ("im5.DCM", b"x" * 132, "its content is of another kind"),
        ("im5.ima", b"short text", "its content is of another kind"),
        ("im5.mr", b"x" * 132, "its content is of another kind"),  # the ending of the DICOM file beside it
        ("readme.txt", b"", None),
        ("study.json", b"{}", None),
        ("VERSION", b"1.2\n", None),
        ("Thumbs.db", b"\xd0\xcf\x11\xe0" + bytes(128), None),
        ("thumb.jpg", b"\xff\xd8\xff\xe0" + bytes(128), None),
    ],
)
def test_a_file_that_may_be_a_lost_slice_is_refused_and_others_are_not(name, start, what):
    others, dicom = {Path("s") / name: start}, [Path("s/im1.mr"), Path("s/IM2")]
    if what is None:
        refuse_lost_slices(others, dicom)
        return
    with pytest.raises(
        DataError, match=rf"'s/{name}' is among DICOM files, but is not DICOM \({what}\), so that a slice may be"
    ):
        refuse_lost_slices(others, dicom)
