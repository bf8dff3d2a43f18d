"""What the controller makes of NVFlare's own messages; the rounds themselves are `engine.rounds`'s."""

from types import SimpleNamespace

import pytest

pytest.importorskip("nvflare")
from pfedsam.deploy.controller import StudyController


def test_a_site_that_asks_too_late_whether_its_reply_is_wanted_is_counted_once() -> None:
    """NVFlare's client drops a reply that is not wanted any more, so that its question is all that comes (row 18)."""
    controller = StudyController("0123456789abcdef")
    controller.communicator = SimpleNamespace(process_task_check=lambda task_id, fl_ctx: {"new": "task"}.get(task_id))
    controller._watch_questions()
    controller._overdue = {"old": "north"}
    check = controller.communicator.process_task_check
    assert [check(task_id=task, fl_ctx=None) for task in ("new", "old", "old", "unknown")] == ["task", None, None, None]
    assert controller._late == {"north": 1}
