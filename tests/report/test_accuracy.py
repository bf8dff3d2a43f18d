"""Comparisons of methods, with numbers that can be computed by hand."""

import json
from dataclasses import replace

import pytest

from pfedsam.report.accuracy import (
    Cost,
    Line,
    best_private_baseline,
    compare,
    comparison_result,
    comparisons,
    headline,
    method_result,
    read_run,
)
from pfedsam.report.records import RecordWriter
from pfedsam.report.summary_file import write_summary


@pytest.fixture
def ours(fake):
    return {
        0: fake.run_scores({"a": {"1": 0.6, "2": 0.8}, "b": {"1": 0.5}}),
        1: fake.run_scores({"a": {"2": 0.9, "3": 0.7}, "b": {"1": 0.7}}),
    }


@pytest.fixture
def theirs(fake):
    return {
        0: fake.run_scores({"a": {"1": 0.5, "2": 0.8}, "b": {"1": 0.4}}),
        1: fake.run_scores({"a": {"2": 0.7, "3": 0.8}, "b": {"1": 0.7}}),
    }


def test_a_method_by_hand(ours):
    result = method_result(Line("m", "m", True), ours)
    # a: .7 and .8; b: .5 and .7; means per seed: .6 and .75.
    assert result["sites"]["a"]["dice"]["mean"] == pytest.approx(75)
    assert result["sites"]["b"]["dice"]["values"] == pytest.approx([50, 70])
    assert result["mean"]["dice"]["mean"] == pytest.approx(67.5)
    assert result["mean"]["dice"]["spread"] == pytest.approx(15 / 2**0.5)
    assert result["mean"]["iou"]["mean"] == pytest.approx(67.5 / 2)
    assert result["mean"]["hd95"]["mean"] == pytest.approx(4)
    assert result["worst_site"] == {"site": "b", "dice": pytest.approx(60)}
    assert result["validation"]["mean"] == pytest.approx(60)
    assert (result["steps"], result["seconds"], result["cpu_seconds"], result["up_bytes"]) == (20, 10.0, None, 100)


def test_a_curve_is_the_mean_over_the_seeds_where_all_were_validated(ours):
    curves = ({10: 50.0, 20: 60.0, 30: 61.0}, {10: 40.0, 20: 70.0})
    runs = {seed: replace(run, curve=curve) for (seed, run), curve in zip(ours.items(), curves, strict=True)}
    assert method_result(Line("m", "m", True), runs)["curve"] == {10: 45.0, 20: 65.0}
    assert method_result(Line("m", "m", True), ours)["curve"] == {}


def test_a_comparison_by_hand(ours, theirs):
    found = compare(ours, theirs)
    # a: cases 1: 10; 2: 0 and 20; 3: -10 -> mean over all 5. b: case 1: 10 and 0 -> 5.
    assert found.sites == pytest.approx({"a": 5, "b": 5})
    assert found.difference == pytest.approx(5)
    assert found.interval is None  # b has one patient
    assert found.patients == 4
    assert found.seeds == (0, 1)
    # Differences of cases: 10, 10, -10, 5: ranks 3, 3, 3, 1; W = min(7, 3) = 3.
    assert 0.4 < found.p <= 1


def test_a_comparison_has_an_interval_where_every_site_has_several_patients(ours, theirs):
    without_b = [{s: replace(run, dice={"a": run.dice["a"]}) for s, run in runs.items()} for runs in (ours, theirs)]
    low, high = compare(*without_b).interval
    assert low <= 5 <= high


def test_the_cases_of_a_patient_are_one_difference(ours, theirs):
    together = {seed: replace(run, patients={"a": {"1": "p", "2": "p"}}) for seed, run in ours.items()}
    found = compare(together, theirs)
    assert found.patients == 3  # of a: cases 1 and 2 together, and 3; of b: 1
    assert found.difference == pytest.approx(compare(ours, theirs).difference)


def test_only_common_seeds_are_compared(ours, theirs):
    assert compare(ours, {1: theirs[1]}).seeds == (1,)
    assert compare(ours, {2: theirs[1]}) is None
    assert comparisons("missing", {"x": ours}) == {}


