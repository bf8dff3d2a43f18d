"""What NVFlare itself makes of the site's own rules: only our classes are built, and the gate is in every job's chain."""

from pathlib import Path

import pytest

pytest.importorskip("nvflare")
from nvflare.apis.fl_constant import FilterKey
from nvflare.apis.fl_exception import UnsafeComponentError
from nvflare.apis.workspace import Workspace
from nvflare.app_common.widgets.component_path_authorizer import ComponentPathAuthorizer
from nvflare.private.fed.app.fl_conf import create_privacy_manager

from pfedsam.deploy.site_kit import install_kit
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


def test_our_executor_may_be_built(workspace: Workspace) -> None:
    name = "pfedsam.deploy.site_side.SiteExecutor"
    ComponentPathAuthorizer().authorize_component_config({"path": name}, workspace=workspace)


def test_the_gate_is_in_the_only_scope_and_that_is_the_default(workspace: Workspace) -> None:
    manager = create_privacy_manager(workspace, names_only=False)
    assert list(manager.name_to_scopes) == ["pfedsam"]
    assert manager.get_scope(None) is manager.get_scope("pfedsam")
    filters = manager.default_scope.task_result_filters[FilterKey.OUT]
    assert [type(one) for one in filters] == [SiteGate]
