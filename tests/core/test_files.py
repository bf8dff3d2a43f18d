import os

import pytest

from pfedsam.core.files import open_regular, read_regular


def test_a_file_and_a_link_to_one_are_opened(tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("file")
    with open_regular(tmp_path / "file") as file, open_regular(tmp_path / "link") as link:
        assert file.read() == link.read() == b"content"


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "none", "loop"])
def test_anything_else_is_refused_at_once(tmp_path, kind):
    path = tmp_path / kind
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind in ("device", "loop"):
        path.symlink_to("/dev/zero" if kind == "device" else kind)
    expected = {"none": "No such file", "loop": "Too many levels"}.get(kind, "not a file")
    with pytest.raises(OSError, match=expected) as refused:
        open_regular(path)
    assert refused.value.filename == str(path)


def test_a_file_is_read_up_to_a_size(tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    assert read_regular(tmp_path / "file", 7) == b"content"
    with pytest.raises(OSError, match="more than 6 bytes") as refused:
        read_regular(tmp_path / "file", 6)
    assert refused.value.filename == str(tmp_path / "file")
