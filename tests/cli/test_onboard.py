import pytest

from pfedsam.cli.onboard import onboarding_table, shared_is_better, too_few
from pfedsam.report.format import MISSING
from pfedsam.report.onboarded import LOCAL_PART, NOTHING, Onboarded


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
    said = too_few(10, Onboarded({}, 5, 3, LOCAL_PART, validated_on))
    assert "10 training cases were requested, and 5 used" in said
    assert f"{parts}, and 3 for the test" in said
    assert f"label about {18 if validated_on else 16} cases in all" in said  # 5 of 9 cases, or of 8, are for training


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
