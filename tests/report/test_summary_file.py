import json
import re

import pytest

from pfedsam.core import sealed
from pfedsam.core.errors import RunError, StoreError
from pfedsam.evaluation.scores import CaseScores, ClassScores
from pfedsam.evaluation.summary import summarize_site
from pfedsam.report.summary_file import (
    Communication,
    build_summary,
    collect_versions,
    read_summary,
    with_earlier_sites,
    with_local_only,
    write_summary,
)


def build(**models):
    return build_summary(
        date="2026-11-28",
        sizes={},
        method="m",
        backbone="b",
        seed=1,
        rounds=2,
        communication=Communication(up_bytes_per_site_round=1, down_bytes_per_site_round=1, by_component={}),
        seconds={"total": 1.0},
        versions={},
        **models,
    )


def test_what_is_written_is_read(tmp_path, fake):
    path = tmp_path / "summary.json"
    write_summary(path, fake.make_summary())
    assert read_summary(path) == fake.make_summary()


def test_the_file_has_the_keys_of_the_design(tmp_path, fake):
    path = tmp_path / "summary.json"
    write_summary(path, fake.make_summary())
    content = json.loads(path.read_text("utf-8"))
    assert set(content) == {
        *(
            "schema",
            "date",
            "method",
            "backbone",
            "seed",
            "rounds",
            "steps",
            "min_cases",
            "sites",
            "mean",
            "worst_site",
        ),
        *("communication", "seconds", "versions", "sha256"),
    }
    assert content["schema"] == 2
    assert content["date"] == "2026-11-28"
    site = content["sites"]["bologna"]
    assert set(site) == {"train_cases", "val_cases", "uses", "personal", "shared", "local_only"}
    assert (site["train_cases"], site["val_cases"]) == (21, 4)
    assert {"missed", "present", "extra", "absent", "patients", "nsd", "lesion_recall"} <= set(site["personal"])
    assert {"dice", "iou", "hd95_mm", "assd_mm", "cases", "classes", "undefined", "unit"} <= set(site["personal"])
    assert set(content["communication"]) == {"up_bytes_per_site_round", "down_bytes_per_site_round", "by_component"}


FIRST_SCHEMA = {
    "schema": 1,
    "method": "fedavg",
    "backbone": "sam-tiny",
    "seed": 0,
    "rounds": 2,
    "sites": {
        "a": {
            "personal": None,
            "shared": {
                **{"dice": 0.5, "iou": 0.4, "hd95_mm": None, "assd_mm": None, "hd95_px": 3.0, "assd_px": 1.0},
                **{"unit": "px", "undefined": {"dice": 0, "iou": 0, "hd95": 1, "assd": 1}, "cases": 4, "classes": {}},
            },
            "local_only": None,
        }
    },
    "mean": {"personal": None, "shared": None, "local_only": None},
    "worst_site": "a",
    "communication": {"up_bytes_per_site_round": 1.0, "down_bytes_per_site_round": 1.0, "by_component": {}},
    "seconds": {"total": 1.0},
    "versions": {},
}
"""As the first version wrote it."""


def test_a_file_of_the_first_schema_is_read_and_what_it_lacks_is_not_known(tmp_path):
    (tmp_path / "summary.json").write_text(json.dumps(FIRST_SCHEMA), "utf-8")
    summary = read_summary(tmp_path / "summary.json")
    entry = summary.sites["a"].shared
    assert (entry.dice, entry.hd95, entry.cases) == (0.5, 3.0, 4)
    assert (entry.missed, entry.present, entry.patients, entry.nsd, entry.volume_difference) == (None,) * 5
    assert (summary.date, summary.sites["a"].train_cases) == (None, None)
    write_summary(tmp_path / "summary.json", summary)
    assert json.loads((tmp_path / "summary.json").read_text("utf-8"))["schema"] == 2
    assert read_summary(tmp_path / "summary.json") == summary


