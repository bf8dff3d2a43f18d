"""Suites: every entry is an ordinary run, and every method gets the same number of steps."""

import copy
import json
from pathlib import Path

import pytest
import yaml

from pfedsam.core.errors import DataError, OptionError
from pfedsam.core.patterns import Pattern
from pfedsam.experiment.build import build_method
from pfedsam.experiment.effect import unused
from pfedsam.experiment.load import put
from pfedsam.experiment.options import RunOptions
from pfedsam.experiment.suite import (
    Entry,
    Suite,
    choose_entries,
    equal_steps,
    load_suite,
    local_steps,
    refuse_idle_overrides,
    run_options,
    shipped_suites,
    site_folders,
)
from pfedsam.federation.methods import METHODS

OPTIONS = {"data": {"classes": {"n": [1]}}, "training": {"rounds": 5, "steps_per_round": 4, "final_steps": 8}}
SITES = {"a": Path("a"), "b": Path("b"), "c": Path("c")}


def suite(**changes) -> Suite:
    return Suite.model_validate({"name": "mine", "options": OPTIONS, **changes})


@pytest.mark.parametrize("name", shipped_suites())
def test_every_shipped_suite_configures_every_method_and_ablation(name: str) -> None:
    loaded = load_suite(name)
    budgets = set()
    for entry in choose_entries(loaded, list(METHODS), ["all"]):
        options = run_options(loaded, entry, 1, {site: Path(site) for site in loaded.sites})
        assert options.seed == 1
        budgets.add(local_steps(options) / entry.steps / (len(loaded.sites) if entry.pooled else 1))
    assert len(budgets) == 1


def test_the_shipped_suites() -> None:
    assert shipped_suites() == ["cardiac", "disc", "nuclei", "retina"]
    assert load_suite("retina").sites == ["chase", "drive", "hrf", "stare"]


@pytest.mark.parametrize(
    ("suite", "name", "patient"),
    [
        ("nuclei", "00071198d059_t0", "00071198d059"),
        ("nuclei", "00071198d059", "00071198d059"),
        ("retina", "Image_01L", "Image_01"),
        ("retina", "Image_01R", "Image_01"),
        ("retina", "01_dr", "01_dr"),
        ("retina", "im0001", "im0001"),
    ],
)
def test_patterns_of_shipped_suites_match_the_names_of_every_site(suite: str, name: str, patient: str) -> None:
    # `data check` refuses a pattern that matches no name of a site, so that names without an ending must match too.
    pattern = Pattern(load_suite(suite).options["data"]["patient_pattern"], "patient_pattern")
    assert pattern.group(name, "patient") == patient


@pytest.mark.parametrize(
    ("method", "rounds", "per_round", "final"),
    [
        ("local-only", 3, 4, 8),  # 3 rounds of 4 steps, then 8
        ("feddpa", 3, 4, 8),  # 3 rounds of 1 + 3 steps, then 8
        ("fedavg", 5, 4, 24),  # nothing after the last round: 20 / 4 rounds, and the key that has no effect is left out
        ("pfedsam", 5, 4, 24),  # nor after coupled phases
        ("fedavg-finetuned", 4, 4, 24),  # 4 rounds, and fine-tuning of a third of 5, rounded down
        ("centralized", 3, 12, 24),  # the steps of three sites
        ("centralized-finetuned", 3, 12, 8),  # the pool does those of three sites, then each site 8 alone
    ],
)
def test_equal_steps_by_hand(method: str, rounds: int, per_round: int, final: int) -> None:
    options = run_options(suite(), Entry(method, method), 0, SITES)
    training = options.training
    assert (training.rounds, training.steps_per_round, training.final_steps) == (rounds, per_round, final)
    assert local_steps(options) == (60 if method.startswith("centralized") else 20)


def test_variants_make_the_steps_of_the_others() -> None:
    changes = {"training.phases": "decoupled", "training.final_steps": 0, "training.steps_per_round": 10}
    changed = Entry("x", "pfedsam", changes)
    options = run_options(suite(), changed, 0, SITES)
    assert (options.training.rounds, local_steps(options)) == (2, 20)


def test_more_steps_for_what_costs_less() -> None:
    longer = run_options(suite(), Entry("x", "fedavg", steps=1.4), 0, SITES)
    assert (longer.training.rounds, local_steps(longer)) == (7, 28)
    with pytest.raises(OptionError, match="no whole number of rounds gives 26 steps"):
        run_options(suite(), Entry("x", "fedavg", steps=1.3), 0, SITES)


