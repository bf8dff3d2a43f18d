from pfedsam.cli.onboard import onboarding_table
from pfedsam.engine.onboarding import LOCAL_PART, NOTHING, Onboarded
from pfedsam.report.format import MISSING


def test_the_table_names_the_way_in_use():
    row = {"dice": 0.5, "iou": 0.25, "hd95": None, "assd": 2.0}
    found = Onboarded({NOTHING: row, LOCAL_PART: {**row, "dice": 0.75}}, 10, 30, LOCAL_PART)
    table = onboarding_table("north", found)
    assert "trained on 10 cases, scored on 30" in str(table.title)
    assert list(table.columns[1].cells) == ["0.500", "0.750"]
    assert list(table.columns[3].cells) == [MISSING, MISSING]
    assert [str(row.style) for row in table.rows] == ["", "bold"]
