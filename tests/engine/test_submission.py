"""A study that is submitted again: every change of its sites and rules is reported, and none contradicts the rounds that were trained."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pfedsam.core.errors import OptionError
from pfedsam.engine.round_policy import RoundPolicy
from pfedsam.engine.study_folder import AGAIN, StudyFolder
from pfedsam.engine.submission import Submission, submit_study
from pfedsam.experiment.options import RunOptions
from pfedsam.federation.manifest import read_manifest

Submit = Callable[..., Submission]


@pytest.fixture
def submit(tmp_path: Path, toy_options: RunOptions) -> Submit:
    """Submits the toy study with these sites."""

    def _submit(sites: str, *, running: bool = False, **rules: object) -> Submission:
        content = toy_options.model_dump(mode="json")
        content["data"]["sites"] = {name: f"/{name}" for name in sites.split()}
        return submit_study(RunOptions.model_validate(content), tmp_path, rules, running=running)

    return _submit


def after_round(study: Path, round_: int, joined: str) -> StudyFolder:
    """The study's folder after this round, for which these sites had joined."""
    folder, manifest = StudyFolder(study), read_manifest(study / "manifest.json")
    folder.write_registered(dict.fromkeys(joined.split(), 10))
    folder.save_state(replace(folder.load_state(manifest), round=round_), manifest)
    return folder


def test_before_the_first_round_the_new_sites_replace_the_stored_ones(submit: Submit) -> None:
    first = submit("a b", quorum=1)
    assert (first.earlier, first.changed) == (None, False)
    folder = StudyFolder(first.folder)
    folder.write_registered({"a": 10, "b": 10})  # a job that committed nothing
    manifest = (first.folder / "manifest.json").read_bytes()
    second = submit("a c d", quorum=3)
    assert second.folder == first.folder
    assert second.earlier is not None
    assert (second.earlier.sites, second.earlier.round, second.changed) == (("a", "b"), 0, True)
    assert folder.read_sites() == ["a", "c", "d"]
    assert (first.folder / "manifest.json").read_bytes() == manifest
    assert not (first.folder / AGAIN).exists()


def test_sites_in_another_order_are_no_change(submit: Submit) -> None:
    submit("a b")
    assert not submit("b a").changed


def test_classes_in_another_order_are_refused(submit: Submit, tmp_path: Path, toy_options: RunOptions) -> None:
    folder = submit("a b").folder
    before = (folder / "config.yaml").read_bytes()
    classes = dict(reversed(toy_options.data.classes.items()))
    other = toy_options.model_copy(update={"data": toy_options.data.model_copy(update={"classes": classes})})
    sites = {"a": Path("/a"), "b": Path("/b")}
    other = other.model_copy(update={"data": other.data.model_copy(update={"sites": sites})})
    with pytest.raises(OptionError, match=r"has the classes organ, lesion in this order.*Nothing was changed"):
        submit_study(other, tmp_path, {}, running=False)
    assert (folder / "config.yaml").read_bytes() == before


def test_the_quorum_is_that_of_the_study_and_its_sites(submit: Submit) -> None:
    folder = StudyFolder(submit("a b c", quorum=3).folder)
    with pytest.raises(OptionError, match=r"quorum of 3 cannot be reached: the study has 2 site\(s\), a, b.*changed"):
        submit("a b")
    assert folder.read_sites() == ["a", "b", "c"]
    assert submit("a b", quorum=2).policy.quorum == 2
    assert folder.read_policy(RoundPolicy).quorum == 2
    with pytest.raises(OptionError, match="quorum of 3 cannot be reached"):
        submit("a b", quorum=3)
    assert folder.read_policy(RoundPolicy).quorum == 2


def test_after_the_first_round_sites_are_added_and_names_that_never_joined_removed(submit: Submit) -> None:
    folder = after_round(submit("a b nroth").folder, 1, joined="a b")
    assert submit("a b north").changed
    assert folder.read_sites() == ["a", "b", "north"]
    with pytest.raises(OptionError, match=r"^b took part in study .* 1 committed round.*pfedsam coordinator revoke"):
        submit("a north", deadline_s=5)
    assert folder.read_sites() == ["a", "b", "north"]
    assert folder.read_policy(RoundPolicy).deadline_s == RoundPolicy().deadline_s


def test_a_study_that_has_ended_keeps_its_sites(submit: Submit) -> None:
    folder = after_round(submit("a b").folder, 4, joined="a b")
    with pytest.raises(OptionError, match=r"All 4 round\(s\) of study .* are done with its sites a, b; .* title"):
        submit("a b c")
    assert folder.read_sites() == ["a", "b"]
    again = submit("a b", score_s=60).earlier
    assert again is not None
    assert (again.round, again.ends) == (4, 4)


def test_a_running_job_is_ended_after_its_round_if_something_changes(submit: Submit) -> None:
    folder = StudyFolder(submit("a b").folder)
    submit("a b", running=True)
    assert not (folder.path / AGAIN).exists()
    submit("a c", running=True)  # nobody has joined
    assert (folder.path / AGAIN).exists()
    folder.write_registered({"a": 10, "c": 10})
    with pytest.raises(OptionError, match=r"is being started with c, .* Stop the coordinator"):
        submit("a b", running=True)
    assert submit("a b").changed


def test_paths_follow_the_newest_submission(submit: Submit, tmp_path: Path, toy_options: RunOptions) -> None:
    """A backbone that was moved is found again; the study is the same."""
    first = submit("a b")
    moved = tmp_path / "elsewhere" / Path(toy_options.model.backbone).name
    moved.parent.mkdir()
    moved.symlink_to(toy_options.model.backbone)
    model = toy_options.model.model_copy(update={"backbone": str(moved)})
    data = toy_options.data.model_copy(update={"sites": {"a": Path("/a"), "b": Path("/b")}})
    options = toy_options.model_copy(update={"model": model, "data": data})
    second = submit_study(options, tmp_path, {}, running=False)
    assert (second.folder, second.changed) == (first.folder, False)
    assert str(moved) in (first.folder / "config.yaml").read_text()
