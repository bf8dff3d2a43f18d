"""Sites that are left out in turn: a federation without a site never reads it, and results of the same split are compared."""

from pathlib import Path

import pytest

from pfedsam.bench.new_sites import _columns, run_new_sites
from pfedsam.bench.plan import Plan
from pfedsam.core.errors import OptionError
from pfedsam.experiment.options import RunOptions
from pfedsam.experiment.suite import Suite, choose_entries
from pfedsam.report.onboarded import ALONE, LOCAL_PART, NOTHING, Onboarded
from pfedsam.report.onboarding_page import Joined
from pfedsam.report.summary_file import SiteEntry, read_summary


def test_a_method_without_a_shared_model_has_no_column_unseen() -> None:
    ways = {LOCAL_PART: {"dice": 0.7}, ALONE: {"dice": 0.5}}
    personal = {5: Onboarded(ways, 5, 3, LOCAL_PART)}
    assert _columns(SiteEntry(), personal) == {"member": None, "local part 5": 0.7, "alone 5": 0.5}
    shared = {5: Onboarded({NOTHING: {"dice": 0.6}, **ways}, 5, 3, LOCAL_PART)}
    assert _columns(SiteEntry(), shared) == {"member": None, "unseen": 0.6, "local part 5": 0.7, "alone 5": 0.5}


@pytest.mark.parametrize(
    ("method", "sites", "says"),
    [
        ("local-only", 3, r"local-only \(method local-only\) shares nothing from which a new site could start"),
        ("centralized", 3, "shares nothing"),
        ("fedavg", 1, "The only site is site_1"),
        ("trimmed-mean", 4, "needs updates of at least 4 sites with these options .*; there are 3"),
    ],
)
def test_what_no_site_can_join_is_refused_before_anything_is_trained(
    method: str, sites: int, says: str, tmp_path: Path
) -> None:
    names = [f"site_{number}" for number in range(1, sites + 1)]
    for name in names:
        (tmp_path / "data" / name).mkdir(parents=True)
    suite = Suite.model_validate({"name": "toy", "options": {"data": {"classes": {"organ": [1]}}}})
    plan = Plan(suite, choose_entries(suite, [method], []), [0], tmp_path / "data", tmp_path / "b")
    with pytest.raises(OptionError, match=says):
        run_new_sites(plan, [1], 2, lambda _: None, lambda _: None)
    assert not (tmp_path / "b").exists()


@pytest.mark.slow
def test_every_site_joins_late(toy_folder: Path, toy_options: RunOptions, tmp_path: Path) -> None:
    content = toy_options.model_dump(mode="json", exclude={"seed", "method", "runtime"})
    names = list(toy_options.data.sites)[:2]
    del content["data"]["sites"]
    content["training"] |= {"rounds": 2, "steps_per_round": 2, "final_steps": 2, "shared_warmup_rounds": 0}
    suite = Suite.model_validate({"name": "toy", "seeds": [0], "options": content, "sites": names})
    plan = Plan(suite, choose_entries(suite, ["pfedsam"], []), [0], toy_folder / "sites", tmp_path / "b", workers=1)
    seen: list[int] = []
    joined = run_new_sites(plan, [1, 2], 2, lambda _: None, lambda found: seen.append(len(found)))
    assert seen == [1, 2]
    assert [one.site for one in joined] == names
    for one in joined:
        assert set(one.columns) <= {"member", "unseen"} | {
            f"{way} {n}" for way in ("local part", "everything", "alone") for n in (1, 2)
        }
        without = tmp_path / "b" / f"without-{one.site}" / "seed0" / "pfedsam"
        assert set(read_summary(without / "summary.json").sites) == set(names) - {one.site}
        member = read_summary(tmp_path / "b" / "seed0" / "pfedsam" / "summary.json").sites[one.site]
        late = read_summary(without.with_name("pfedsam-onboard-2") / "summary.json").sites[one.site]
        assert late.in_use is not None
        assert late.in_use.cases == member.in_use.cases  # type: ignore[union-attr]
        if late.in_use.dice is not None:
            assert one.columns["local part 2"] == pytest.approx(100 * late.in_use.dice)
    again: list[Joined] = run_new_sites(plan, [1, 2], 2, lambda _: pytest.fail("trained again"), lambda _: None)
    assert again == joined