def test_steps_that_cannot_be_made_are_refused() -> None:
    options = run_options(suite(), Entry("fedavg", "fedavg"), 0, SITES)
    with pytest.raises(OptionError, match="no whole number of rounds gives 21 steps"):
        equal_steps(options, 21)


def test_overrides_reach_every_entry_and_changes_come_last() -> None:
    entry = Entry("x", "pfedsam", {"model.experts": None, "training.phases": "joint", "training.frozen_local": True})
    options = run_options(suite(), entry, 7, SITES, ["data.split.max_train_cases=4", "training.frozen_local=false"])
    assert options.data.split.max_train_cases == 4
    assert options.training.frozen_local
    assert options.model.experts is None
    assert (options.name, options.seed, options.method, list(options.data.sites)) == ("mine", 7, "pfedsam", list(SITES))


def test_what_a_method_has_no_use_for_is_left_out_and_what_nobody_uses_is_refused() -> None:
    entries = [Entry("fedavg", "fedavg"), Entry("fedprox", "fedprox")]
    overrides = ["method_options.fedprox.mu=0.5"]
    refuse_idle_overrides(suite(), entries, SITES, overrides)
    first, second = (run_options(suite(), entry, 0, SITES, overrides) for entry in entries)
    assert "method_options" not in first.model_fields_set or not unused(first)
    assert build_method(second).phases(second.training)[0].proximal == 0.5
    with pytest.raises(
        OptionError, match=r"no method of the comparison uses:\n  training\.order: used by pfedsam with"
    ):
        refuse_idle_overrides(suite(), entries, SITES, [*overrides, "training.order=local-first"])
    with pytest.raises(OptionError, match=r"The variant x sets options without effect: training\.order"):
        run_options(suite(), Entry("x", "fedavg", {"training.order": "local-first"}), 0, SITES)


@pytest.mark.parametrize(
    ("key", "value", "instead"),
    [
        ("seed", 7, "--seeds"),
        ("method", "local-only", "--methods"),
        ("data.sites", {"a": "elsewhere"}, "--data"),
        ("runtime.workers", 2, "--workers"),
        ("runtime", {"threads": 2}, "--workers"),
    ],
)
def test_what_the_benchmark_sets_for_each_run_is_refused_wherever_it_is_given(
    key: str, value: object, instead: str
) -> None:
    plain, changed = Entry("fedavg", "fedavg"), Entry("other", "fedavg", {key: value})
    options = copy.deepcopy(OPTIONS)
    put(options, key, value)
    for given, entry, overrides, place in (
        (suite(options=options), plain, [], "^The suite mine sets under `options`"),
        (suite(), plain, [f"{key}={json.dumps(value)}"], "^--set sets"),
        (suite(), changed, [], "^The variant other sets"),
    ):
        with pytest.raises(OptionError, match=f"{place} what a benchmark sets for each run.*{key}.*{instead}"):
            run_options(given, entry, 0, SITES, overrides)
        with pytest.raises(OptionError, match=place):
            refuse_idle_overrides(given, [entry], SITES, overrides)


def test_the_rounds_of_a_variant_follow_from_its_steps() -> None:
    with pytest.raises(OptionError, match=r"The variant x sets .*training\.rounds \(.*; give `steps`"):
        run_options(suite(), Entry("x", "fedavg", {"training.rounds": 9}), 0, SITES)
    assert run_options(suite(), Entry("x", "fedavg"), 0, SITES, ["training.rounds=9"]).training.rounds == 9


def test_a_last_phase_that_nobody_set_takes_a_quarter_of_the_steps_at_most() -> None:
    """60 rounds of 4 steps are 240, of which local-only does 24 in its last phase; of 10 rounds it is 8 of 40."""
    for rounds, last in ((60, 24), (10, 8), (1, 0)):
        one = suite(options={"data": {"classes": {"n": [1]}}, "training": {"rounds": rounds}})
        alone, averaged = (run_options(one, Entry(name, name), 0, SITES) for name in ("local-only", "fedavg"))
        assert averaged.training.rounds == rounds
        assert sum(phase.steps for phase in build_method(alone).final(alone.training)) == last
        assert local_steps(alone) == local_steps(averaged) == 4 * rounds


