"""A comparison gives every method the same number of steps, and refuses wrong options before anything is trained."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from pfedsam.core.errors import DataError, OptionError, RunError
from pfedsam.engine import compare as module
from pfedsam.engine.compare import PAGE, compare
from pfedsam.engine.progress import Event
from pfedsam.experiment.load import write_config
from pfedsam.experiment.options import RunOptions


@pytest.fixture
def options(toy_options: RunOptions) -> RunOptions:
    training = toy_options.training.model_copy(
        update={"final_steps": 0, "phases": "coupled", "shared_warmup_rounds": 0}
    )
    return toy_options.model_copy(update={"training": training})


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[RunOptions, Path, bool]]:
    """The runs that are asked for; none is trained."""
    asked: list[tuple[RunOptions, Path, bool]] = []

    def run(options: RunOptions, folder: Path, *, resume: bool, progress: Any) -> str:
        asked.append((options, folder, resume))
        progress(Event("train", 1, 1, ""))
        return options.method

    monkeypatch.setattr(module, "run", run)
    monkeypatch.setattr(module, "refuse_other_inputs", lambda options, folder, inputs: None)
    monkeypatch.setattr(module, "write_page", lambda folder, baseline: None)
    monkeypatch.setattr(module, "write_comparison", lambda runs, page: page.write_text(",".join(runs)))
    return asked


def test_one_run_for_each_method_with_equal_steps_and_one_cache(
    options: RunOptions, tmp_path: Path, runs: list[tuple[RunOptions, Path, bool]]
) -> None:
    told: list[tuple[str, Event]] = []
    found = compare(options, tmp_path, ["local-only", "pfedsam"], progress=lambda *event: told.append(event))
    assert found == {"local-only": "local-only", "pfedsam": "pfedsam"}
    assert [folder.name for _, folder, _ in runs] == ["local-only", "pfedsam"]
    assert {one.training.rounds * one.training.steps_per_round for one, _, _ in runs} == {8}
    assert {one.runtime.cache_folder for one, _, _ in runs} == {(tmp_path / "cache").resolve()}
    assert [name for name, _ in told] == ["local-only", "pfedsam"]
    assert (tmp_path / PAGE).read_text() == "local-only,pfedsam"


def test_only_runs_that_were_begun_are_resumed(
    options: RunOptions, tmp_path: Path, runs: list[tuple[RunOptions, Path, bool]]
) -> None:
    (tmp_path / "pfedsam").mkdir()
    write_config(tmp_path / "pfedsam" / "config.yaml", options)
    compare(options, tmp_path, ["pfedsam", "local-only"], resume=True)
    assert [resume for _, _, resume in runs] == [True, False]


@pytest.mark.parametrize("name", ["config.yaml", "site.yaml"])
def test_the_folder_of_a_run_is_not_used_for_a_comparison(
    options: RunOptions, tmp_path: Path, runs: list[tuple[RunOptions, Path, bool]], name: str
) -> None:
    (tmp_path / name).touch()
    for resume in (False, True):
        with pytest.raises(RunError, match="is the folder of a run or of a site"):
            compare(options, tmp_path, ["pfedsam", "local-only"], resume=resume)
    assert runs == []
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_comparison_without_anything_to_resume_says_so(
    options: RunOptions,
    tmp_path: Path,
    runs: list[tuple[RunOptions, Path, bool]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "out").mkdir()
    compare(options, tmp_path / "out", ["pfedsam", "local-only"], resume=True)
    assert "contains no run that could be continued: a new one begins there" in caplog.text
    caplog.clear()
    (tmp_path / "out" / "pfedsam").mkdir()
    write_config(tmp_path / "out" / "pfedsam" / "config.yaml", options)
    compare(options, tmp_path / "out", ["pfedsam", "local-only"], resume=True)
    assert caplog.text == ""


@pytest.mark.parametrize(("methods", "named"), [([], "--methods is empty"), (["pfedsam", "pfedsan"], "pfedsan")])
def test_a_mistake_is_refused_before_anything_is_run(
    options: RunOptions, tmp_path: Path, runs: list[tuple[RunOptions, Path, bool]], methods: list[str], named: str
) -> None:
    with pytest.raises(OptionError, match=named):
        compare(options, tmp_path, methods)
    assert runs == []


def test_a_method_that_cannot_be_trained_with_the_sites_is_refused_before_another_one_is_trained(
    options: RunOptions, tmp_path: Path, runs: list[tuple[RunOptions, Path, bool]]
) -> None:
    with pytest.raises(OptionError, match=r"trimmed-mean needs updates of at least 4 sites .*; there are 3"):
        compare(options, tmp_path, ["local-only", "pfedsam", "trimmed-mean"])
    content = options.model_dump(mode="json", exclude_unset=True)
    site, folder = next(iter(content["data"]["sites"].items()))
    content["data"]["sites"][site] = {"folder": folder, "not_annotated": ["lesion"]}
    with pytest.raises(OptionError, match=r"method centralized .* the sites do not annotate the same classes"):
        compare(RunOptions.model_validate(content), tmp_path, ["local-only", "pfedsam", "centralized"])
    assert runs == []


def test_a_folder_that_contains_a_run_is_refused_before_another_method_is_trained(
    options: RunOptions, tmp_path: Path, runs: list[tuple[RunOptions, Path, bool]]
) -> None:
    (tmp_path / "pfedsam").mkdir()
    write_config(tmp_path / "pfedsam" / "config.yaml", options)
    with pytest.raises(RunError, match="The folder 'pfedsam' contains a run already"):
        compare(options, tmp_path, ["local-only", "pfedsam"])
    with pytest.raises(RunError, match=r"The run in 'pfedsam' has another configuration; different: training.rounds\."):
        compare(_with_rounds(options, 6), tmp_path, ["local-only", "pfedsam"], resume=True)
    (tmp_path / "local-only").mkdir()
    (tmp_path / "local-only" / "notes.txt").touch()
    with pytest.raises(RunError, match="The folder 'local-only' is not empty and contains no run"):
        compare(options, tmp_path, ["pfedsam", "local-only"], resume=True)
    assert runs == []


def _with_rounds(options: RunOptions, rounds: int) -> RunOptions:
    return options.model_copy(update={"training": options.training.model_copy(update={"rounds": rounds})})


@pytest.mark.slow
def test_a_further_method_does_not_begin_on_other_data(toy_options: RunOptions, tmp_path: Path) -> None:
    site, folder = next(iter(toy_options.data.sites.items()))
    data = Path(shutil.copytree(folder, tmp_path / "data"))
    content = toy_options.model_dump(mode="json", exclude_unset=True)
    content["data"]["sites"][site] = str(data)
    content["training"] = {"rounds": 2, "steps_per_round": 2, "batch_size": 2, "patience": None}
    one = RunOptions.model_validate(content)
    compare(one, tmp_path / "out", ["pfedsam"])
    for part in ("images", "masks"):
        first = min((data / part).iterdir())
        shutil.copy(first, first.with_stem("p9999_1"))
    events: list[str] = []
    with pytest.raises(
        DataError, match=r"compared with pfedsam, which has begun: .*'p9999_1'.*remove the cases that were"
    ):
        compare(one, tmp_path / "out", ["fedavg", "pfedsam"], resume=True, progress=lambda name, _: events.append(name))
    assert events == []
    assert not (tmp_path / "out" / "fedavg").exists()
