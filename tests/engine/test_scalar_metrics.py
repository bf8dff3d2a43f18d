"""Scalar metrics by name: reports are read back without loss, and no name that is not listed is accepted."""

import json
from dataclasses import replace
from typing import get_args

import pytest

from pfedsam.core.errors import UpdateError
from pfedsam.engine.model_selection import Validation
from pfedsam.engine.scalar_metrics import (
    allowed_metrics,
    check_values,
    from_registration,
    from_report,
    from_summaries,
    from_validation,
    to_missing,
    to_report,
    to_summaries,
    to_validation,
)
from pfedsam.engine.site_session import RoundReport
from pfedsam.evaluation.scores import MEASURES, ClassScores
from pfedsam.evaluation.summary import ClassSummary, Occurrence, SiteSummary, Units
from pfedsam.experiment.build import build_model
from pfedsam.experiment.options import RunOptions
from pfedsam.federation.data_summary import summary_names
from pfedsam.federation.tasks import Task
from pfedsam.training.losses import LabelForm
from pfedsam.training.phases import Model

COUNTS = {name: number for number, name in enumerate(MEASURES)}
MEAN = ClassScores(0.1, 1 / 3, None, 2.5, 0.7, 12.25, None)
CLASSES = {
    "organ": ClassSummary(MEAN, COUNTS, Occurrence(3, 2, 1, 0)),
    "a.b": ClassSummary(MEAN, COUNTS, Occurrence(0, 0, 0, 4, 2)),
}
SUMMARY = SiteSummary(4, 3, Units("mm", "ml"), MEAN, CLASSES, COUNTS)
PRESENCES = ("present", "missed", "extra", "absent", "not_annotated")
EVERY = [
    f"test.{model}.{rest}"
    for model in ("personal", "shared")
    for rest in (
        *("cases", "patients", "unit", "volume_unit"),
        *(
            f"{group}.{kind}{name}"
            for group in ("mean", "class.organ", "class.a.b")
            for kind in ("", "undefined_")
            for name in MEASURES
        ),
        *(f"class.{name}.{count}" for name in ("organ", "a.b") for count in PRESENCES),
    )
]
"""The names of a test's reply, written out a second time."""
REPORT = RoundReport(
    {"global": {"total": 2.0, "segmentation": 2.0}, "local": {"total": 1 / 3, "balance": 0.1}}, {"1": [0.25, 0.75]}
)
NAMES = tuple(from_report(REPORT))


def over_the_wire(scalar_metrics: dict) -> dict:
    return json.loads(json.dumps(scalar_metrics, sort_keys=True))


def test_a_report_comes_back_equal_and_in_order() -> None:
    back = to_report(over_the_wire(from_report(REPORT)), NAMES)
    assert back == REPORT
    assert list(back.losses["global"]) == ["total", "segmentation"]


def test_a_loss_that_is_not_finite_is_told_as_undefined() -> None:
    scalar_metrics = from_report(RoundReport({"local": {"total": float("nan")}}, {}))
    assert scalar_metrics == {"loss.local.total": None}
    assert to_report(scalar_metrics, tuple(scalar_metrics)).losses == {}


@pytest.mark.parametrize(("kept", "uses"), [(None, "personal"), (0, "shared"), (7, "personal"), (None, "shared")])
def test_a_validation_comes_back_equal_and_an_older_study_gets_no_more_than_it_listed(
    kept: int | None, uses: Model
) -> None:
    found = Validation({"personal": 0.5, "shared": None}, kept, uses)
    names = ("dice.personal", "dice.shared", "kept_round", "uses_shared")
    assert to_validation(over_the_wire(from_validation(found, names)), names) == found
    assert set(from_validation(found, names[:2])) == set(names[:2])


def test_a_site_cannot_keep_the_model_of_a_later_round() -> None:
    names = ("dice.personal", "kept_round")
    assert to_validation({"dice.personal": 0.5, "kept_round": 7}, names, 7).kept == 7
    with pytest.raises(UpdateError, match="uses the model of a round after 8"):
        to_validation({"dice.personal": 0.5, "kept_round": 8}, names, 7)


@pytest.mark.parametrize("value", [1e11, -1e11])
def test_a_volume_that_no_image_has_is_refused(value: float) -> None:
    check_values({"test.personal.class.a.volume_difference": -1e9})
    with pytest.raises(UpdateError, match="volume_difference a value that it cannot have"):
        check_values({"test.personal.class.a.volume_difference": value})


