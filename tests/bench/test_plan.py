"""A benchmark over the toy federation: it can be resumed, its comparisons are paired, and partial results are written."""

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pfedsam.bench import plan as bench
from pfedsam.bench.plan import Outcome, Plan, Step, run_plan, write_results
from pfedsam.core import tensors
from pfedsam.core.errors import DataError, PfedsamError, RunError
from pfedsam.data.manifest import Case
from pfedsam.engine import inputs
from pfedsam.engine.server_files import SERVER
from pfedsam.experiment.build import build_sites
from pfedsam.experiment.options import RunOptions
from pfedsam.experiment.suite import Entry, Suite, choose_entries
from pfedsam.federation.methods import METHODS
from pfedsam.model.backbones.compact import compact_config, new_network

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


@pytest.fixture
def own(plan: Plan, toy_folder: Path, tmp_path: Path) -> Plan:
    """A comparison of one finished run of fedavg with sites and a backbone of its own, which a test may change."""
    for name in ("sites", "backbone"):
        shutil.copytree(toy_folder / name, tmp_path / name)
    backbone = [f"model.backbone={tmp_path / 'backbone'}"]
    own = replace(plan, entries=plan.entries[1:2], seeds=[0], data=tmp_path / "sites", overrides=backbone)
    run_plan(own, lambda _: None, lambda _: None)
    return own


def refusal(plan: Plan, kind: type[PfedsamError]) -> str:
    """The message with which a further bench of the same runs is refused."""
    with pytest.raises(kind) as refused:
        run_plan(plan, lambda _: None, lambda _: None)
    return str(refused.value)


def without_key(plan: Plan, *keys: str, **changes: str) -> None:
    """Store the state of the finished run as an earlier version did, without these metadata and with others changed."""
    path = plan.folder(plan.entries[0], 0) / SERVER
    stored, described = tensors.load(path)
    tensors.save(path, stored, {key: value for key, value in (described | changes).items() if key not in keys})


@pytest.mark.slow
def test_a_finished_run_whose_report_could_not_be_written_gets_it(own: Plan) -> None:
    report = own.folder(own.entries[0], 0) / "report.html"
    before = report.read_bytes()
    report.unlink()  # as if the disk had been full
    assert list(run_plan(own, lambda _: None, lambda _: None).runs) == ["fedavg"]
    assert report.read_bytes() == before


@pytest.mark.slow
def test_a_finished_run_of_other_data_is_not_counted(own: Plan) -> None:
    site = next(iter(own.sites.values()))
    masks = sorted((site / "masks").iterdir())
    first, second = (mask.read_bytes() for mask in masks[:2])
    masks[0].write_bytes(second)
    message = refusal(own, DataError)
    assert message.startswith(f"fedavg, seed 0: site {site.name!r}, case {masks[0].stem!r}: image or mask was changed")
    assert "put the earlier files back, or start a new run in another folder" in message
    masks[0].write_bytes(first)
    assert list(run_plan(own, lambda _: None, lambda _: None).runs) == ["fedavg"]

    for folder, suffix in (("images", ".png"), ("masks", ".png")):
        shutil.copy(site / folder / f"{masks[0].stem}{suffix}", site / folder / f"zz-new{suffix}")
    assert "in another part of the split now" in refusal(own, DataError)


@pytest.mark.slow
def test_a_finished_run_of_an_earlier_version_without_digests_is_counted(own: Plan) -> None:
    for name, site in own.sites.items():
        path = own.folder(own.entries[0], 0) / "sites" / name / "split.json"
        content = json.loads(path.read_text())
        del content["digests"]
        path.write_text(json.dumps(content))
        masks = sorted((site / "masks").iterdir())
        masks[0].write_bytes(masks[1].read_bytes())
    assert list(run_plan(own, lambda _: None, lambda _: None).runs) == ["fedavg"]


@pytest.mark.slow
def test_a_finished_run_with_other_weights_of_the_backbone_is_not_counted(
    own: Plan, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    new_network(compact_config("sam-toy"), torch.Generator().manual_seed(99)).save_pretrained(tmp_path / "backbone")
    message = refusal(own, RunError)
    assert message.startswith("fedavg, seed 0: The backbone of the run in 'fedavg' has other weights now")
    assert "Put them back, or start a run in another folder." in message
    without_key(own, "backbone")
    assert list(run_plan(own, lambda _: None, lambda _: None).runs) == ["fedavg"]
    assert "it is not checked that the backbone still has the weights" in caplog.text


@pytest.mark.slow
def test_a_finished_run_counts_although_this_version_has_further_options(
    own: Plan, caplog: pytest.LogCaptureFixture
) -> None:
    without_key(own, study="0" * 16)  # the identity includes all options
    assert list(run_plan(own, lambda _: None, lambda _: None).runs) == ["fedavg"]
    assert caplog.text == ""


@pytest.mark.slow
def test_the_files_and_the_backbone_are_read_once_for_all_finished_runs(
    own: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = replace(own, seeds=[0, 1])
    run_plan(two, lambda _: None, lambda _: None)
    real, loaded, read = inputs.load_backbone, [], Counter[Path]()

    def digest(case: Case) -> str:
        read[case.image] += 1
        return digest_of(case)

    digest_of = inputs.file_digest
    monkeypatch.setattr(inputs, "file_digest", digest)
    monkeypatch.setattr(inputs, "load_backbone", lambda *a, **k: (loaded.append(a), real(*a, **k))[1])
    run_plan(two, lambda _: None, lambda _: None)
    assert set(read.values()) == {1}
    assert len(loaded) == 1


@pytest.mark.parametrize(
    "content", ['[{"seconds": 1.0', '[{"seconds": 1.0}]', "[1]", "{}x", '{"seconds": 1}', "7", "\xff"]
)
def test_a_damaged_file_of_costs_leaves_the_cost_unknown(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: str
) -> None:
    path = tmp_path / "pfedsam.json"
    path.write_text(content, "latin-1")
    with bench._measured(path):
        pass
    assert "pfedsam.json is damaged: the costs of this run are unknown" in caplog.text
    assert bench._read_cost(path) == bench.Cost(None, None)
    assert json.loads(path.read_text())[0] is None  # and the file can be read again
