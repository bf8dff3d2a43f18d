"""The replies of a transport cannot be changed by accident."""

import dataclasses

import pytest

from pfedsam.engine.local import LocalTransport
from pfedsam.engine.transport import Answers, Transport


def test_answers_without_more_have_nothing_missing_and_nothing_late() -> None:
    answers = Answers({"north": {}})
    assert (answers.missing, answers.late) == ({}, {})
    with pytest.raises(dataclasses.FrozenInstanceError):
        answers.wires = {}  # type: ignore[misc]


def test_the_local_transport_has_every_function_of_the_protocol() -> None:
    wanted = {name for name in vars(Transport) if not name.startswith("_")}
    assert wanted == {"connected", "ask", "needs_new_job"}
    assert wanted <= set(dir(LocalTransport))
