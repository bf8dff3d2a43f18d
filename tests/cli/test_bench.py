"""`pfedsam bench`: mistakes are told before anything runs, and a command can be repeated anywhere."""

from collections.abc import Callable
from pathlib import Path

import pytest

from pfedsam.cli import bench
from pfedsam.core.errors import OptionError
from pfedsam.experiment.suite import Entry, Suite
from pfedsam.runtime.bench import Plan

Call = Callable[..., int]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--suite", "nuclie"], 2, "shipped are nuclei, retina"),
        (["--suite", "nuclei", "--methods", "fedx"], 2, "no method 'fedx'"),
        (["--suite", "nuclei", "--variants", "fedx"], 2, "no variant 'fedx'"),
        (["--suite", "nuclei", "--seeds", "one"], 2, "whole numbers"),
        (["--suite", "nuclei"], 3, "lacks the site"),
    ],
)
def test_mistakes_are_told_before_anything_runs(
    call: Call,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    words: list[str],
    code: int,
    message: str,
) -> None:
    out = tmp_path / "out"
    (tmp_path / "data").mkdir()
    assert call("bench", "accuracy", "--data", str(tmp_path / "data"), "--out", str(out), *words) == code
    assert message in " ".join(capsys.readouterr().err.split())
    assert not out.exists()


def test_the_written_command_names_no_folder(tmp_path: Path) -> None:
    suite = Suite.model_validate({"name": "mine", "options": {}})
    plan = Plan(suite, [Entry("fedavg", "fedavg")], [0, 2], tmp_path, tmp_path / "out", ["training.rounds=2"])
    written = bench._command(plan, "accuracy", str(tmp_path / "mine.yaml"), "fedavg", "")
    assert written == (
        "pfedsam bench accuracy --data DIR --suite mine.yaml --methods fedavg --seeds 0,2 --set training.rounds=2"
    )


def test_limited_plans_share_the_cache_and_nothing_else(tmp_path: Path) -> None:
    suite = Suite.model_validate({"name": "mine", "options": {}})
    plan = Plan(suite, [], [0], tmp_path, tmp_path / "out")
    limited = bench._limited(plan, "4")
    assert limited.overrides == ["data.split.max_train_cases=4"]
    assert (limited.out, limited.cache) == (tmp_path / "out" / "labels-4", tmp_path / "out" / "cache")


def test_converged_plans_run_three_times_as_long_and_stop_early(tmp_path: Path) -> None:
    suite = Suite.model_validate({"name": "mine", "options": {"training": {"rounds": 5}}})
    plan = bench._converged(Plan(suite, [], [0], tmp_path, tmp_path / "out", ["training.rounds=9"]))
    assert plan.overrides == [
        "training.rounds=15",
        "evaluation.max_drop=0",
        "training.rounds=9",
    ]  # --set has the last word
    assert (plan.out, plan.cache) == (tmp_path / "out" / "converged", tmp_path / "out" / "cache")
    assert bench._limited(plan, "4").cache == plan.cache


def test_numbers() -> None:
    assert bench._numbers("0, 2,2") == [0, 2]
    assert bench._numbers(None) == []
    with pytest.raises(OptionError, match="whole numbers"):
        bench._numbers("a")