def test_missed_cases_are_counted_by_class_and_added_up(tmp_path, fake):
    def case(lesion: str, dice: float | None) -> CaseScores:
        classes = {"organ": ClassScores(0.9, 0.8, 1.0, 1.0), "lesion": ClassScores(dice, dice)}
        return fake.case_scores(f"{lesion}{dice}", classes, {"organ": "both", "lesion": lesion})

    site = summarize_site([case("missed", 0.0), case("extra", 0.0), case("absent", None)])
    write_summary(tmp_path / "summary.json", build(personal=None, shared={"a": site, "b": site}))
    summary = read_summary(tmp_path / "summary.json")
    lesion = summary.sites["a"].shared.classes["lesion"]
    assert (lesion.present, lesion.missed, lesion.extra, lesion.absent) == (1, 1, 1, 1)
    both = summary.mean.shared
    assert (both.present, both.missed, both.extra, both.absent) == (2 * (3 + 1), 2, 2, 2)


@pytest.mark.parametrize(("unit", "name"), [("ml", "ml"), ("mm2", "mm2"), ("px", "px")])
def test_a_volume_stands_under_the_name_of_its_unit(unit, name):
    scores = {"organ": ClassScores(0.9, 0.8, 1.0, 1.0, 0.9, 12.5)}
    case = CaseScores("1", "1", scores, {"organ": "both"}, "px" if unit == "px" else "mm", unit)
    entry = build(personal=None, shared={"a": summarize_site([case])}).sites["a"].shared
    values = {key: value for key, value in entry.model_dump().items() if key.startswith("volume_difference")}
    assert values.pop(f"volume_difference_{name}") == entry.volume_difference == 12.5
    assert set(values.values()) == {None}


def test_pixels_never_stand_under_the_name_of_millimetres(fake):
    in_pixels = fake.make_summary(unit="px").sites["bologna"].personal
    assert in_pixels.hd95_mm is None
    assert in_pixels.assd_mm is None
    assert in_pixels.hd95 == in_pixels.hd95_px
    in_mm = fake.make_summary(unit="mm").sites["bologna"].personal
    assert in_mm.hd95_px is None
    assert in_mm.hd95 == in_mm.hd95_mm == in_pixels.hd95_px


def test_the_worst_site_is_that_of_the_model_in_use(fake):
    good, bad = fake.site_scores(0.8, cases=3, seed=1), fake.site_scores(0.5, cases=3, seed=1)
    summary = build(personal={"a": good, "b": bad}, shared={"a": bad, "b": good})
    assert summary.worst_site == "b"
    assert build(personal=None, shared={"a": bad, "b": good}).worst_site == "a"


def test_a_method_without_personal_models_uses_the_shared_one(fake):
    summary = build(personal=None, shared={"a": fake.site_scores(0.5, cases=3, seed=1)})
    assert summary.sites["a"].personal is None
    assert summary.sites["a"].in_use == summary.sites["a"].shared


def test_models_of_different_sites_are_refused(fake):
    one = fake.site_scores(0.5, cases=3, seed=1)
    with pytest.raises(RunError, match="same sites"):
        build(personal={"a": one}, shared={"b": one})
    with pytest.raises(RunError, match="same sites"):
        build(personal=None, shared=None)


@pytest.mark.parametrize("unit", ["px", "mm"])
def test_sites_of_two_tests_are_summarised_as_those_of_one_test(unit):
    """Also with distances that may not be averaged, because their units differ."""

    def scored(case, unit, presence, *values):
        volume = "px" if unit == "px" else "mm2"
        return summarize_site(
            [CaseScores(case, case, {"organ": ClassScores(*values)}, {"organ": presence}, unit, volume)]
        )

    sites = {
        "north": scored("1", "px", "both", 0.5, 0.4, 3.0, 2.0, 0.9, 10.0),
        "south": scored("2", unit, "missed", 0.75, 0.6, None, 1.0, 0.8, 30.0),
        "west": scored("3", unit, "absent", None, None),
    }
    whole = build(personal=sites, shared=sites, use_shared=["west"])
    now = build(personal={"south": sites["south"]}, shared={"south": sites["south"]})
    earlier = {name: whole.sites[name] for name in ("north", "west")}
    assert with_earlier_sites(now, earlier) == whole
    assert list(with_earlier_sites(now, earlier).sites) == ["north", "south", "west"]
    assert with_earlier_sites(now, {}) == now


