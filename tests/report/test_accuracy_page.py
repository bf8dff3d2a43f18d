import json
from dataclasses import replace

import pytest

from pfedsam.report.accuracy import Line
from pfedsam.report.accuracy_page import Study, not_run, write_accuracy
from pfedsam.report.format import MISSING

LINES = [
    Line("pfedsam", "pfedsam", True),
    Line("fedavg", "fedavg", True),
    Line("centralized", "centralized", False),
]


def study(**changes):
    values = {
        "name": "accuracy-x",
        "subject": "pfedsam",
        "command": "pfedsam bench accuracy --data DIR",
        "seeds": [0, 1],
        "lines": LINES,
        "settings": {},
        "failed": {},
    }
    return Study(**{**values, **changes})


@pytest.fixture
def runs(fake):
    ours = fake.run_scores({"a": {"1": 0.6, "2": 0.8}, "b": {"1": 0.5}})
    theirs = fake.run_scores({"a": {"1": 0.5, "2": 0.8}, "b": {"1": 0.4}})
    return {"pfedsam": {0: ours, 1: ours}, "fedavg": {0: theirs}, "centralized": {0: ours, 1: theirs}}


def test_everything_is_written_from_partial_results(tmp_path, runs):
    del runs["centralized"]
    figures = write_accuracy(tmp_path, study(failed={"centralized, seed 0": "no space"}), runs)
    content = json.loads((tmp_path / "accuracy-x.json").read_text())
    assert content["figures"] == figures
    assert content["not_run"] == {"fedavg": [1], "centralized": [0, 1]}
    assert content["best_private_baseline"] == "fedavg"
    assert content["methods"]["fedavg"]["private"] is True
    assert content["figures"]["gain_over_best_private_baseline"] == pytest.approx(7.5)  # a: (10 + 0) / 2, b: 10
    text = (tmp_path / "accuracy-x.md").read_text()
    assert "**Not run:** fedavg (seeds 1); centralized (seeds 0, 1)" in text
    assert "centralized, seed 0: no space" in text
    assert "| pfedsam | 70.0 ± 0.0 | 50.0 ± 0.0 | 60.0 ± 0.0 | 50.0 |" in text
    assert "**fedavg** (best private baseline) | +7.50 |" in text
    assert (tmp_path / "accuracy-x.svg").read_bytes().startswith(b"<?xml")


def test_learning_curves_are_drawn_where_runs_were_validated(tmp_path, runs):
    write_accuracy(tmp_path, study(), runs)
    assert not (tmp_path / "accuracy-x-curves.svg").exists()
    assert "Learning curves" not in (tmp_path / "accuracy-x.md").read_text()
    validated = {
        label: {seed: replace(run, curve={4: 30.0, 8: 40.0 + seed}) for seed, run in found.items()}
        for label, found in runs.items()
    }
    write_accuracy(tmp_path, study(), validated)
    content = json.loads((tmp_path / "accuracy-x.json").read_text())
    assert content["methods"]["pfedsam"]["curve"] == {"4": 30.0, "8": 40.5}
    assert "accuracy-x-curves.svg" in (tmp_path / "accuracy-x.md").read_text()
    drawn = (tmp_path / "accuracy-x-curves.svg").read_text()
    assert "pfedsam" in drawn


def test_distances_in_mixed_units_have_theirs_and_no_worst_site(tmp_path, fake):
    run = fake.run_scores({"a": {"1": 0.6}, "b": {"1": 0.4}}, units={"a": "mm"})
    write_accuracy(tmp_path, study(), {"pfedsam": {0: run}})
    text = (tmp_path / "accuracy-x.md").read_text()
    assert "| method | a [mm] | b [px] | mean | worst site |" in text
    assert f"| pfedsam | 4.0 | 4.0 | {MISSING} | {MISSING} |" in text
    assert "| pfedsam | 60.0 | 40.0 | 50.0 | 40.0 |" in text  # Dice


def test_of_distances_in_one_unit_the_longest_is_the_worst(tmp_path, runs):
    write_accuracy(tmp_path, study(), {"pfedsam": runs["pfedsam"]})
    assert "| pfedsam | 4.0 ± 0.0 | 4.0 ± 0.0 | 4.0 ± 0.0 | 4.0 |" in (tmp_path / "accuracy-x.md").read_text()


def test_pooled_methods_are_marked(tmp_path, runs):
    write_accuracy(tmp_path, study(), runs)
    text = (tmp_path / "accuracy-x.md").read_text()
    assert "| centralized * |" in text
    assert "| centralized | no |" in text


def test_nothing_yet(tmp_path):
    assert write_accuracy(tmp_path, study(), {})["gain_over_best_private_baseline"] is None
    assert "**Not run:** pfedsam" in (tmp_path / "accuracy-x.md").read_text()
    assert not_run(study(), {}) == {line.label: [0, 1] for line in LINES}


def test_no_case_is_named(tmp_path, runs):
    write_accuracy(tmp_path, study(), runs)
    assert '"1":' not in (tmp_path / "accuracy-x.json").read_text()