def test_headline_figures(fake, ours, theirs):
    lines = [Line("pfedsam", "pfedsam", True), Line("fedavg", "fedavg", True), Line("local-only", "local-only", True)]
    lines += [Line("centralized", "centralized", False), Line("no-experts", "pfedsam", True)]
    better = {seed: fake.run_scores({"a": {"1": 0.99, "2": 0.99, "3": 0.99}, "b": {"1": 0.99}}) for seed in (0, 1)}
    runs = {"pfedsam": ours, "fedavg": theirs, "centralized": better, "no-experts": better}
    found = comparisons("pfedsam", runs)
    assert best_private_baseline(lines, found) == "fedavg"  # neither a pooled method nor a variant
    results = {line.label: method_result(line, runs[line.label]) for line in lines if line.label in runs}
    figures = headline(lines, results, found)
    assert figures["dice_mean.pfedsam"] == pytest.approx(67.5)
    assert figures["dice_worst_site.pfedsam"] == pytest.approx(60)
    assert figures["gain_over_best_private_baseline"] == pytest.approx(5)
    assert figures["gain_over_fedavg_lora"] == pytest.approx(5)
    assert figures["gain_over_fedmsa"] is None
    assert figures["min_gain_over_local"] is None
    assert figures["up_bytes.centralized"] == 100
    assert (figures["steps.fedavg"], figures["cpu_seconds.fedavg"]) == (20, None)
    theirs = {seed: replace(run, cost=Cost(10.0, 7.5 + seed)) for seed, run in theirs.items()}
    results["fedavg"] = method_result(lines[1], theirs)
    assert headline(lines, results, found)["cpu_seconds.fedavg"] == pytest.approx(8)
    with_local = comparisons("pfedsam", {**runs, "local-only": theirs})
    assert headline(lines, results, with_local)["min_gain_over_local"] == pytest.approx(5)
    assert comparison_result(with_local)["fedavg"]["p_holm"] >= with_local["fedavg"].p


def test_a_case_that_one_method_rightly_leaves_empty_counts_in_the_difference(fake):
    """The truth of the second case is empty: one method predicts nothing (undefined), the other a false region (0)."""
    run = fake.run_scores({"a": {"1": 0.5, "2": 0.7}})
    ours = replace(run, dice={"a": {"1": {"n": 80.0}, "2": {"n": None}}})
    theirs = replace(run, dice={"a": {"1": {"n": 80.0}, "2": {"n": 0.0}}})
    assert compare({0: ours}, {0: theirs}).difference == pytest.approx(50)
    assert compare({0: theirs}, {0: ours}).difference == pytest.approx(-50)


@pytest.mark.parametrize("shared_only", [True, False])
def test_a_run_is_read_from_its_folder(fake, tmp_path, shared_only):
    run = fake.run_scores({"a": {"1": 0.5, "2": 0.7}}, shared_only=shared_only)
    write_summary(tmp_path / "summary.json", run.summary)
    model = "shared" if shared_only else "personal"
    cases = [
        {"case": "1", "unit": "px", "classes": {"n": {"dice": 0.5}, "m": {"dice": 0.7}}},
        {"case": "2", "unit": "px", "classes": {"n": {"dice": 0.7}, "m": {"dice": None}}},
        {"case": "3", "unit": "px", "classes": {"n": {"dice": None}, "m": {"dice": None}}},
    ]
    (tmp_path / "sites" / "a").mkdir(parents=True)
    (tmp_path / "sites" / "a" / "scores.json").write_text(json.dumps({"schema": 1, "models": {model: cases}}))
    with RecordWriter(tmp_path / "records.jsonl") as records:
        for round_, dice in ((0, 0.1), (1, 0.6)):
            records.write({"kind": "validation", "round": round_, "site": "a", "model": model, "dice": dice})
        records.write({"kind": "timing", "total": 3.0})
    found = read_run(tmp_path, Cost(None, None))
    assert found.dice == {
        "a": {"1": {"n": 50, "m": 70}, "2": {"n": 70, "m": None}, "3": {"n": None, "m": None}},
    }
    assert found.validation == {"a": pytest.approx(60)}
    assert found.curve == pytest.approx({1: 10, 2: 60})


