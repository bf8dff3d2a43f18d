"""The files of a finished run: one summary of both models, without the path of the backbone on this machine."""

from datetime import UTC, date, datetime
from pathlib import Path

from pfedsam.engine.run_end import summarize_models, write_end
from pfedsam.evaluation.scores import CaseScores, ClassScores
from pfedsam.experiment.options import RunOptions
from pfedsam.report.records import RecordWriter
from pfedsam.report.summary_file import Communication, PartSizes, read_summary

NOTHING_SENT = Communication(up_bytes_per_site_round=0, down_bytes_per_site_round=0, by_component={})


def case(dice: float) -> list[CaseScores]:
    scores = {"vessel": ClassScores(dice=dice, iou=dice / 2, hd95=1.0, assd=1.0)}
    return [CaseScores("one", "patient", scores, {"vessel": "both"}, "px", "px")]


def test_scores_by_site_become_a_summary_summarize_models(tmp_path: Path, toy_options: RunOptions) -> None:
    models = summarize_models(
        {"a": {"personal": case(0.75), "shared": case(0.5)}, "b": {"personal": case(0.25), "shared": case(0.5)}}
    )
    write_end(tmp_path, toy_options, models, {"a": PartSizes(6, 1)}, NOTHING_SENT, {"total": 1.0})
    summary = read_summary(tmp_path / "summary.json")
    assert summary.mean.personal is not None
    assert summary.mean.personal.dice == 0.5
    assert summary.sites["a"].shared is not None
    assert summary.sites["a"].shared.dice == 0.5
    assert summary.worst_site == "b"
    assert (summary.sites["a"].train_cases, summary.sites["a"].val_cases) == (6, 1)
    assert (summary.sites["b"].train_cases, summary.mean.train_cases) == (None, None)
    assert date.fromisoformat(summary.date or "") <= datetime.now(UTC).date()
    assert (tmp_path / "report.html").exists()


def test_the_summary_names_the_model_that_each_site_uses(tmp_path: Path, toy_options: RunOptions) -> None:
    both = {"personal": case(0.75), "shared": case(0.5)}
    with RecordWriter(tmp_path / "records.jsonl") as records:
        for round_, users in ((0, ("a", "b")), (1, ("b",))):
            for site in ("a", "b", "c"):
                records.write({"kind": "validation", "round": round_, "site": site, "model": "personal", "dice": 0.5})
            for site in users:
                records.write({"kind": "plain", "round": round_, "site": site})
        records.write({"kind": "timing", "total": 1.0})
    write_end(tmp_path, toy_options, summarize_models(dict.fromkeys("abc", both)), {}, NOTHING_SENT, {}, rounds=2)
    summary = read_summary(tmp_path / "summary.json")
    assert {name: site.uses for name, site in summary.sites.items()} == {
        "a": "personal",
        "b": "shared",
        "c": "personal",
    }
    assert (summary.rounds, summary.mean.uses) == (2, None)


def test_the_steps_of_a_site_that_trained_alone_are_its_own(tmp_path: Path, toy_options: RunOptions) -> None:
    models = summarize_models({"a": {"shared": case(0.5)}})
    write_end(tmp_path, toy_options, models, {}, NOTHING_SENT, {}, rounds=2, steps=7)
    summary = read_summary(tmp_path / "summary.json")
    assert (summary.rounds, summary.steps) == (2, 7)


def test_a_method_without_personal_models_uses_the_shared_one(tmp_path: Path, toy_options: RunOptions) -> None:
    write_end(tmp_path, toy_options, summarize_models({"a": {"shared": case(0.5)}}), {}, NOTHING_SENT, {})
    assert read_summary(tmp_path / "summary.json").sites["a"].uses == "shared"


def test_where_the_backbone_lies_is_told_neither_in_the_summary_nor_in_the_report(
    tmp_path: Path, toy_options: RunOptions
) -> None:
    place = Path(toy_options.model.backbone)
    write_end(tmp_path, toy_options, summarize_models({"a": {"shared": case(0.5)}}), {}, NOTHING_SENT, {})
    assert read_summary(tmp_path / "summary.json").backbone == place.name
    assert all(str(place.parent) not in path.read_text("utf-8") for path in tmp_path.iterdir())
