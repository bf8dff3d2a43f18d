import re

import numpy as np
import pytest
from rich.console import Console

from pfedsam.evaluation.scores import CaseScores, ClassScores
from pfedsam.evaluation.small_numbers import withhold
from pfedsam.evaluation.summary import SiteSummary, summarize_site
from pfedsam.report.format import MISSING
from pfedsam.report.intervals import NO_INTERVALS, RunIntervals
from pfedsam.report.summary_file import Summary, with_local_only
from pfedsam.report.tables import (
    best_marks,
    class_table,
    comparison_note,
    comparison_table,
    dice_rows,
    difference_rows,
    missed_cell,
    run_table,
    run_tables,
    time_note,
    undefined_note,
)


def shown(table) -> str:
    console = Console(width=200, color_system=None)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def row(text: str, name: str) -> list[str]:
    """The cells of the row that starts with a name."""
    rows = [[cell.strip() for cell in re.split("[│┃]", line)[1:-1]] for line in text.splitlines()]
    (found,) = [cells for cells in rows if cells and cells[0] == name]
    return found


def test_a_run_shows_every_site_the_mean_and_the_worst(fake):
    summary = fake.make_summary()
    text = shown(run_table(summary))
    for name in fake.SITES:
        entry = summary.sites[name].personal
        assert row(text, name)[1:4] == [str(entry.cases), f"{entry.dice:.3f}", f"{entry.iou:.3f}"]
    assert row(text, "mean")[2] == f"{summary.mean.personal.dice:.3f}"
    worst = min(site.personal.dice for site in summary.sites.values())
    assert row(text, f"lowest Dice: {summary.worst_site}")[2] == f"{worst:.3f}"
    assert "HD95 [mm]" in text
    assert "gain" not in text


def test_the_unit_of_a_distance_is_shown(fake):
    assert "HD95 [px]" in shown(run_table(fake.make_summary(unit="px")))


def test_of_mixed_units_each_distance_has_its_own_and_there_is_no_mean_and_no_worst(fake):
    text = shown(run_table(fake.run_scores({"a": {"1": 0.6}, "b": {"1": 0.4}}, units={"a": "mm"}).summary))
    assert row(text, "site")[4:6] == ["HD95", "ASSD"]
    assert row(text, "a") == ["a", "1", "0.600", "0.300", "4.00 mm", "2.00 mm", "0 of 1", MISSING]
    assert row(text, "b") == ["b", "1", "0.400", "0.200", "4.00 px", "2.00 px", "0 of 1", MISSING]
    assert row(text, "mean") == ["mean", "2", "0.500", "0.250", *[MISSING] * 2, "0 of 2", MISSING]
    assert row(text, "lowest Dice: b") == ["lowest Dice: b", "1", "0.400", "0.200", *[MISSING] * 2, "0 of 1", MISSING]


def test_the_gain_is_shown_where_it_is_known(fake):
    summary = with_local_only(fake.make_summary(), fake.make_summary("local-only"))
    text = shown(run_table(summary))
    gain = summary.sites["amsterdam"].gain
    assert row(text, "amsterdam")[-1] == f"{gain:+.3f}".replace("-", "\N{MINUS SIGN}")


def test_a_site_may_be_called_like_markup(fake):
    assert "[red]a[/red]" in shown(run_table(fake.make_summary(sites=("[red]a[/red]",))))


def test_undefined_measures_are_told(fake):
    # Every seventh case has no lesion, from the fourth on: one at sites of 8 to 10 cases, two from 11 on.
    assert undefined_note(fake.make_summary(sites=fake.SITES[:1])) == (
        "HD95 and ASSD are means of 15 of 16 values (cases times classes). Undefined are: 1 because neither holds the class (no "
        "Dice and IoU either)."
    )


def test_classes_that_a_site_does_not_annotate_are_no_values(fake):
    """Ten cases of north with a and b, one a missed; ten of south with a alone: 10 * 2 + 10 * 1 = 30 values, of which 29 are defined."""
    found, lost, none = ClassScores(0.8, 0.7, 1.0, 0.5), ClassScores(0.0, 0.0), ClassScores(None, None)

    def case(n: int, *, missed: bool = False, alone: bool = False) -> CaseScores:
        scores = {"a": lost if missed else found, "b": none if alone else found}
        return fake.case_scores(
            str(n), scores, {"a": "missed" if missed else "both", "b": "not_annotated" if alone else "both"}
        )

    north = summarize_site([case(n, missed=n == 0) for n in range(10)])
    south = summarize_site([case(n, alone=True) for n in range(10)])
    summary = fake.summary_of({"north": north, "south": south})
    assert undefined_note(summary) == (
        "HD95 and ASSD are means of 29 of 30 values (cases times classes, without classes that a site does not annotate). "
        "Undefined are: 1 because the prediction misses the class."
    )


