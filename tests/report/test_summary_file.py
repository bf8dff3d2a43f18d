import json

import pytest

from pfedsam.core import sealed
from pfedsam.core.errors import RunError, StoreError
from pfedsam.report.summary_file import (
    Communication,
    build_summary,
    collect_versions,
    read_summary,
    with_local_only,
    write_summary,
)


def build(**models):
    return build_summary(
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
        *("schema", "method", "backbone", "seed", "rounds", "sites", "mean", "worst_site"),
        *("communication", "seconds", "versions", "sha256"),
    }
    assert content["schema"] == 1
    site = content["sites"]["bologna"]
    assert set(site) == {"personal", "shared", "local_only"}
    assert {"dice", "iou", "hd95_mm", "assd_mm", "cases", "classes", "undefined", "unit"} <= set(site["personal"])
    assert set(content["communication"]) == {"up_bytes_per_site_round", "down_bytes_per_site_round", "by_component"}


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


def test_the_gain_is_the_difference_to_the_baseline(fake):
    ours, alone = fake.make_summary("pfedsam"), fake.make_summary("local-only")
    site = with_local_only(ours, alone).sites["coimbra"]
    expected = ours.sites["coimbra"].personal.dice - alone.sites["coimbra"].personal.dice
    assert site.gain == pytest.approx(expected)
    assert ours.sites["coimbra"].gain is None


def test_a_baseline_of_another_method_is_refused(fake):
    with pytest.raises(RunError, match=r"a run of 'fedavg'.*needs one of 'local-only'"):
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


@pytest.mark.parametrize("schema", [2, None, "1"])
def test_another_schema_is_refused(tmp_path, schema):
    path = tmp_path / "summary.json"
    path.write_text(json.dumps({"schema": schema}), "utf-8")
    with pytest.raises(StoreError, match=rf"schema {schema!r}; this version reads schema 1"):
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
    with pytest.raises(StoreError, match=rf"summary.json is damaged.*{tmp_path.name}.*resume it"):
        read_summary(tmp_path / "summary.json")


@pytest.mark.parametrize("text", ["", "[1]", "{"])
def test_what_is_no_summary_is_refused(tmp_path, text):
    path = tmp_path / "summary.json"
    path.write_text(text, "utf-8")
    with pytest.raises(StoreError):
        read_summary(path)


def test_a_run_without_a_summary_is_an_error(tmp_path):
    with pytest.raises(StoreError, match="writes it when it ends"):
        read_summary(tmp_path / "summary.json")


def test_versions_name_torch():
    assert collect_versions()["torch"].startswith("2.")
