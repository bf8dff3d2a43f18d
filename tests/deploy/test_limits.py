"""The largest size of a message, and that no process of another user can connect over the loopback."""

import json
from pathlib import Path

import pytest

from pfedsam.deploy.limits import FRAME_BYTES, MIN_MESSAGE_BYTES, connection_settings, message_limit


def test_the_limit_of_a_message_follows_the_largest_study(tmp_path: Path) -> None:
    for name, side in (("small", 10), ("large", 5000)):
        (tmp_path / f"{name}.json").write_text(json.dumps({"tensors": {"w": {"shape": [side, side]}}}))
    (tmp_path / "broken.json").write_text("{")
    assert message_limit([tmp_path / "small.json", tmp_path / "broken.json"]) == MIN_MESSAGE_BYTES
    assert message_limit(tmp_path.glob("*.json")) > 5000 * 5000 * 4


@pytest.mark.parametrize("text", ["[]", "{}", '{"tensors": {"w": {"shape": "x"}}}', '{"tensors": 3}', "[" * 10_000])
def test_of_a_damaged_manifest_nothing_is_expected(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    assert message_limit([tmp_path / "manifest.json", tmp_path / "none.json"]) == MIN_MESSAGE_BYTES


def test_settings_name_the_limit_and_a_loopback_under_mutual_tls() -> None:
    settings = connection_settings(123)
    assert (settings["max_message_size"], settings["streaming_max_blob_size"]) == (123, 123)
    assert not settings["allow_adhoc_conns"]
    assert settings["internal"]["resources"] == {"host": "localhost", "connection_security": "mtls"}
    assert {value for _, value in settings["grpc"]["options"]} == {FRAME_BYTES}
