"""`pfedsam compare` on a toy federation."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from pfedsam.cli.run import DEMO_METHODS
from pfedsam.core import rng
from pfedsam.data.synthetic import LABELS, PATIENT_PATTERN, SyntheticOptions, write_sites
from pfedsam.experiment.load import load_options
from pfedsam.experiment.suite import local_steps
from pfedsam.model.backbones.compact import compact_config, new_network


@pytest.fixture
def study(tmp_path: Path) -> Path:
    write_sites(tmp_path / "sites", SyntheticOptions(sites=2, cases=6, side=96), seed=1)
    new_network(compact_config("sam-toy"), rng.generator(0, "toy")).save_pretrained(tmp_path / "backbone")
    content = {
        "data": {
            "sites": {path.name: f"sites/{path.name}" for path in (tmp_path / "sites").iterdir() if path.is_dir()},
            "classes": {name: list(ids) for name, ids in LABELS.items()},
            "patient_pattern": PATIENT_PATTERN,
        },
        "model": {"backbone": str(tmp_path / "backbone"), "adapt_last": 1},
        "training": {"rounds": 2, "steps_per_round": 2, "final_steps": 2, "batch_size": 2},
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(content))
    return tmp_path / "study.yaml"


@pytest.mark.slow
def test_compare_gives_every_method_the_same_steps_and_shows_them_side_by_side(
    call: Callable[..., int], capsys: pytest.CaptureFixture[str], study: Path
) -> None:
    out = study.parent / "out"
    assert call("compare", study, "--out", out, "--methods", "local-only,fedavg,pfedsam") == 0
    shown = capsys.readouterr().out
    assert "Comparison:" in shown
    assert "fedavg does not use training.final_steps; it is left out for this method." in " ".join(shown.split())
    steps = next(line for line in shown.splitlines() if "steps per site" in line)
    assert [word for word in steps.split() if word.isdecimal()] == ["4", "4", "4"]
    options = {name: load_options(out / name / "config.yaml") for name in ("local-only", "fedavg", "pfedsam")}
    assert {local_steps(one) for one in options.values()} == {4}
    assert [one.training.rounds for one in options.values()] == [1, 2, 2]
    page = (out / "comparison.html").read_text("utf-8")
    for name in options:
        summary = json.loads((out / name / "summary.json").read_text("utf-8"))
        assert summary["steps"] == 4
        assert set(summary["sites"]) == set(options[name].data.sites)
        assert name in page


def test_a_run_into_a_file_is_one_message(
    call: Callable[..., int], capsys: pytest.CaptureFixture[str], study: Path
) -> None:
    (study.parent / "file").write_text("mine")
    assert call("run", study, "--set", "method=local-only", "--out", study.parent / "file") == 8
    shown = " ".join(capsys.readouterr().err.split())
    assert "'file' is a file, where a folder has to be. Give a new or an empty folder." in shown
    assert (study.parent / "file").read_text() == "mine"


def test_a_demo_killed_while_it_makes_its_hospitals_makes_them_again(
    call: Callable[..., int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found: list[list[str]] = []

    def killed(folder: Path, *_: object, **__: object) -> None:
        (folder / "north" / "images").mkdir(parents=True)
        raise KeyboardInterrupt

    def whole(folder: Path, *_: object, **__: object) -> None:
        for name in ("alder", "birch"):
            (folder / name).mkdir(parents=True)

    monkeypatch.setattr("pfedsam.cli.run.compare", lambda options, *_, **__: found.append(list(options.data.sites)))
    monkeypatch.setattr("pfedsam.data.synthetic.write_sites", killed)
    assert call("demo", "--out", tmp_path) == 130
    monkeypatch.setattr("pfedsam.data.synthetic.write_sites", whole)
    assert call("demo", "--out", tmp_path) == 0
    assert found == [["alder", "birch"]]
    assert [path.name for path in tmp_path.iterdir()] == ["sites"]


def test_the_same_call_of_the_demo_again_continues_and_names_only_options_of_the_user(
    call: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    resumed: list[bool] = []
    monkeypatch.setattr("pfedsam.cli.run.compare", lambda *_, resume: resumed.append(resume))
    (tmp_path / "sites" / "alder").mkdir(parents=True)
    assert call("demo", "--out", tmp_path) == 0
    (tmp_path / "local-only").mkdir()
    (tmp_path / "local-only" / "config.yaml").touch()
    assert call("demo", "--out", tmp_path) == 0
    assert resumed == [False, True]
    assert capsys.readouterr().out == ""


def test_a_finished_demo_is_shown_and_not_run_again(
    call: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    shown: list[str] = []
    monkeypatch.setattr("pfedsam.report.summary_file.read_summary", lambda path: path.parent.name)
    monkeypatch.setattr("pfedsam.cli.run._print_comparison", lambda _, summaries: shown.extend(summaries))
    for name in ("comparison.html", *(f"{method}/summary.json" for method in DEMO_METHODS)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert call("demo", "--out", tmp_path) == 0
    assert "is finished" in " ".join(capsys.readouterr().out.split())
    assert tuple(shown) == DEMO_METHODS
    assert not (tmp_path / "sites").exists()


def test_steps_that_do_not_fit_are_told_before_anything_is_run(
    call: Callable[..., int], capsys: pytest.CaptureFixture[str], study: Path
) -> None:
    out = study.parent / "out"
    assert (
        call("compare", study, "--out", out, "--methods", "local-only,fedavg", "--set", "training.final_steps=3") == 2
    )
    shown = " ".join(capsys.readouterr().err.split())
    assert "Choose training.final_steps as a multiple of training.steps_per_round" in shown
    assert not out.exists()


def test_an_option_that_no_method_of_a_comparison_uses_is_refused_before_anything_is_run(
    call: Callable[..., int], capsys: pytest.CaptureFixture[str], study: Path
) -> None:
    out = study.parent / "out"
    arguments = ("--methods", "local-only,fedavg", "--set", "method_options.fedprox.mu=1")
    assert call("compare", study, "--out", out, *arguments) == 2
    shown = " ".join(capsys.readouterr().err.split())
    assert "method_options.fedprox.mu: only the method fedprox uses it" in shown
    assert not out.exists()


def test_a_method_by_set_is_refused_in_a_comparison(
    call: Callable[..., int], capsys: pytest.CaptureFixture[str], study: Path
) -> None:
    out = study.parent / "out"
    assert call("compare", study, "--out", out, "--methods", "fedavg", "--set", "method=local-only") == 2
    assert "Leave it out, and give the methods by --methods." in " ".join(capsys.readouterr().err.split())
    assert not out.exists()


def test_a_comparison_of_no_method_is_refused(
    call: Callable[..., int], capsys: pytest.CaptureFixture[str], study: Path
) -> None:
    out = study.parent / "out"
    assert call("compare", study, "--out", out, "--methods", " ,") == 2
    assert "--methods is empty: give the methods to compare" in " ".join(capsys.readouterr().err.split())
    assert not out.exists()
