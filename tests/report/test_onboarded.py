"""The result of an onboarding is read back, and it is shown in the report."""

import json
import shutil
from pathlib import Path

import pytest

from pfedsam.core.errors import StoreError
from pfedsam.report.format import MISSING
from pfedsam.report.onboarded import (
    ALONE,
    LOCAL_PART,
    NOTHING,
    RESULT,
    WAYS,
    Onboarded,
    read_onboarded,
    way_rows,
    write_onboarded,
)
from pfedsam.report.page import write_page

FOUND = Onboarded(
    {
        NOTHING: {"dice": 0.5, "iou": 0.4, "hd95": None, "assd": 2.0},
        LOCAL_PART: {"dice": 0.75, "iou": 0.6, "hd95": 3.0, "assd": 1.0},
        ALONE: {"dice": 0.7654, "iou": 0.61, "hd95": 2.5, "assd": 0.9},
    },
    trained_on=5,
    tested_on=3,
    in_use=LOCAL_PART,
    validated_on=1,
)


def test_the_result_is_read_back_also_without_what_earlier_versions_lack(tmp_path: Path) -> None:
    assert read_onboarded(tmp_path) is None
    write_onboarded(tmp_path, "key", FOUND)
    assert read_onboarded(tmp_path) == FOUND
    content = json.loads((tmp_path / RESULT).read_text())
    del content["validated_on"], content["sha256"]
    (tmp_path / RESULT).write_text(json.dumps(content))
    found = read_onboarded(tmp_path)
    assert found is not None
    assert (found.trained_on, found.validated_on) == (5, None)


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"ways": {"x": {}}, "trained_on": 1, "tested_on": 1, "in_use": "x"}']
)
def test_a_damaged_result_is_told(content: str, tmp_path: Path) -> None:
    (tmp_path / RESULT).write_text(content)
    with pytest.raises(StoreError, match=r"onboarding\.json is damaged"):
        read_onboarded(tmp_path)


def test_the_option_whose_model_is_saved_is_marked() -> None:
    rows = list(way_rows(FOUND))
    assert [row.way for row in rows if row.saved] == [LOCAL_PART]
    assert rows[0].values == ("0.500", "0.400", MISSING, "2.00")
    assert rows[2].description == WAYS[ALONE]


def test_the_report_of_an_onboarding_has_its_table_and_title(run_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(run_folder, tmp_path / "run"))
    write_onboarded(folder, "key", FOUND)
    html = write_page(folder).read_text("utf-8")
    assert "<title>Onboarding of " in html
    assert html.count(">saved<") == 1
    for text in ("0.765", WAYS[ALONE], "scored on the same 3 test cases"):
        assert text in html
    for text in ("Sent by a site per round", "Lowest Dice of a site", "validated on"):
        assert text not in html
