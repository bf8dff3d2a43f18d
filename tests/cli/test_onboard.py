from pathlib import Path
from typing import get_type_hints

import pytest

from pfedsam.cli.onboard import onboard_command, onboarding_table, shared_is_better, too_few
from pfedsam.core.errors import RunError
from pfedsam.data.split import SplitOptions, cases_for_training
from pfedsam.report.format import MISSING
from pfedsam.report.onboarded import LOCAL_PART, NOTHING, Onboarded

DEPLOY = (Path(__file__).parents[2] / "docs" / "deploy.md").read_text("utf-8")


def test_the_ids_of_a_new_site_are_given_by_overrides(call, monkeypatch, tmp_path):
    given = []

    def stop(folder, overrides):
        given.append((folder, overrides))
        raise RunError("stopped here")

    monkeypatch.setattr("pfedsam.engine.opened.open_run", stop)
    words = ("--site-folder", tmp_path / "site", "--out", tmp_path / "out", "--set", "data.classes={x: [255]}")
    assert call("onboard", tmp_path / "run", *words) != 0
    assert given == [(tmp_path / "run", ["data.classes={x: [255]}"])]


def test_the_table_names_the_way_in_use():
    row = {"dice": 0.5, "iou": 0.25, "hd95": None, "assd": 2.0}
    found = Onboarded({NOTHING: row, LOCAL_PART: {**row, "dice": 0.75}}, 10, 30, LOCAL_PART)
    table = onboarding_table("north", found)
    assert "trained on 10 cases, scored on 30" in str(table.title)
    assert list(table.columns[0].cells) == [NOTHING, f"{LOCAL_PART} (saved)"]
    assert list(table.columns[1].cells) == ["0.500", "0.750"]
    assert list(table.columns[3].cells) == [MISSING, MISSING]
    assert [str(row.style) for row in table.rows] == ["", "bold"]


@pytest.mark.parametrize(("validated_on", "parts"), [(1, "5 for training, 1 for validation"), (None, "5 for training")])
def test_the_split_is_given_as_the_reason_for_fewer_training_cases(validated_on, parts):
    said = too_few(10, Onboarded({}, 5, 3, LOCAL_PART, validated_on), SplitOptions())
    assert "10 training cases were requested, and 5 used" in said
    assert f"{parts}, and 3 for the test" in said
    assert "label about 17 cases in all" in said  # 60 % of 17 are 10.2


def test_a_site_that_lacks_three_training_cases_has_to_label_at_least_three_more():
    said = too_few(10, Onboarded({}, 7, 12, LOCAL_PART, 2), SplitOptions())  # 21 cases of a few patients
    assert "label about 24 cases in all" in said


@pytest.mark.parametrize(
    "text", [get_type_hints(onboard_command, include_extras=True)["labels"].__metadata__[0].help, DEPLOY]
)
def test_help_and_tutorial_give_the_number_that_the_split_needs(text):
    assert f"10 training cases need about {cases_for_training(10, SplitOptions())} labelled ones" in " ".join(
        text.split()
    )


def test_it_is_said_where_the_shared_model_alone_is_better():
    def of(alone, used, in_use=LOCAL_PART):
        ways = {NOTHING: {"dice": alone}, LOCAL_PART: {"dice": used}}
        return shared_is_better(Onboarded(ways, 10, 30, in_use))

    assert "The unchanged shared model has the higher Dice here (0.800, with local parameters 0.750)" in of(0.8, 0.75)
    assert "--model shared" in of(0.8, 0.75)
    assert of(0.75, 0.8) == of(0.8, 0.8) == of(None, 0.8) == of(0.8, None) == ""
    assert of(0.8, 0.8, NOTHING) == ""
    without = Onboarded({LOCAL_PART: {"dice": 0.75}}, 10, 30, LOCAL_PART)  # the method has no shared model
    assert shared_is_better(without) == ""
