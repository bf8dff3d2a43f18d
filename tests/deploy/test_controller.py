"""How the controller handles NVFlare's own messages; the rounds themselves are tested with `engine.rounds`."""

from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("nvflare")
from pfedsam.deploy import controller as module
from pfedsam.deploy.controller import STUDIES, StudyController
from pfedsam.engine.study_folder import StudyFolder


def test_a_site_that_asks_too_late_whether_its_reply_is_wanted_is_counted_once() -> None:
    """NVFlare's client drops a reply that is not wanted any more, so that its question is all that comes (row 18)."""
    controller = StudyController("0123456789abcdef")
    controller.communicator = SimpleNamespace(process_task_check=lambda task_id, fl_ctx: {"new": "task"}.get(task_id))
    controller._watch_questions()
    controller._overdue = {"old": "north"}
    check = controller.communicator.process_task_check
    assert [check(task_id=task, fl_ctx=None) for task in ("new", "old", "old", "unknown")] == ["task", None, None, None]
    assert controller._late == {"north": 1}


@pytest.mark.parametrize(
    ("outcome", "state", "reason"),
    [
        ("finished", "finished", ""),
        ("again", "submitted", "a site joins"),
        ("waits", "submitted", "waits for the approval of north"),
    ],
)
def test_the_status_says_how_a_job_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outcome: str, state: str, reason: str
) -> None:
    asked: list[bool] = []

    def study_run(folder: Path, transport: object, *, may_wait: bool) -> SimpleNamespace:
        asked.append(may_wait)
        return SimpleNamespace(run=lambda: outcome, waits_for="waits for the approval of north")

    monkeypatch.setenv(STUDIES, str(tmp_path))
    monkeypatch.setattr(module, "StudyRun", study_run)
    monkeypatch.setattr(module, "configure", lambda *_: None)
    folder = StudyFolder(tmp_path / "0123456789abcdef")
    folder.path.mkdir()
    folder.write_status("running", round_=0, rounds=5, sites=[])
    controller = StudyController(folder.path.name, may_wait=True)
    controller._watch_questions = lambda: None
    controller.clients = lambda: ["north"]
    controller.control_flow(None, None)
    status = folder.read_status()
    assert (status["state"], status["reason"], asked) == (state, reason, [True])