def test_a_curve_has_the_models_that_the_sites_used(fake, tmp_path):
    """Site a uses the shared model after the second round only; scores of a model that is not used do not count."""
    run = fake.run_scores({"a": {"1": 0.5}, "b": {"1": 0.5}})
    write_summary(tmp_path / "summary.json", run.summary.model_copy(update={"rounds": 3}))
    for site in "ab":
        (tmp_path / "sites" / site).mkdir(parents=True)
        (tmp_path / "sites" / site / "scores.json").write_text(
            json.dumps({"schema": 1, "models": {"personal": [], "shared": []}})
        )
    scores = [(0, "a", 0.2, 0.6), (0, "b", 0.4, 0.1), (1, "a", 0.3, 0.7), (1, "b", 0.5, 0.9), (3, "a", 0.8, 0.1)]
    with RecordWriter(tmp_path / "records.jsonl") as records:
        for round_, site, personal, shared in scores:
            for model, dice in (("personal", personal), ("shared", shared)):
                records.write({"kind": "validation", "round": round_, "site": site, "model": model, "dice": dice})
        records.write({"kind": "plain", "round": 1, "site": "a"})
    assert read_run(tmp_path, Cost(None, None)).curve == pytest.approx({1: 30, 2: 60})  # (20 + 40) / 2, (70 + 50) / 2


@pytest.mark.parametrize(("recorded", "expected"), [(3, 6.0), (2, None)])
def test_the_seconds_of_training_are_those_of_all_rounds_or_unknown(fake, tmp_path, recorded, expected):
    run = fake.run_scores({"a": {"1": 0.5}})
    write_summary(tmp_path / "summary.json", run.summary.model_copy(update={"rounds": 3}))
    (tmp_path / "sites" / "a").mkdir(parents=True)
    (tmp_path / "sites" / "a" / "scores.json").write_text(
        json.dumps({"models": {"personal": [{"case": "1", "unit": "px", "classes": {"n": {"dice": 0.5}}}]}})
    )
    with RecordWriter(tmp_path / "records.jsonl") as records:
        for round_ in range(recorded):
            records.write({"kind": "timing", "round": round_, "train_s": 1.0 + round_})
        records.write({"kind": "timing", "train": 8.0, "total": 9.0})  # of the whole run, with its validations
    found = read_run(tmp_path, Cost(None, None))
    assert found.training_seconds == expected
    assert method_result(Line("m", "m", True), {0: found})["training_seconds"] == expected


def test_the_validation_of_a_site_is_that_of_the_model_it_uses(fake, tmp_path):
    run = fake.run_scores({"a": {"1": 0.5}, "b": {"1": 0.5}})
    write_summary(tmp_path / "summary.json", run.summary)
    cases = {"models": {"personal": [{"case": "1", "unit": "px", "classes": {"n": {"dice": 0.5}}}]}}
    with RecordWriter(tmp_path / "records.jsonl") as records:
        for site in ("a", "b"):
            (tmp_path / "sites" / site).mkdir(parents=True)
            (tmp_path / "sites" / site / "scores.json").write_text(json.dumps(cases))
            for model, dice in (("personal", 0.5), ("shared", 0.7)):
                records.write({"kind": "validation", "round": 2, "site": site, "model": model, "dice": dice})
        records.write({"kind": "plain", "round": 1, "site": "a"})  # of an earlier validation
        records.write({"kind": "plain", "round": 2, "site": "b"})
    assert read_run(tmp_path, Cost(None, None)).validation == pytest.approx({"a": 50, "b": 70})


def test_the_validation_of_a_site_that_keeps_an_earlier_model_is_that_models(fake, tmp_path):
    run = fake.run_scores({"a": {"1": 0.5}})
    write_summary(tmp_path / "summary.json", run.summary)
    (tmp_path / "sites" / "a").mkdir(parents=True)
    cases = {"models": {"personal": [{"case": "1", "unit": "px", "classes": {"n": {"dice": 0.5}}}]}}
    (tmp_path / "sites" / "a" / "scores.json").write_text(json.dumps(cases))
    with RecordWriter(tmp_path / "records.jsonl") as records:
        for round_, personal, shared in ((0, 0.4, 0.3), (1, 0.6, 0.8), (2, 0.3, 0.2), (3, 0.1, 0.2)):
            for model, dice in (("personal", personal), ("shared", shared)):
                records.write({"kind": "validation", "round": round_, "site": "a", "model": model, "dice": dice})
            if round_ > 1:
                records.write({"kind": "kept", "round": round_, "site": "a", "from_round": 1})
            if round_ > 0:
                records.write({"kind": "plain", "round": round_, "site": "a"})
    assert read_run(tmp_path, Cost(None, None)).validation == pytest.approx({"a": 80})
