"""A bench over the toy federation: resumable, paired, and complete from partial results."""

import json
from pathlib import Path

import pytest

from pfedsam.bench import plan as bench
from pfedsam.bench.plan import Outcome, Plan, Step, run_plan, write_results
from pfedsam.core.errors import DataError, RunError
from pfedsam.experiment.build import build_sites
from pfedsam.experiment.options import RunOptions
from pfedsam.experiment.suite import Entry, Suite, choose_entries
from pfedsam.federation.methods import METHODS

VARIANTS = {"no-experts": {"method": "pfedsam", "model.experts": None}}


@pytest.fixture
def plan(toy_folder: Path, toy_options: RunOptions, tmp_path: Path) -> Plan:
    content = toy_options.model_dump(mode="json", exclude={"seed", "method", "runtime"})
    del content["data"]["sites"]
    content["training"] |= {"rounds": 2, "steps_per_round": 2, "final_steps": 2, "shared_warmup_rounds": 0}
    suite = Suite.model_validate({"name": "toy", "seeds": [0, 1], "options": content, "variants": VARIANTS})
    entries = choose_entries(suite, ["pfedsam", "fedavg"], ["no-experts"])
    return Plan(suite, entries, suite.seeds, toy_folder / "sites", tmp_path / "bench", workers=1)


def interrupt_after(number: int) -> "object":
    def tell(step: Step) -> None:
        if step.event is None and step.done == number:
            raise KeyboardInterrupt

    return tell


@pytest.mark.slow
def test_a_bench_goes_on_where_it_stopped(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_plan(plan, interrupt_after(2), lambda _: None)
    seen: list[Outcome] = []
    steps: list[Step] = []
    outcome = run_plan(plan, steps.append, seen.append)
    assert {label: sorted(found) for label, found in outcome.runs.items()} == {
        "pfedsam": [0, 1],
        "fedavg": [0, 1],
        "no-experts": [0, 1],
    }
    assert [step.done for step in steps if step.event is None] == [3, 4, 5, 6]
    assert {run.summary.steps for found in outcome.runs.values() for run in found.values()} == {4}
    assert all(run.cost.seconds > 0 and run.cost.cpu_seconds > 0 for run in outcome.runs["fedavg"].values())

    def never(*_: object, **__: object) -> None:
        raise AssertionError("a finished run was started again")

    monkeypatch.setattr(bench, "run", never)
    again = run_plan(plan, lambda _: None, lambda _: None)
    assert again.runs.keys() == outcome.runs.keys()

    figures = write_results(plan, again, plan.out, "accuracy-toy", "c")
    content = json.loads((plan.out / "accuracy-toy.json").read_text())
    assert content["not_run"] == {}
    assert figures["dice_mean.pfedsam"] is not None
    assert figures["validation_dice_mean.fedavg"] is not None
    assert content["settings"]["variants"] == {"no-experts": {"model.experts": None}}
    assert str(plan.data) not in json.dumps(content)


def test_each_seed_has_its_own_split_and_methods_share_it(plan: Plan) -> None:
    parts = {}
    for label in ("pfedsam", "fedavg"):
        for seed in (0, 1):
            entry = next(one for one in plan.entries if one.label == label)
            sites = build_sites(plan.options(entry, seed))
            parts[label, seed] = {name: [c.id for c in site.of("test")] for name, site in sites.items()}
    assert parts["pfedsam", 0] == parts["fedavg", 0]
    assert parts["pfedsam", 0] != parts["pfedsam", 1]


@pytest.mark.slow
def test_a_failing_run_is_noted_and_the_others_go_on(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    real = bench.run

    def sometimes(options: RunOptions, *rest: object, **more: object) -> object:
        if options.method == "pfedsam":
            raise RunError("no update was accepted")
        return real(options, *rest, **more)

    monkeypatch.setattr(bench, "run", sometimes)
    outcome = run_plan(
        Plan(plan.suite, plan.entries[:2], [0], plan.data, plan.out, workers=1), lambda _: None, lambda _: None
    )
    assert outcome.failed == {"pfedsam, seed 0": "no update was accepted"}
    assert list(outcome.runs) == ["fedavg"]


def test_the_text_of_a_failure_which_may_name_a_case_is_not_published(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise DataError("site a, case doe-jane: the mask is empty")

    monkeypatch.setattr(bench, "run", refuse)
    one = Plan(plan.suite, plan.entries[:1], [0], plan.data, plan.out, workers=1)
    outcome = run_plan(one, lambda _: None, lambda _: None)
    assert outcome.failed == {"pfedsam, seed 0": "site a, case doe-jane: the mask is empty"}
    write_results(one, outcome, plan.out, "x", "c")
    content, text = (plan.out / "x.json").read_text(), (plan.out / "x.md").read_text()
    assert json.loads(content)["failed"] == {"pfedsam, seed 0": "DataError"}
    assert "**Failed:** pfedsam, seed 0: DataError" in text
    assert "doe-jane" not in content + text


def test_runs_whose_labels_differ_after_a_dot_have_costs_of_their_own(plan: Plan) -> None:
    files = {bench._cost_file(plan, Entry(label, "pfedsam"), 0) for label in ("lr-0.001", "lr-0.004", "plain")}
    folder = plan.out / "costs" / "seed0"
    assert files == {folder / "lr-0.001.json", folder / "lr-0.004.json", folder / "plain.json"}


def test_a_second_bench_in_the_same_folder_is_refused(plan: Plan) -> None:
    def second(_: Outcome) -> None:
        with pytest.raises(RunError, match="Another process works"):
            run_plan(plan, lambda _: None, lambda _: None)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_plan(plan, lambda _: None, second)


@pytest.mark.slow
def test_a_run_of_another_configuration_is_never_counted(plan: Plan) -> None:
    short = Plan(plan.suite, plan.entries[1:2], [0], plan.data, plan.out, workers=1)
    run_plan(short, lambda _: None, lambda _: None)
    other = Plan(plan.suite, plan.entries[1:2], [0], plan.data, plan.out, ["training.batch_size=1"], workers=1)
    with pytest.raises(RunError, match=r"training\.batch_size"):
        run_plan(other, lambda _: None, lambda _: None)


@pytest.mark.slow
def test_a_killed_session_leaves_the_cost_unknown(plan: Plan) -> None:
    short = Plan(plan.suite, plan.entries[1:2], [0], plan.data, plan.out, workers=1)

    def stop(step: Step) -> None:
        if step.event and step.event.stage == "train" and step.event.done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_plan(short, stop, lambda _: None)
    outcome = run_plan(short, lambda _: None, lambda _: None)
    assert outcome.runs["fedavg"][0].cost.seconds is None
    assert outcome.runs["fedavg"][0].summary.steps == 4


def test_pooled_methods_are_told_from_the_registry(plan: Plan) -> None:
    entries = choose_entries(plan.suite, list(METHODS), [])
    assert {entry.label for entry in entries if entry.pooled} == {m.name for m in METHODS.values() if m.roster.pool}


def test_a_folder_with_other_things_is_refused_and_one_of_a_run_that_never_began_is_not(plan: Plan) -> None:
    begun, foreign = (plan.folder(entry, 0) for entry in plan.entries[:2])
    (begun / "sites" / "a").mkdir(parents=True)
    foreign.mkdir(parents=True)
    (foreign / "thesis.txt").write_text("mine")
    with pytest.raises(RunError, match=f"The folder '{foreign.name}' is not empty"):
        run_plan(plan, lambda _: None, lambda _: None)
    assert (foreign / "thesis.txt").exists()
