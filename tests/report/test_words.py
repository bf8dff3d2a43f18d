"""Headings and notes that depend on the run."""

import re

import pytest

from pfedsam.experiment.options import EvaluationOptions
from pfedsam.report.page import write_page
from pfedsam.report.records import RecordWriter
from pfedsam.report.summary_file import Summary, Values, write_summary
from pfedsam.report.words import PHASES, difference_heading, part_sizes, phase_heading, surface_dice_note


def with_parts(summary: Summary, train: int | None, val: int | None, least: int = 1) -> Summary:
    sites = {
        name: site.model_copy(update={"train_cases": train, "val_cases": val}) for name, site in summary.sites.items()
    }
    return summary.model_copy(update={"sites": sites, "min_cases": least})


def test_the_sizes_of_a_sites_parts_are_a_clause(fake) -> None:
    run = fake.make_summary(sites=("a",))
    assert part_sizes([with_parts(run, 6, 1)], "a") == "trained on 6, validated on 1"
    assert part_sizes([with_parts(run, 10, None, least=10)], "a") == "trained on at most 10"
    assert part_sizes([with_parts(run, 6, 1), with_parts(run, 7, 0)], "a") == (
        "trained on 6, validated on 1 / trained on 7, validated on 0"
    )
    assert part_sizes([with_parts(run, 6, 1)], "a", with_validation=False) == "trained on 6"
    assert part_sizes([with_parts(run, None, None)], "a") == ""
    assert part_sizes([run], "b") == ""


def values(unit: str | None, difference: float | None = 3.0) -> Values:
    field = {f"volume_difference_{unit}": difference} if unit else {}
    return Values.model_validate({"dice": 0.5, "iou": 0.4, "unit": "px", "volume_unit": unit, "undefined": {}, **field})


@pytest.mark.parametrize(
    ("found", "heading"),
    [
        ([values("ml"), values("ml")], "Volume difference"),
        ([values("mm2"), values("ml", None)], "Area difference"),
        ([values("px")], "Area or volume difference"),
        ([values("ml"), values("px")], "Volume difference"),
        ([values("mm2"), values("ml")], "Area or volume difference"),
        ([values(None)], "Area or volume difference"),
    ],
)
def test_a_difference_in_mm2_is_an_area(found: list[Values], heading: str) -> None:
    assert difference_heading(found) == heading


def test_the_surface_dice_is_told_with_its_tolerance() -> None:
    note = "Surface Dice (NSD) is the share of both outlines that lies within {} of the other one."
    config = {"evaluation": EvaluationOptions(surface_tolerance=1.5).model_dump()}
    assert surface_dice_note(config) == note.format("1.5 mm (1.5 pixels where the spacing is not known)")
    for unknown in (None, "text", {"evaluation": None}, {"evaluation": {}}):
        assert surface_dice_note(unknown) == note.format("a tolerance (evaluation.surface_tolerance)")


def test_every_phase_has_a_heading_and_a_description() -> None:
    for phase in PHASES:
        assert phase_heading(phase).startswith("Training of")
    assert phase_heading("other") == "Phase 'other'"


def test_the_loss_curve_and_the_columns_have_these_headings(tmp_path, fake) -> None:
    write_summary(tmp_path / "summary.json", fake.make_summary(sites=("a",)))
    with RecordWriter(tmp_path / "records.jsonl") as records:
        for round_ in range(2):
            records.write({"kind": "round", "round": round_, "site": "a", "phase": "halves", "loss": 0.5})
        records.write({"kind": "timing", "total": 1.0})
    html = write_page(tmp_path).read_text("utf-8")
    assert "<h3>Training of both models, each on one half of the batch</h3>" in html
    assert "Surface<br>Dice" in html
    assert "Surface Dice (NSD) is the share" in html
    assert re.search(r"<th scope=\"col\">Area or<br>volume<br>difference</th>", html)
