"""How NVFlare applies the rules of a site: only our classes can be built, and the gate is in the filter chain of every job."""

import json
from pathlib import Path

import pytest

pytest.importorskip("nvflare")
from nvflare.apis.fl_constant import FilterKey
from nvflare.apis.fl_exception import UnsafeComponentError
from nvflare.apis.workspace import Workspace
from nvflare.app_common.widgets.component_path_authorizer import ComponentPathAuthorizer
from nvflare.private.fed.app.fl_conf import create_privacy_manager

from pfedsam.deploy.limits import message_limit
from pfedsam.deploy.site_kit import install_kit
from pfedsam.deploy.site_rules import write_site_rules
from pfedsam.deploy.site_service import limit_is_too_small
from pfedsam.deploy.site_side import SiteGate


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


@pytest.mark.parametrize(("side", "small"), [(10, False), (3500, False), (3600, True)])
def test_a_study_with_longer_messages_than_a_running_site_accepts_is_noticed(
    kits: Path, tmp_path: Path, side: int, small: bool
) -> None:
    install_kit(
        kits / "kits" / "north.zip", tmp_path / "nvflare"
    )  # with a limit of 64 MiB, of which 16 MiB are for headers
    (tmp_path / "approved").mkdir()
    text = json.dumps({"tensors": {"w": {"shape": [side, side]}}})
    (tmp_path / "approved" / "0123456789abcdef.json").write_text(text)
    assert limit_is_too_small(tmp_path) is small
    write_site_rules(tmp_path / "nvflare", message_limit((tmp_path / "approved").glob("*.json")))
    assert not limit_is_too_small(tmp_path)


def test_our_executor_may_be_built(workspace: Workspace) -> None:
    name = "pfedsam.deploy.site_side.SiteExecutor"
    ComponentPathAuthorizer().authorize_component_config({"path": name}, workspace=workspace)


def test_the_gate_is_in_the_only_scope_and_that_is_the_default(workspace: Workspace) -> None:
    manager = create_privacy_manager(workspace, names_only=False)
    assert list(manager.name_to_scopes) == ["pfedsam"]
    assert manager.get_scope(None) is manager.get_scope("pfedsam")
    filters = manager.default_scope.task_result_filters[FilterKey.OUT]
    assert [type(one) for one in filters] == [SiteGate]
