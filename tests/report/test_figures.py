import xml.etree.ElementTree as ET

import matplotlib as mpl
import pytest

from pfedsam.report import figures
from pfedsam.report.records import read_records


@pytest.fixture(scope="module")
def records(run_folder):
    return read_records(run_folder / "records.jsonl")


def texts(svg: bytes) -> list[str]:
    return [element.text for element in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


def test_a_learning_curve_has_both_models(records):
    svg = figures.learning_curve(records, "amsterdam", 12)
    assert figures.PERSONAL.lower() in svg.decode().lower()
    assert figures.SHARED.lower() in svg.decode().lower()
    assert "round" in texts(svg)


def test_what_was_never_measured_is_not_drawn(records):
    assert figures.learning_curve(records, "zagreb", 12) is None
    assert figures.loss_curve(records, "prologue") is None
    once = {"kind": "round", "round": 9, "site": "bologna", "phase": "epilogue", "loss": 0.5}
    assert figures.loss_curve([*records, once], "epilogue") is None
    assert figures.component_bytes({"encoder": 0}) is None


def test_an_undefined_validation_is_skipped():
    records = [
        {"kind": "validation", "round": round_, "site": "a", "model": "shared", "dice": dice}
        for round_, dice in ((1, None), (2, 0.5))
    ]
    assert figures.learning_curve(records, "a", 4) is not None
    assert figures.learning_curve(records[:1], "a", 4) is None


def test_a_single_validation_is_at_a_whole_round():
    svg = figures.learning_curve(
        [{"kind": "validation", "round": 6, "site": "a", "model": "personal", "dice": 0.5}], "a", 12
    )
    assert texts(svg) == ["7", "round", "0", "0.5", "1"]


def test_a_validation_after_the_last_round_makes_no_further_round() -> None:
    records = [
        {"kind": "validation", "round": round_, "site": "a", "model": "personal", "dice": 0.5} for round_ in range(5)
    ]
    numbers = [text for text in texts(figures.learning_curve(records, "a", 4)) if text.isdigit()]
    assert numbers == ["1", "2", "3", "4", "0", "1"]  # the last two are Dice's


def test_the_site_with_the_highest_loss_is_named(records):
    assert "bologna" in texts(figures.loss_curve(records, "global"))  # the fixture gives later sites higher losses


def test_without_total_losses_the_segmentation_losses_are_drawn():
    rows = [
        {"kind": "round", "round": round_, "site": "zagreb", "phase": "halves", "segmentation": 0.5 - 0.1 * round_}
        for round_ in range(3)
    ]
    assert figures.loss_curve(rows, "halves") == figures.loss_curve(
        [{**row, "loss": row["segmentation"]} for row in rows], "halves"
    )
    assert figures.loss_curve(rows, "halves") is not None


def test_expert_shares_are_written_in_per_cent():
    shown = texts(figures.expert_usage({3: [0.25, 0.75], 5: [0.5, 0.5]}, highest=0.75))
    assert {"25", "75", "50", "block 3", "block 5"} <= set(shown)


def test_components_are_sorted_and_their_shares_add_up():
    shown = texts(figures.component_bytes({"small": 1000, "large": 3000}))
    assert {"3 kB (75 %)", "1 kB (25 %)"} <= set(shown)


def test_the_same_numbers_give_the_same_bytes(records):
    assert figures.learning_curve(records, "bologna", 12) == figures.learning_curve(records, "bologna", 12)


def test_comparison_names_runs_and_sites(fake):
    shown = texts(figures.comparison_dots({"ours": fake.make_summary(), "theirs": fake.make_summary("fedavg")}))
    assert {"ours", "theirs", "mean", *fake.SITES} <= set(shown)


def test_names_are_text_not_mathematics_and_not_markup(fake):
    shown = texts(figures.comparison_dots({"$x_1$": fake.make_summary(sites=("<b>&", "$\\frac$"))}))
    assert {"$x_1$", "<b>&", "$\\frac$"} <= set(shown)


def test_global_settings_are_left_as_they_were(records):
    names = ("svg.fonttype", "font.size", "text.parse_math", "axes.grid")
    before = [mpl.rcParams[name] for name in names]
    figures.learning_curve(records, "amsterdam", 12)
    assert [mpl.rcParams[name] for name in names] == before


def test_methods_that_did_not_run_everywhere_are_still_drawn():
    svg = figures.method_dots({"a": {"x": [0.5, 0.7], "y": []}, "mean": {"x": [0.6], "y": []}})
    shown = texts(svg)
    assert {"a", "mean", "x", "y"} <= set(shown)


def test_many_methods_have_a_row_each_and_the_sites_are_the_dots() -> None:
    methods = [f"m{i}" for i in range(9)]
    rows = {name: {method: [0.5 + 0.01 * i] for i, method in enumerate(methods)} for name in ("a", "b", "mean")}
    svg = figures.method_dots(rows)
    shown = texts(svg)
    assert [text for text in shown if text in methods] == methods  # along y, and none in the legend
    assert [text for text in shown if text in rows] == list(rows)
    few = figures.method_dots({name: dict(list(row.items())[:3]) for name, row in rows.items()})
    assert [text for text in texts(few) if text in rows] == list(rows)


def test_curves_name_their_ticks_and_lines():
    shown = texts(figures.curves(["4", "all"], {"pfedsam": [30.0, None], "fedavg": [None, None]}, "labels", "Dice"))
    assert {"4", "all", "pfedsam", "labels", "Dice"} <= set(shown)


def test_differences_are_drawn_with_their_intervals_and_a_line_at_zero():
    rows = {"a": {"x": (0.1, (0.05, 0.15)), "y": (-0.1, None)}, "mean over sites": {"x": (0.1, (-0.1, 0.3))}}
    shown = texts(figures.difference_bars(rows, "local-only"))
    assert {"a", "mean over sites", "x", "y"} <= set(shown)
    assert "Dice minus that of local-only, with the 95 % interval of the difference" in shown


def test_the_names_in_a_legend_are_inside_the_figure():
    names = ["pfedsam", "local-only", "fedavg", "unet-local", "unet-local-4e-3", "no-experts", "no-distillation"]
    svg = figures.method_curves({name: {8: 50.0, 16: 60.0} for name in names}, "validation")
    root = ET.fromstring(svg)
    width = float(root.attrib["viewBox"].split()[2])
    left = {element.text: float(element.attrib["x"]) for element in root.iter("{http://www.w3.org/2000/svg}text")}
    assert all(left[name] + 6 * len(name) < width for name in names)  # a letter of 11 px is about 6 px wide