def test_without_a_count_that_was_withheld_the_number_of_values_is_not_told(fake):
    """12 of 32 cases have no organ, in prediction and truth; that the site annotates it in all cases is withheld like every zero."""
    cases = [fake.case_scores(str(n), {"organ": ClassScores(0.8, 0.7, 1.0, 0.5)}, {"organ": "both"}) for n in range(20)]
    cases += [fake.case_scores(str(n), {"organ": ClassScores(None, None)}, {"organ": "absent"}) for n in range(20, 32)]
    withheld = fake.summary_of({"a": withhold(summarize_site(cases), 10)}).model_copy(update={"min_cases": 10})
    assert undefined_note(withheld) == "Undefined and left out of the means: Dice 12, IoU 12."


def missing_a_class(fake) -> Summary:
    """Site a misses the lesion in both of its cases with one, and finds it where there is none; site b finds it."""

    def scores(*lesions: tuple[str, float]) -> SiteSummary:
        organ = ClassScores(0.9, 0.8, 1.0, 0.5)
        cases = [
            fake.case_scores(str(n), {"organ": organ, "lesion": ClassScores(d, d)}, {"organ": "both", "lesion": where})
            for n, (where, d) in enumerate(lesions)
        ]
        return summarize_site(cases)

    a = scores(("missed", 0.0), ("missed", 0.0), ("extra", 0.0))
    return fake.summary_of({"a": a, "b": scores(("both", 0.8), ("both", 0.6))})


def test_a_missed_structure_is_seen_although_its_distances_look_good(fake):
    summary = missing_a_class(fake)
    text = shown(run_table(summary))
    assert row(text, "a")[4:7] == ["1.00", "0.50", "2 of 5"]
    assert row(text, "mean")[6] == "2 of 9"
    assert undefined_note(summary).endswith(
        "means of 7 of 10 values (cases times classes). Undefined are: 2 because the prediction misses the class; 1 because only the "
        "prediction holds the class."
    )
    by_class = shown(class_table(summary))
    assert row(by_class, "a")[1:] == ["0.900, 0 of 3", "0.000, 2 of 2"]
    assert row(by_class, "b")[1:] == ["0.900, 0 of 2", "0.700, 0 of 2"]
    assert len(run_tables(summary)) == 2


def test_a_withheld_count_of_missed_cases_is_a_dash_because_it_may_be_large(fake):
    """North misses 15 of 20, so that 5 were found, which is withheld: with ten as the limit, "fewer than 10" would be wrong."""

    def scores(missed: int, of: int) -> SiteSummary:
        found, lost = ClassScores(0.8, 0.7, 1.0, 0.5), ClassScores(0.0, 0.0)
        presence = ["missed"] * missed + ["both"] * (of - missed)
        cases = [
            fake.case_scores(str(n), {"a": lost if where == "missed" else found}, {"a": where})
            for n, where in enumerate(presence)
        ]
        return withhold(summarize_site(cases), 10)

    sites = {"north": scores(15, 20), "south": scores(0, 9), "west": scores(20, 40)}
    summary = fake.summary_of(sites).model_copy(update={"min_cases": 10})
    text = shown(run_table(summary))
    assert [row(text, name)[1] for name in sites] == ["20", "fewer than 10", "40"]
    assert [row(text, name)[6] for name in sites] == [f"{MISSING} of 20", MISSING, "20 of 40"]
    two = fake.summary_of({name: sites[name] for name in ("north", "west")})
    assert missed_cell(two.mean.in_use.classes["a"]) == missed_cell(two.mean.in_use) == f"{MISSING} of 60"


def test_one_class_needs_no_table_of_classes(fake):
    summary = fake.run_scores({"a": {"1": 0.6}}).summary
    assert class_table(summary) is None
    assert len(run_tables(summary)) == 1


def test_a_summary_that_did_not_count_missed_cases_shows_a_dash_and_counts_what_is_undefined(fake):
    summary = fake.make_summary(sites=fake.SITES[:1])
    entry = summary.mean.personal.model_copy(update={"missed": None, "present": None})
    old = summary.model_copy(update={"mean": summary.mean.model_copy(update={"personal": entry})})
    assert row(shown(run_table(old)), "mean")[6] == MISSING
    assert undefined_note(old).endswith("of 16 values (cases times classes): Dice 1, IoU 1, HD95 1, ASSD 1.")


def test_a_comparison_has_a_column_a_run_and_its_costs(fake):
    runs = {method: fake.make_summary(method) for method in fake.LEVEL}
    text = shown(comparison_table(runs, {}))
    assert row(text, "site")[2:] == list(fake.LEVEL)
    expected = [f"{runs[method].sites['bologna'].in_use.dice:.3f}" for method in fake.LEVEL]
    assert row(text, "bologna")[1:] == ["9 (9)", *expected]
    assert row(text, "sent per site and round")[2:] == ["412 kB", "412 kB", "0 B", "0 B"]
    assert row(text, "time")[2:] == ["10.2 min"] * 4
    lines = text.splitlines()
    (lowest,) = (number for number, line in enumerate(lines) if "lowest Dice of a site" in line)
    assert [cell.strip() for cell in re.split("│", lines[lowest + 1])[3:-1]] == [
        f"({run.worst_site})" for run in runs.values()
    ]