def test_entries() -> None:
    one = suite(methods=["fedavg"], variants={"mine-only": {"method": "fedavg", "training.batch_size": 2}})
    assert [e.label for e in choose_entries(one, None, [])] == ["fedavg"]
    assert [e.label for e in choose_entries(suite(), None, [])] == list(METHODS)
    longer = suite(variants={"long": {"method": "fedavg", "steps": 1.5, "training.batch_size": 2}})
    assert choose_entries(longer, None, ["long"])[1] == Entry("long", "fedavg", {"training.batch_size": 2}, steps=1.5)
    chosen = choose_entries(one, None, ["mine-only"])
    assert chosen == [Entry("pfedsam", "pfedsam"), Entry("mine-only", "fedavg", {"training.batch_size": 2})]
    assert not chosen[0].pooled
    assert Entry("centralized", "centralized").pooled
    with pytest.raises(OptionError, match="no variant 'other'"):
        choose_entries(one, None, ["other"])


@pytest.mark.parametrize("steps", ["nan", "much", "inf", "-1", "0", "true", "null", "[1]", "1001", "1e400", "1:30"])
def test_steps_that_are_no_factor_are_refused(tmp_path: Path, steps: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"name: mine\noptions: {{}}\nvariants: {{v: {{method: fedavg, steps: {steps}}}}}\n")
    with pytest.raises(OptionError, match=r"The variant v has the `steps` .* give a number above 0 and at most 1000"):
        choose_entries(load_suite(str(path)), None, ["v"])


@pytest.mark.parametrize("name", ["..", "a/b", "", ".hidden"])
def test_a_name_that_cannot_name_a_folder_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"name: mine\noptions: {{}}\nvariants: {{{name!r}: {{method: fedavg}}}}\n")
    with pytest.raises(OptionError, match=r"variants: the name '.*' is not allowed: use at most 100 letters"):
        load_suite(str(path))
    path.write_text(f"name: {name!r}\noptions: {{}}\n")
    with pytest.raises(OptionError, match="name: use at most 100 letters"):
        load_suite(str(path))


@pytest.mark.parametrize(("steps", "factor"), [("1.25", 1.25), ("2", 2.0), ("1e-1", 0.1)])
def test_steps_are_a_number_in_any_form(tmp_path: Path, steps: str, factor: float) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"name: mine\noptions: {{}}\nvariants: {{v: {{method: fedavg, steps: {steps}}}}}\n")
    assert choose_entries(load_suite(str(path)), None, ["v"])[1].steps == factor


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"name": "mine", "options": OPTIONS, "variants": {"v": {"training.batch_size": 2}}}))
    loaded = load_suite(str(path))
    assert loaded.seeds == [0, 1, 2]
    assert "no-experts" in loaded.variants  # the shipped ablations
    assert loaded.variants["v"] == {"training.batch_size": 2}


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="shipped are cardiac, disc, nuclei, retina"):
        load_suite("nuclie")
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\noptions: {}\nmetods: [x]\n")
    with pytest.raises(OptionError, match="did you mean 'methods'"):
        load_suite(str(path))
    path.write_text("name: mine\noptions: {}\nmethods: [fedx]\n")
    with pytest.raises(OptionError, match="no method 'fedx'"):
        load_suite(str(path))
    wrong = suite(options={**OPTIONS, "trainig": {}})
    with pytest.raises(OptionError, match="did you mean 'training'"):
        run_options(wrong, Entry("fedavg", "fedavg"), 0, SITES)


def test_sites_are_the_folders(tmp_path: Path) -> None:
    for name in ("b", "a", ".hidden"):
        (tmp_path / name).mkdir()
    assert list(site_folders(suite(), tmp_path)) == ["a", "b"]
    assert list(site_folders(suite(sites=["b"]), tmp_path)) == ["b"]
    with pytest.raises(DataError, match=r"no folder for the site\(s\) c"):
        site_folders(suite(sites=["b", "c"]), tmp_path)
    with pytest.raises(DataError, match="no data folder"):
        site_folders(suite(), tmp_path / "none")


def test_options_of_a_run_stay_what_they_are() -> None:
    """A suite adds nothing that `pfedsam run` would not have."""
    options = run_options(suite(), Entry("feddpa", "feddpa"), 0, SITES)
    plain = RunOptions.model_validate(
        {
            **OPTIONS,
            "training": {
                "rounds": 3,
                "steps_per_round": 4,
                "final_steps": 8,
            },  # 5 rounds of 4 steps, less the last phase
            "name": "mine",
            "method": "feddpa",
            "data": {**OPTIONS["data"], "sites": {k: str(v) for k, v in SITES.items()}},
        }
    )
    assert options == plain
