"""What NVFlare itself makes of the site's own rules: only our classes are built, and the gate is in every job's chain."""

from pathlib import Path

import pytest

pytest.importorskip("nvflare")
from nvflare.apis.fl_constant import FilterKey, ReturnCode
from nvflare.apis.fl_exception import UnsafeComponentError
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.apis.workspace import Workspace
from nvflare.app_common.widgets.component_path_authorizer import ComponentPathAuthorizer
from nvflare.private.fed.app.fl_conf import create_privacy_manager

from pfedsam.core.errors import RunError
from pfedsam.deploy.jobs import write_job
from pfedsam.deploy.provision import install_kit
from pfedsam.deploy.site_service import SITE_FOLDER
from pfedsam.deploy.site_side import SiteGate, site_folder
from pfedsam.deploy.wire import failure, from_shareable, to_shareable
from pfedsam.federation.ledger import Ledger
from pfedsam.federation.messages import Reply, reply_from_wire, reply_to_wire


class Context:
    """What the filter asks of NVFlare's context."""

    def get_identity_name(self) -> str:
        return "north"


@pytest.fixture
def workspace(kits: Path, tmp_path: Path) -> Workspace:
    install_kit(kits / "kits" / "north.zip", tmp_path / "nvflare")
    return Workspace(str(tmp_path / "nvflare"), site_name="north")


@pytest.mark.parametrize(
    "path",
    [
        "nvflare.app_common.np.np_trainer.NPTrainer",
        "nvflare.app_common.executors.task_script_runner.TaskScriptRunner",
        "nvflare.app_common.logging.job_log_streamer.JobLogStreamer",
        "pfedsam.deploy.controller.StudyController",
        "subprocess.Popen",
    ],
)
def test_a_job_that_names_another_class_is_refused(workspace: Workspace, path: str) -> None:
    with pytest.raises(UnsafeComponentError, match="allow_list"):
        ComponentPathAuthorizer().authorize_component_config({"path": path}, workspace=workspace)


def test_our_executor_may_be_built(workspace: Workspace) -> None:
    name = "pfedsam.deploy.site_side.SiteExecutor"
    ComponentPathAuthorizer().authorize_component_config({"path": name}, workspace=workspace)


def test_the_gate_is_in_the_only_scope_and_that_is_the_default(workspace: Workspace) -> None:
    manager = create_privacy_manager(workspace, names_only=False)
    assert list(manager.name_to_scopes) == ["pfedsam"]
    assert manager.get_scope(None) is manager.get_scope("pfedsam")
    filters = manager.default_scope.task_result_filters[FilterKey.OUT]
    assert [type(one) for one in filters] == [SiteGate]


def test_the_gate_makes_a_fresh_message_without_what_was_slipped_in(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv(SITE_FOLDER, str(tmp_path))
    message = to_shareable(reply_to_wire(Reply("train", "s", 0, refused="data")))
    message.set_header("note", "Jane Doe")
    out = SiteGate().process(message, Context())
    assert "Jane" not in repr(dict(out))
    assert reply_from_wire(from_shareable(out)).refused == "data"
    message["note"] = b"Jane Doe"
    assert reply_from_wire(from_shareable(SiteGate().process(message, Context()))).refused == "withheld"
    assert [line["sent"] for line in Ledger(tmp_path / "ledger.jsonl").read()] == [True, False]


def test_the_sites_folder_comes_from_the_environment_alone(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv(SITE_FOLDER, str(tmp_path / "own"))
    assert site_folder() == tmp_path / "own"
    monkeypatch.delenv(SITE_FOLDER)
    with pytest.raises(RunError, match="site start"):
        site_folder()


def test_a_failed_reply_is_the_engines_word_or_unknown() -> None:
    assert failure(make_reply(ReturnCode.TASK_ABORTED)) == "task aborted"
    assert failure(make_reply("Jane Doe")) == "unknown"
    assert failure(Shareable()) is None


def test_a_job_holds_no_code(tmp_path: Path) -> None:
    job = write_job(tmp_path / "job", "0" * 16, ["north"])
    assert sorted(path.suffix for path in job.rglob("*") if path.is_file()) == [".json"] * 3