def test_a_run_without_a_time_is_named_with_the_reason(fake):
    whole = fake.make_summary()
    resumed = whole.model_copy(update={"seconds": {"since resumed": 38.1}})
    assert time_note({"whole": whole}) is None
    note = time_note({"whole": whole, "fedavg": resumed})
    assert note.startswith("The whole time of a run that was interrupted is not known")
    assert note.endswith("From when it was last resumed to its end: fedavg 38 s.")
    text = " ".join(shown(comparison_table({"whole": whole, "fedavg": resumed}, {})).split())
    assert "last resumed to its end: fedavg 38 s." in text
    assert time_note({"old": whole.model_copy(update={"seconds": {}})}) == "The time of old was not recorded."


def test_a_site_that_a_run_did_not_have_is_missing_and_the_means_are_marked(fake):
    runs = {"a": fake.make_summary(sites=fake.SITES[:2]), "b": fake.make_summary(sites=fake.SITES[:1])}
    assert dice_rows(runs).sites["bologna"][1] is None
    assert "different sites" in " ".join(shown(comparison_table(runs, {})).split())


def test_the_worst_row_is_each_runs_own_worst(fake):
    runs = {method: fake.make_summary(method) for method in fake.LEVEL}
    expected = [min(site.in_use.dice for site in run.sites.values()) for run in runs.values()]
    assert dice_rows(runs).worst == expected


def test_ties_are_both_marked_and_only_what_is_apart_from_all_others_is_coloured():
    overlap, apart = [(0.7, 0.9), (0.6, 0.8), (0.5, 0.75)], [(0.8, 0.9), (0.5, 0.7), (0.4, 0.6)]
    assert best_marks([0.8, 0.7, 0.6], overlap) == ["best", "", ""]
    assert best_marks([0.85, 0.6, 0.5], apart) == ["apart", "", ""]
    assert best_marks([0.8001, 0.8004, 0.6], overlap) == ["best", "best", ""]  # both are shown as 0.800
    assert best_marks([0.8, None, 0.6], [(0.7, 0.9), None, (0.1, 0.2)]) == ["apart", "", ""]
    assert best_marks([0.8, 0.6], [None, None]) == ["best", ""]
    assert best_marks([0.8], [(0.7, 0.9)]) == ["best"]


def test_a_comparison_says_what_it_rests_on(fake):
    runs = {method: fake.make_summary(method) for method in ("pfedsam", "fedavg")}
    assert comparison_note(runs, {}).startswith("One seed (1): with another split")
    assert NO_INTERVALS in comparison_note(runs, {"pfedsam": None})
    mixed = {"a": fake.make_summary(seed=1), "b": fake.make_summary(seed=2)}
    assert comparison_note(mixed, {}).startswith("One seed per run (1, 2): the runs were not tested on the same cases.")


def test_a_comparison_says_why_its_means_have_no_interval(fake):
    runs = {method: fake.make_summary(method, ("a",)) for method in ("pfedsam", "local-only")}
    few = RunIntervals({"a": ("p",)}, {"a": 1}, {"a": np.full(9, 0.7)})
    text = " ".join(shown(comparison_table(runs, dict.fromkeys(runs, few))).split())
    assert "No interval: a has one test patient." in text
    assert "0.70 to 0.70" not in text


def test_intervals_stand_below_the_values_and_differences_are_paired(fake):
    runs = {method: fake.make_summary(method, ("a",)) for method in ("pfedsam", "local-only")}
    samples = {"pfedsam": np.linspace(0.7, 0.8, 201), "local-only": np.linspace(0.6, 0.7, 201)}
    found = {label: RunIntervals({"a": ("p", "q")}, {"a": 2}, {"a": values}) for label, values in samples.items()}
    text = shown(comparison_table(runs, found))
    assert "0.70 to 0.80" in text
    assert "bootstrap over the site's test patients" in " ".join(text.split())
    rows = difference_rows(runs, found, "local-only")
    assert list(rows) == ["a", "mean over sites"]
    value, interval = rows["a"]["pfedsam"]
    assert value == pytest.approx(runs["pfedsam"].sites["a"].in_use.dice - runs["local-only"].sites["a"].in_use.dice)
    assert interval == pytest.approx((0.1, 0.1))


def test_a_comparison_fits_80_columns(fake):
    runs = {method: fake.make_summary(method) for method in ("local-only", "fedavg", "pfedsam")}
    sites = dict.fromkeys(fake.SITES, ("p", "q"))
    found = RunIntervals(sites, dict.fromkeys(sites, 2), {site: np.linspace(0.7, 0.8, 101) for site in sites})
    console = Console(width=80, color_system=None)
    with console.capture() as capture:
        console.print(comparison_table(runs, dict.fromkeys(runs, found)))
    assert "\N{HORIZONTAL ELLIPSIS}" not in capture.get()
    assert "pfedsam" in capture.get()
