import json

import pytest

from pfedsam.report.accuracy import Line
from pfedsam.report.accuracy_page import Study
from pfedsam.report.onboarding_page import Joined, write_onboarding

STUDY = Study("onboarding-x", "pfedsam", "c", [0, 1], [Line("pfedsam", "pfedsam", True)], {}, {})


def joined(site, seed, member, unseen, **few):
    columns = {"member": member, "unseen": unseen} | {f"local part {n[1:]}": value for n, value in few.items()}
    return Joined("pfedsam", site, seed, columns, "local part")


def test_figures_by_hand(tmp_path):
    rows = [joined("a", 0, 80.0, 40.0, n5=60.0, n10=76.0), joined("b", 0, 60.0, 20.0, n5=40.0, n10=64.0)]
    figures = write_onboarding(tmp_path, STUDY, rows)
    assert figures["dice_mean.pfedsam.member"] == 70
    assert figures["dice_mean.pfedsam.unseen"] == 30
    assert figures["dice_mean.pfedsam.local_part_10"] == 70
    assert figures["share_of_member.pfedsam.10"] == pytest.approx(100)
    assert figures["share_of_member.pfedsam.5"] == pytest.approx(100 * 50 / 70)
    text = (tmp_path / "onboarding-x.md").read_text()
    assert "| a | 80.0 | 40.0 | 60.0 | 76.0 |" in text
    assert "| **mean** | 70.0 | 30.0 | 50.0 | 70.0 |" in text
    content = json.loads((tmp_path / "onboarding-x.json").read_text())
    assert content["sites"][1]["dice"]["member"] == 60
    assert (tmp_path / "onboarding-x.svg").exists()


def test_seeds_are_averaged_and_nothing_is_a_result_too(tmp_path):
    rows = [joined("a", 0, 80.0, 40.0), joined("a", 1, 60.0, 20.0)]
    assert write_onboarding(tmp_path, STUDY, rows)["dice_mean.pfedsam.unseen"] == 30
    assert write_onboarding(tmp_path, STUDY, []) == {}
    assert "Not run yet." in (tmp_path / "onboarding-x.md").read_text()


def test_a_method_without_a_shared_model_has_a_table_without_unseen(tmp_path):
    both = Study(**{**vars(STUDY), "lines": [Line("pfedsam", "pfedsam", True), Line("fedper", "fedper", True)]})
    rows = [
        joined("a", 0, 80.0, 40.0, n5=60.0),
        Joined("fedper", "a", 0, {"member": 70.0, "local part 5": 50.0}, "local part"),
    ]
    figures = write_onboarding(tmp_path, both, rows)
    assert "dice_mean.fedper.unseen" not in figures
    assert figures["dice_mean.fedper.local_part_5"] == 50
    text = (tmp_path / "onboarding-x.md").read_text()
    assert "| site | member | unseen | local part 5 |" in text.split("## fedper")[0]
    assert "| site | member | local part 5 |" in text.split("## fedper")[1]
