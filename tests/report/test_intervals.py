"""Intervals from the scores of single cases in a run's folder; expected values by hand, or from scipy's bootstrap."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from pfedsam.core.errors import StoreError
from pfedsam.report.intervals import are_apart, difference_note, missing_note, read_intervals


def write_scores(folder: Path, sites: dict[str, list[tuple[str, str, float | None]]], model: str = "personal") -> None:
    """Files of scores with one class; a row is case, patient and Dice."""
    for site, rows in sites.items():
        (folder / "sites" / site).mkdir(parents=True)
        cases = [{"case": c, "patient": p, "classes": {"n": {"dice": dice}}} for c, p, dice in rows]
        content = {"schema": 2, "models": {model: cases}}
        (folder / "sites" / site / "scores.json").write_text(json.dumps(content))


def rows(values: list[float]) -> list[tuple[str, str, float | None]]:
    return [(f"c{n}", f"p{n}", value) for n, value in enumerate(values)]


def summary(fake, *sites: str):
    return fake.run_scores({site: {"1": 0.5} for site in sites}).summary


def test_the_interval_of_a_site_is_that_of_scipys_bootstrap(tmp_path, fake):
    values = np.random.default_rng(1).uniform(0.4, 0.9, 40)
    write_scores(tmp_path, {"a": rows(list(values))})
    found = read_intervals(tmp_path, summary(fake, "a"))
    expected = stats.bootstrap(
        (values,), np.mean, method="percentile", rng=np.random.default_rng(2)
    ).confidence_interval
    assert found.of_site("a") == pytest.approx((expected.low, expected.high), abs=0.01)
    assert found.of_mean() == found.of_site("a")


def test_the_cases_of_a_patient_are_drawn_together(tmp_path, fake):
    # Two patients with ten equal cases each: a draw has 0, 1 or 2 of the second one, never something between.
    cases = [(f"{p}{n}", p, value) for p, value in (("p", 0.2), ("q", 0.8)) for n in range(10)]
    write_scores(tmp_path, {"a": cases})
    samples = read_intervals(tmp_path, summary(fake, "a")).samples["a"]
    assert sorted(set(samples.round(9))) == [0.2, 0.5, 0.8]


def test_differences_are_paired_so_that_what_both_find_hard_does_not_widen_them(tmp_path, fake):
    values = np.random.default_rng(3).uniform(0.2, 0.7, 20)
    for run, shift in (("one", 0.1), ("other", 0.0)):
        write_scores(tmp_path / run, {"a": rows(list(values + shift)), "b": rows(list(values[::-1] + shift))})
    one, other = (read_intervals(tmp_path / run, summary(fake, "a", "b")) for run in ("one", "other"))
    assert one.difference(other, "a") == pytest.approx((0.1, 0.1))
    assert one.difference(other) == pytest.approx((0.1, 0.1))


def test_other_patients_have_no_paired_difference(tmp_path, fake):
    write_scores(tmp_path / "one", {"a": rows([0.1, 0.2])})
    write_scores(tmp_path / "other", {"a": rows([0.1, 0.2, 0.3])})
    one, other = (read_intervals(tmp_path / run, summary(fake, "a")) for run in ("one", "other"))
    assert one.difference(other, "a") is None
    assert one.difference(other) is None


def test_one_patient_and_undefined_scores_give_no_interval(tmp_path, fake):
    write_scores(tmp_path, {"a": [("c1", "p", 0.5), ("c2", "p", 0.7)], "b": [("c1", "p", None), ("c2", "q", None)]})
    found = read_intervals(tmp_path, summary(fake, "a", "b"))
    assert found.of_site("a") is None
    assert found.of_site("b") is None


def test_one_site_with_one_patient_leaves_the_mean_without_an_interval_and_the_note_names_it(tmp_path, fake):
    for run, shift in (("one", 0.1), ("other", 0.0)):
        sites = {"a": rows([0.3 + shift, 0.5]), "b": rows([0.4 + shift, 0.4]), "cyto": rows([0.5 + shift])}
        write_scores(tmp_path / run, sites)
    one, other = (read_intervals(tmp_path / run, summary(fake, "a", "b", "cyto")) for run in ("one", "other"))
    assert one.of_site("a") is not None
    assert one.of_mean() is None
    assert one.difference(other, "a") is not None
    assert one.difference(other, "cyto") is None
    assert one.difference(other) is None
    assert missing_note([one, None]) == (
        "No interval: cyto has one test patient. The mean over sites has none either, because it would need the spread between the "
        "patients of every site."
    )
    assert missing_note([None]) is None
    note = difference_note({"one": one, "other": other}, "other")
    assert note.startswith("A difference without a bar has no interval: cyto has one test patient. The mean over sites")


def test_only_patients_with_a_defined_dice_count(tmp_path, fake):
    write_scores(tmp_path, {"a": [("c1", "p", 0.5), ("c2", "q", None)], "b": [("c1", "p", None)]})
    found = read_intervals(tmp_path, summary(fake, "a", "b"))
    assert found.of_site("a") is None
    assert found.reasons() == ["a has one test patient with a defined Dice"]


def test_the_mean_has_the_interval_of_the_sites_that_have_a_dice(tmp_path, fake):
    """Site b has no Dice, so that the mean is that of a; a run with a Dice at b has a mean over other sites."""
    both = [("c1", "p", 0.5), ("c2", "q", 0.7), ("c3", "r", 0.6)]
    write_scores(tmp_path / "one", {"a": both, "b": [("c1", "p", None)]})
    write_scores(tmp_path / "other", {"a": both, "b": [("c1", "p", 0.2)]})
    one, other = (read_intervals(tmp_path / name, summary(fake, "a", "b")) for name in ("one", "other"))
    assert one.of_mean() == one.of_site("a")
    assert one.of_mean() is not None
    assert one.reasons() == []
    assert other.of_mean() is None
    assert one.difference(other) is None


def test_the_note_on_differences_names_runs_with_other_patients_or_without_scores(tmp_path, fake):
    write_scores(tmp_path / "one", {"a": rows([0.1, 0.2])})
    write_scores(tmp_path / "other", {"a": rows([0.1, 0.2, 0.3])})
    one, other = (read_intervals(tmp_path / run, summary(fake, "a")) for run in ("one", "other"))
    assert difference_note({"x": one, "y": one}, "y") is None
    assert difference_note({"x": one, "y": other, "z": None}, "x") == (
        "A difference without a bar has no interval: y and x do not have the same test patients; the scores of single cases of z are "
        "not known."
    )


def test_a_coordinator_has_no_scores_and_no_intervals(tmp_path, fake):
    assert read_intervals(tmp_path, summary(fake, "a")) is None
    assert read_intervals(tmp_path, summary(fake, "../a")) is None


@pytest.mark.parametrize("text", ["{", "[]", '{"models": {"personal": [1]}}', '{"models": {}}'])
def test_damaged_scores_are_named(tmp_path, fake, text):
    write_scores(tmp_path, {"a": rows([0.5])})
    (tmp_path / "sites" / "a" / "scores.json").write_text(text)
    with pytest.raises(StoreError, match=r"sites/a/scores\.json cannot be read.*pfedsam evaluate"):
        read_intervals(tmp_path, summary(fake, "a"))


def test_apart_means_known_and_nothing_in_common():
    assert are_apart((0.1, 0.2), (0.3, 0.4))
    assert are_apart((0.3, 0.4), (0.1, 0.2))
    assert not are_apart((0.1, 0.3), (0.3, 0.4))
    assert not are_apart((0.1, 0.2), None)