def test_the_gain_is_the_difference_to_the_baseline(fake):
    ours, alone = fake.make_summary("pfedsam"), fake.make_summary("local-only")
    site = with_local_only(ours, alone).sites["coimbra"]
    expected = ours.sites["coimbra"].personal.dice - alone.sites["coimbra"].personal.dice
    assert site.gain == pytest.approx(expected)
    assert ours.sites["coimbra"].gain is None


def test_a_baseline_of_another_method_is_refused(fake):
    with pytest.raises(RunError, match=r"a run of 'fedavg'.*over a run of 'local-only'"):
        with_local_only(fake.make_summary(), fake.make_summary("fedavg"))


def test_a_baseline_of_another_seed_is_refused(fake):
    with pytest.raises(RunError, match="the run has seed 1 and the baseline 2"):
        with_local_only(fake.make_summary(seed=1), fake.make_summary("local-only", seed=2))


@pytest.mark.parametrize("sites", [("zagreb",), ("amsterdam",), ("amsterdam", "bologna", "coimbra")])
def test_a_baseline_of_other_sites_is_refused(sites, fake):
    with pytest.raises(RunError) as error:
        with_local_only(fake.make_summary(sites=("amsterdam", "bologna")), fake.make_summary("local-only", sites))
    assert f"the run has the sites ['amsterdam', 'bologna'] and the baseline {list(sites)}" in str(error.value)


def test_a_baseline_of_another_split_is_refused(fake):
    # The first site of a made summary has 8 cases, the second 9.
    ours, theirs = (fake.make_summary(method, sites) for method, sites in (("pfedsam", "ab"), ("local-only", "ba")))
    with pytest.raises(RunError, match=r"'a'.*8 cases.*9"):
        with_local_only(ours, theirs)


@pytest.mark.parametrize("schema", [3, None, "1", True, [1]])
def test_another_schema_is_refused(tmp_path, schema):
    path = tmp_path / "summary.json"
    path.write_text(json.dumps({"schema": schema}), "utf-8")
    with pytest.raises(StoreError, match=re.escape(f"schema {schema!r}; this version reads schema 1 and 2")):
        read_summary(path)


def test_a_key_that_the_schema_does_not_have_is_refused_by_its_path(tmp_path, fake):
    path = tmp_path / "summary.json"
    write_summary(path, fake.make_summary())
    content = json.loads(path.read_text("utf-8"))
    content["communication"]["sideways"] = 1
    sealed.write_json(path, {key: value for key, value in content.items() if key != "sha256"})
    with pytest.raises(StoreError, match=r"communication\.sideways"):
        read_summary(path)


def test_a_summary_that_was_cut_says_what_makes_it_again(tmp_path):
    (tmp_path / "summary.json").write_text('{"schema": 1,', "utf-8")
    (tmp_path / "config.yaml").touch()
    with pytest.raises(StoreError, match=rf"summary.json is damaged.*resume the run in '{tmp_path.name}'"):
        read_summary(tmp_path / "summary.json")


@pytest.mark.parametrize("text", ["", "[1]", "{"])
def test_what_is_no_summary_is_refused(tmp_path, text):
    path = tmp_path / "summary.json"
    path.write_text(text, "utf-8")
    with pytest.raises(StoreError):
        read_summary(path)


def test_a_run_without_a_summary_and_a_folder_without_a_run_are_told_apart(tmp_path):
    with pytest.raises(StoreError, match=f"There is no run in the folder '{tmp_path.name}'"):
        read_summary(tmp_path / "summary.json")
    (tmp_path / "config.yaml").touch()
    with pytest.raises(StoreError, match="A run writes this file at its end: resume"):
        read_summary(tmp_path / "summary.json")


def test_versions_name_torch():
    assert collect_versions()["torch"].startswith("2.")
