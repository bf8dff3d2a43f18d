"""Requests and replies as bytes, and their names in messages to users."""

import json

import pytest

from pfedsam.core.errors import UpdateError
from pfedsam.federation.messages import (
    Reply,
    Request,
    reply_from_wire,
    reply_to_wire,
    request_from_wire,
    request_to_wire,
)

STUDY, DIGEST = "0123456789abcdef", "a" * 64


@pytest.mark.parametrize("ends", [None, 40])
def test_a_request_is_what_was_sent(ends: int | None) -> None:
    request = Request("train", STUDY, DIGEST, 3, b"manifest", b"shared", ends)
    assert request_from_wire(request_to_wire(request)) == request


@pytest.mark.parametrize("ends", [0, -1, 1.5, True, "9", 10**9, [3]])
def test_an_end_that_is_no_number_of_rounds_is_refused(ends: object) -> None:
    wire = request_to_wire(Request("train", STUDY, DIGEST, 3))
    wire["head"] = json.dumps({**json.loads(wire["head"]), "ends": ends}).encode()
    with pytest.raises(UpdateError, match=r"number of rounds in a request is not valid"):
        request_from_wire(wire)


@pytest.mark.parametrize(
    ("study", "digest"),
    [
        (STUDY + "0", DIGEST),
        (STUDY[1:], DIGEST),
        (STUDY.upper(), DIGEST),
        (STUDY + "\n", DIGEST),
        ("../../../etc/pass", DIGEST),
        ("", DIGEST),
        (3, DIGEST),
        (STUDY, DIGEST + "0"),
        (STUDY, "g" * 64),
        (STUDY, None),
    ],
)
def test_a_request_of_a_study_with_another_form_of_name_is_refused(study: object, digest: object) -> None:
    """A site writes the study into its ledger; with a text of megabytes, a coordinator could fill the site's disk."""
    wire = request_to_wire(Request("train", STUDY, DIGEST, 3))
    wire["head"] = json.dumps({**json.loads(wire["head"]), "study": study, "digest": digest}).encode()
    with pytest.raises(UpdateError, match=r"16 and 64 hexadecimal digits"):
        request_from_wire(wire)


@pytest.mark.parametrize("study", [STUDY + "0", STUDY[1:], "Jane Doe", None])
def test_a_reply_of_a_study_with_another_form_of_name_is_refused(study: object) -> None:
    wire = reply_to_wire(Reply("train", STUDY, 3))
    wire["head"] = json.dumps({**json.loads(wire["head"]), "study": study}).encode()
    with pytest.raises(UpdateError, match=r"16 hexadecimal digits"):
        reply_from_wire(wire)
