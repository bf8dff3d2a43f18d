"""Requests on the wire, and as people are told of them."""

import json

import pytest

from pfedsam.core.errors import UpdateError
from pfedsam.federation.messages import Request, in_words, request_from_wire, request_to_wire


@pytest.mark.parametrize(
    ("task", "round_", "rounds", "text"),
    [
        ("train", 0, 24, "train of round 1"),
        ("validate", 23, 24, "validate of round 24"),
        ("validate", 24, 24, "validate at the end"),
        ("validate", 24, None, "validate of round 25"),
        ("join", 7, 24, "join"),
        ("finalize", 24, 24, "finalize"),
        ("test", 24, 24, "test"),
    ],
)
def test_rounds_are_counted_from_1_and_none_comes_after_the_last(
    task: str, round_: int, rounds: int, text: str
) -> None:
    assert in_words(task, round_, rounds) == text


@pytest.mark.parametrize("ends", [None, 40])
def test_a_request_is_what_was_sent(ends: int | None) -> None:
    request = Request("train", "study", "digest", 3, b"manifest", b"shared", ends)
    assert request_from_wire(request_to_wire(request)) == request


@pytest.mark.parametrize("ends", [-1, 1.5, True, "9", 10**9, [3]])
def test_an_end_that_is_no_number_of_rounds_is_refused(ends: object) -> None:
    wire = request_to_wire(Request("train", "study", "digest", 3))
    wire["head"] = json.dumps({**json.loads(wire["head"]), "ends": ends}).encode()
    with pytest.raises(UpdateError, match=r"number of rounds in a request is not valid"):
        request_from_wire(wire)
