"""A site knows the earlier requests after a restart, and damage to their file is reported."""

from pathlib import Path

import pytest

from pfedsam.core.errors import StoreError
from pfedsam.federation.messages import Reply, Request
from pfedsam.federation.request_history import RequestHistory

STUDY, DIGEST = "0123456789abcdef", "a" * 64


def asked(folder: Path, rounds: int = 2) -> None:
    """A site has trained the first rounds of a study."""
    history = RequestHistory(folder)
    for round_ in range(rounds):
        request = Request("train", STUDY, DIGEST, round_, shared=b"shared %d" % round_)
        history.enter(request)
        history.keep(request, Reply("train", STUDY, round_, {"loss.global.total": 0.5}, b"update"))


def test_rounds_and_the_last_reply_are_known_after_a_restart(tmp_path: Path) -> None:
    asked(tmp_path)
    history = RequestHistory(tmp_path)
    assert history.rounds_trained == 2
    again = history.reply(Request("train", STUDY, DIGEST, 1, shared=b"shared 1"))
    assert again == Reply("train", STUDY, 1, {"loss.global.total": 0.5}, b"update")
    assert history.reply(Request("train", STUDY, DIGEST, 1, shared=b"other")) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[:-9], "is not JSON"),
        (lambda data: data.replace(b'"1":', b'"7":'), "does not have the digest"),  # still sound JSON of the right form
        (lambda data: bytes(len(data)), "is not JSON"),
        (lambda data: None, "requests.json is missing"),
    ],
    ids=["cut", "one round renamed", "zeroed", "missing"],
)
def test_damage_is_named(tmp_path: Path, change, message: str) -> None:
    asked(tmp_path)
    path = tmp_path / "requests.json"
    before = path.read_bytes()
    after = change(before)
    assert after != before
    path.unlink() if after is None else path.write_bytes(after)
    with pytest.raises(StoreError, match=rf"{message}.*restore the file from a backup, or leave the study"):
        RequestHistory(tmp_path)


def test_a_site_that_was_never_asked_has_no_history(tmp_path: Path) -> None:
    assert RequestHistory(tmp_path).rounds_trained == 0
