"""`pfedsam bench`: mistakes are reported before anything runs, and its command can be repeated on another machine."""

import json
import shlex
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from pfedsam.bench.plan import Outcome, Plan
from pfedsam.cli import bench
from pfedsam.core.errors import OptionError
from pfedsam.experiment.suite import Entry, Suite, shipped_suites

Call = Callable[..., int]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--suite", "nuclie"], 2, "shipped are cardiac, disc, nuclei, retina"),
        (["--suite", "nuclei", "--methods", "fedx"], 2, "no method 'fedx'"),
        (["--suite", "nuclei", "--variants", "fedx"], 2, "no variant 'fedx'"),
        (["--suite", "nuclei", "--seeds", "one"], 2, "whole numbers"),
        (
            ["--suite", "nuclei", "--train-limit", "4", "--set", "data.split.max_train_cases=8"],
            2,
            "--set sets data.split.max_train_cases, which --train-limit sets for each run",
        ),
        (["--suite", "nuclei"], 3, "has no folder for the site"),
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


def test_the_help_names_every_shipped_suite(call: Call, capsys: pytest.CaptureFixture[str]) -> None:
    call("bench", "accuracy", "--help")
    shown = capsys.readouterr().out
    assert all(name in shown for name in shipped_suites())


def test_the_written_command_names_no_folder_of_this_machine(tmp_path: Path) -> None:
    suite = Suite.model_validate({"name": "mine", "options": {}})
    plan = Plan(suite, [Entry("fedavg", "fedavg")], [0, 2], tmp_path, tmp_path / "out", ["training.rounds=2"])
    written = bench._command(plan, "accuracy", str(tmp_path / "mine.yaml"), "fedavg", "")
    assert written == (
        "pfedsam bench accuracy --data DIR --suite mine.yaml --out runs/mine --methods fedavg --seeds 0,2 --set training.rounds=2"
    )


def test_a_shell_reads_the_written_command_with_the_words_that_were_given(tmp_path: Path) -> None:
    overrides = ["evaluation.lesions=[a, b]", r"data.patient_pattern=^(.+)_t\d$", "data.sites={it's: north}", "seed=*"]
    suite = Suite.model_validate({"name": "mine", "options": {}})
    plan = Plan(suite, [], [0], tmp_path, tmp_path / "out", overrides)
    written = bench._command(plan, "accuracy", str(tmp_path / "my suite.yaml"), "fedavg, pfedsam", "no experts")
    given = shlex.split(written)
    assert [given[place + 1] for place, word in enumerate(given) if word == "--set"] == overrides
    values = dict(pairwise(given))
    assert [values[name] for name in ("--suite", "--methods", "--variants", "--seeds")] == [
        "my suite.yaml",
        "fedavg, pfedsam",
        "no experts",
        "0",
    ]


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
    assert bench._numbers("0, 2,2", "--seeds", least=0) == [0, 2]
    assert bench._numbers(None, "--seeds") == []


@pytest.mark.parametrize("text", ["a", "0", "-3", "4,1.5", "²", "all"])
def test_a_number_that_is_none_or_too_small_is_told_with_its_option(text: str) -> None:
    with pytest.raises(OptionError, match=f"--labels '{text}': give whole numbers from 1 on.* such as 1,2,3"):
        bench._numbers(text, "--labels")


@pytest.mark.parametrize(
    ("text", "limits"), [("4,8", ["4", "8", "all"]), ("all, 4", ["4", "all"]), ("all", ["all"]), ("", ["all"])]
)
def test_all_labels_come_last_whether_named_or_not(text: str, limits: list[str]) -> None:
    assert bench._limits(text) == limits


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("onboarding", "--labels", ","), "--labels is empty"),
        (("onboarding", "--labels", "0"), "--labels '0'"),
        (("onboarding", "--labels=-5"), "--labels '-5'"),
        (("labels", "--limits", "4,0"), "--limits '4,0'"),
        (("labels", "--set", "data.split={max_train_cases: 3}"), "which --limits sets for each run"),
    ],
)
def test_numbers_of_labels_are_checked_before_anything_runs(
    call: Call, capsys: pytest.CaptureFixture[str], tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    out = tmp_path / "out"
    assert call("bench", *words, "--data", tmp_path, "--suite", "nuclei", "--out", out) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not out.exists()


def test_failures_under_every_limit_are_on_the_page_and_end_the_command(
    call: Call, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def run_plan(plan: Plan, _: object, finished: Callable[[Outcome], None]) -> Outcome:
        outcome = Outcome()
        if plan.out.name == "labels-4":
            outcome = Outcome({}, {"fedavg, seed 1": "case doe-jane is broken"}, {"fedavg, seed 1": "DataError"})
        finished(outcome)
        return outcome

    monkeypatch.setattr("pfedsam.bench.plan.run_plan", run_plan)
    where = ("--data", tmp_path, "--suite", "nuclei", "--out", tmp_path)
    assert call("bench", "labels", *where, "--methods", "fedavg", "--seeds", "1", "--limits", "4") == 8
    assert "1 run(s) failed" in (shown := " ".join(capsys.readouterr().err.split()))
    assert "fedavg, seed 1, 4 labels: case doe-jane is broken" in shown
    page = (tmp_path / "labels-nuclei.md").read_text("utf-8")
    assert "**Not run:** fedavg with 4 labels (seeds 1); fedavg with all labels (seeds 1)" in page
    assert "**Failed:** fedavg, seed 1, 4 labels: DataError" in page
    content = json.loads((tmp_path / "labels-nuclei.json").read_text("utf-8"))
    assert content["not_run"] == {"4": {"fedavg": [1]}, "all": {"fedavg": [1]}}
    assert content["failed"] == {"fedavg, seed 1, 4 labels": "DataError"}


def test_a_comparison_with_few_labels_has_the_folder_that_labels_uses_and_can_be_repeated(
    call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plans: list[Plan] = []

    def run_plan(plan: Plan, _: object, finished: Callable[[Outcome], None]) -> Outcome:
        plans.append(plan)
        finished(Outcome())
        return Outcome()

    monkeypatch.setattr("pfedsam.bench.plan.run_plan", run_plan)
    where = ("--data", tmp_path, "--suite", "nuclei", "--out", tmp_path, "--methods", "fedavg", "--seeds", "1")
    assert call("bench", "accuracy", *where, "--train-limit", "8") == 0
    assert call("bench", "labels", *where, "--limits", "8") == 0
    alone, limited, _ = plans
    assert (alone.out, alone.overrides, alone.cache) == (limited.out, limited.overrides, limited.cache)
    content = json.loads((tmp_path / "accuracy-nuclei-8.json").read_text("utf-8"))
    assert content["command"] == (
        "pfedsam bench accuracy --data DIR --suite nuclei --out runs/nuclei --methods fedavg --seeds 1 --train-limit 8"
    )
