"""Requests on the wire, and as people are told of them."""

import json

import pytest

from pfedsam.core.errors import UpdateError
from pfedsam.federation.messages import Request, request_from_wire, request_to_wire


@pytest.mark.parametrize("ends", [None, 40])
def test_a_request_is_what_was_sent(ends: int | None) -> None:
    request = Request("train", "study", "digest", 3, b"manifest", b"shared", ends)
    assert request_from_wire(request_to_wire(request)) == request


@pytest.mark.parametrize("ends", [0, -1, 1.5, True, "9", 10**9, [3]])
def test_an_end_that_is_no_number_of_rounds_is_refused(ends: object) -> None:
    wire = request_to_wire(Request("train", "study", "digest", 3))
    wire["head"] = json.dumps({**json.loads(wire["head"]), "ends": ends}).encode()
    with pytest.raises(UpdateError, match=r"number of rounds in a request is not valid"):
        request_from_wire(wire)
