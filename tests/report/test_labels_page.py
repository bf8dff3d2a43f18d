from pfedsam.report.accuracy import Line
from pfedsam.report.accuracy_page import Study
from pfedsam.report.format import MISSING
from pfedsam.report.labels_page import write_labels


def test_a_curve_by_hand(tmp_path, fake):
    low = fake.run_scores({"a": {"1": 0.2}, "b": {"1": 0.4}})
    high = fake.run_scores({"a": {"1": 0.6}, "b": {"1": 0.8}})
    lines = [Line("pfedsam", "pfedsam", True), Line("fedavg", "fedavg", True)]
    study = Study("labels-x", "pfedsam", "c", [0], lines, {}, {})
    figures = write_labels(tmp_path, study, {"4": {"pfedsam": {0: low}}, "all": {"pfedsam": {0: high}}})
    assert round(figures["dice_mean.pfedsam.4"], 6) == 30
    assert round(figures["dice_worst_site.pfedsam.all"], 6) == 60
    text = (tmp_path / "labels-x.md").read_text()
    assert "| pfedsam | 30.0 | 70.0 |" in text
    assert f"| fedavg | {MISSING} | {MISSING} |" in text
    assert "so is the number of steps" in text
    write_labels(tmp_path, study, {"4": {"pfedsam": {0: low}}}, converged=True)
    assert "best of its validations" in (tmp_path / "labels-x.md").read_text()
    assert (tmp_path / "labels-x.svg").read_bytes().startswith(b"<?xml")