def test_what_a_site_annotates_comes_back_and_an_older_site_annotates_all() -> None:
    classes, names = ("organ", "a.b"), ("cases", "annotates.organ", "annotates.a.b")
    said = over_the_wire(from_registration(7, classes, LabelForm((True, False)), names))
    assert said == {"cases": 7, "annotates.organ": 1, "annotates.a.b": 0}
    assert to_missing(said, classes) == {"a.b"}
    older = from_registration(7, classes, LabelForm((True, False)), names[:1])
    assert older == {"cases": 7}
    assert to_missing(older, classes) == set()


@pytest.mark.parametrize("unit", ["mm", "px", "mixed"])
def test_summaries_come_back_equal(unit) -> None:
    found = {"personal": replace(SUMMARY, units=Units(unit, "mm2" if unit == "mm" else "mixed")), "shared": SUMMARY}
    assert to_summaries(over_the_wire(from_summaries(found, EVERY)), ("organ", "a.b")) == found


def test_an_older_study_gets_no_counts_and_they_are_not_taken_for_zero() -> None:
    older = [name for name in EVERY if name.split(".")[-1] not in (*PRESENCES, "patients")]
    sent = from_summaries({"shared": SUMMARY}, older)
    assert set(sent) < set(from_summaries({"shared": SUMMARY}, EVERY))
    found = to_summaries(over_the_wire(sent), ("organ", "a.b"))["shared"]
    assert (found.patients, found.classes["organ"].occurrence) == (None, None)
    assert found.mean == MEAN


def test_numbers_of_few_cases_are_withheld_and_come_back_as_not_known() -> None:
    sent = over_the_wire(from_summaries({"shared": SUMMARY}, EVERY, 5))  # of 4 test cases
    assert {name.split(".")[-1] for name, value in sent.items() if value is not None} == {"unit", "volume_unit"}
    check_values(sent, 5)
    with pytest.raises(UpdateError, match=r"test\.shared\.cases"):
        check_values(sent)
    found = to_summaries(sent, ("organ", "a.b"))["shared"]
    assert (found.cases, found.patients, found.mean.dice, found.classes["organ"].occurrence) == (None,) * 4
    assert from_report(REPORT, may_leave=False) == dict.fromkeys(from_report(REPORT))


@pytest.mark.parametrize("method", ["pfedsam", "fedavg", "local-only"])
def test_every_name_of_the_list_is_made_of_the_configuration_alone(toy_options: RunOptions, method: str) -> None:
    options = toy_options.model_copy(update={"method": method})
    names = allowed_metrics(options, build_model(options))
    assert names["join"] == ("cases", *(f"annotates.{name}" for name in options.data.classes))
    more = {"kept_round"} if method == "local-only" else {"kept_round", "uses_shared"}
    assert {name for name in names["validate"] if not name.startswith("dice.")} == more
    allowed = {"loss", "usage"}
    assert {name.split(".")[0] for name in (*names["train"], *names["finalize"])} <= allowed
    models = {name.split(".")[1] for name in names["test"]}
    organ = [
        name.replace("class.organ", f"class.{next(iter(options.data.classes))}") for name in EVERY if "a.b" not in name
    ]
    if len(options.data.classes) == 1:
        assert set(names["test"]) == {name for name in organ if name.split(".")[1] in models}
    assert all(name.startswith("test.") for name in names["test"])
    assert {name.split(".")[3] for name in names["test"] if ".class." in name} == set(options.data.classes)


def test_scores_of_the_shared_model_are_listed_only_if_the_test_scores_it(toy_options: RunOptions) -> None:
    evaluation = toy_options.evaluation.model_copy(update={"test_shared": False})
    options = toy_options.model_copy(update={"evaluation": evaluation})
    assert {name.split(".")[1] for name in allowed_metrics(options, build_model(options))["test"]} == {"personal"}


def test_a_summary_of_the_data_is_listed_where_the_study_asks_for_it(toy_options: RunOptions) -> None:
    assert set(allowed_metrics(toy_options, build_model(toy_options))) == set(get_args(Task)) - {"summarize"}
    communication = toy_options.communication.model_copy(update={"data_summary": True})
    options = toy_options.model_copy(update={"communication": communication})
    assert allowed_metrics(options, build_model(options))["summarize"] == summary_names(options.data.classes)
