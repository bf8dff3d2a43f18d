"""Small files show damage when they are read."""

import json

import pytest

from pfedsam.core import sealed
from pfedsam.core.errors import StoreError

CONTENT = {"north": 12, "words": ["a", "\u00e9"], "share": 0.25}


def test_what_was_written_is_read_and_other_readers_find_it_too(tmp_path):
    sealed.write_json(tmp_path / "f.json", CONTENT)
    assert sealed.read_json(tmp_path / "f.json", "") == CONTENT
    assert json.loads((tmp_path / "f.json").read_text("utf-8")).items() >= CONTENT.items()


def test_keys_keep_their_order(tmp_path):
    """That of the classes is the order of the model's outputs: sites that read another one would number them otherwise."""
    classes = {"organ": [1], "lesion": [2], "cup": [3]}
    sealed.write_json(tmp_path / "f.json", {"classes": classes})
    assert list(sealed.read_json(tmp_path / "f.json", "")["classes"]) == list(classes)


def test_any_bit_that_changes_is_told_or_changes_nothing(tmp_path):
    path = tmp_path / "f.json"
    sealed.write_json(path, CONTENT)
    data = path.read_bytes()
    for at in range(len(data)):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :])
        try:
            found = sealed.read_json(path, "")
        except StoreError:
            continue
        # White space, or a digest under another name, which who reads the file does not know.
        assert found == CONTENT or len(found) == len(CONTENT) + 1


@pytest.mark.parametrize("data", [b"", b"[1]", b"null", b"{", b"\0" * 50, b"\xff", b"[" * 10_000])
def test_what_is_no_object_is_told(tmp_path, data):
    (tmp_path / "f.json").write_bytes(data)
    with pytest.raises(StoreError, match=r"f\.json is damaged.*Do this"):
        sealed.read_json(tmp_path / "f.json", "Do this.")


def test_a_missing_file_is_told_and_one_without_a_digest_is_read(tmp_path):
    with pytest.raises(StoreError, match=r"f\.json is missing\. Do this"):
        sealed.read_json(tmp_path / "f.json", "Do this.")
    (tmp_path / "f.json").write_text(json.dumps(CONTENT))
    assert sealed.read_json(tmp_path / "f.json", "") == CONTENT


def test_a_text_that_was_cut_or_changed_is_told_and_one_without_a_digest_passes(tmp_path):
    path, text = tmp_path / "config.yaml", "rounds: 60\nseed: 3\n"
    data = sealed.seal_text(text).encode()
    for found in (data, text.encode()):
        path.write_bytes(found)
        sealed.check_text(path, "")
    for at in range(len(data)):
        changed = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        for damaged in (changed, data[:at], bytes(len(data))):
            path.write_bytes(damaged)
            if at > 0 or damaged != changed:  # one whose first `#` is gone is no YAML any more, which its reader tells
                with pytest.raises(StoreError, match=r"config\.yaml is damaged"):
                    sealed.check_text(path, "")
