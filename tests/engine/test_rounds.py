"""A study over several machines gives the bits of a local run, and its rounds survive failures of sites and networks."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pfedsam.core import tensors
from pfedsam.core.errors import DataError, OptionError, QuorumError, RunError
from pfedsam.core.tensors import digest
from pfedsam.data.tiling import TilingOptions
from pfedsam.engine import run_end
from pfedsam.engine.opened import open_run
from pfedsam.engine.round_policy import RoundPolicy
from pfedsam.engine.rounds import StudyRun
from pfedsam.engine.run import run
from pfedsam.engine.server_files import SERVER
from pfedsam.engine.study_folder import StudyFolder, create_study
from pfedsam.engine.transport import Answers
from pfedsam.experiment.options import RunOptions
from pfedsam.federation.ledger import Ledger
from pfedsam.federation.manifest import StudyManifest, read_manifest
from pfedsam.federation.messages import Reply, Request, reply_from_wire, reply_to_wire, request_from_wire
from pfedsam.federation.site_policy import SitePolicy
from pfedsam.federation.site_store import SiteStore
from pfedsam.federation.update import Update, decode, encode
from pfedsam.report.records import read_records
from pfedsam.report.summary_file import read_summary


@pytest.fixture
def options(toy_options: RunOptions) -> RunOptions:
    training = toy_options.training.model_copy(update={"rounds": 3})
    return toy_options.model_copy(update={"training": training})


@pytest.fixture
def study(tmp_path: Path, options: RunOptions) -> Path:
    return create_study(options, tmp_path / "studies", RoundPolicy(quorum=2))


def rows(study: Path, kind: str) -> list[dict]:
    return [record for record in read_records(study / "records.jsonl") if record["kind"] == kind]


def local_state(sites, name: str):
    (folder,) = (sites.folders[name] / "studies").iterdir()
    return SiteStore(folder / "state").load()


def run_there_and_here(tmp_path: Path, options: RunOptions, make_sites) -> tuple[Path, Any]:
    """Compare the shared parameters of a study over several machines with those of the local run in `here`; return study and sites."""
    study = create_study(options, tmp_path / "studies", RoundPolicy())
    sites = make_sites(options, read_manifest(study / "manifest.json"))
    assert StudyRun(study, sites).run() == "finished"
    run(options, tmp_path / "here")
    assert digest(tensors.load(study / SERVER)[0]) == digest(tensors.load(tmp_path / "here" / SERVER)[0])
    return study, sites


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "codec"),
    [
        ("pfedsam", "fp32"),
        ("pfedsam", "int4"),
        ("fedprox", "int8"),
        ("local-only", "fp32"),
        ("fedavg-finetuned", "fp32"),
    ],
)
def test_shared_parameters_local_states_records_and_scores_are_those_of_the_embedded_runtime(
    tmp_path: Path, options: RunOptions, make_sites, method: str, codec: str
) -> None:
    communication = options.communication.model_copy(update={"codec": codec})
    options = options.model_copy(update={"method": method, "communication": communication})
    study, sites = run_there_and_here(tmp_path, options, make_sites)
    for name in options.data.sites:
        here, there = SiteStore(tmp_path / "here" / "sites" / name / "state").load(), local_state(sites, name)
        assert digest(here.local) == digest(there.local)
        assert digest(here.shared) == digest(there.shared)
        assert digest(here.optimizer) == digest(there.optimizer)
    untimed = [
        [r for r in read_records(folder / "records.jsonl") if r["kind"] != "timing"]
        for folder in (study, tmp_path / "here")
    ]
    assert untimed[0] == untimed[1]
    one, other = read_summary(study / "summary.json"), read_summary(tmp_path / "here" / "summary.json")
    # A site elsewhere says on how many cases it trains, and nothing of its validation part.
    scored = [
        [(entry.personal, entry.shared) for entry in (*summary.sites.values(), summary.mean)]
        for summary in (one, other)
    ]
    assert scored[0] == scored[1]
    assert (list(one.sites), one.communication) == (list(other.sites), other.communication)


@pytest.mark.slow
def test_a_study_that_ends_early_has_the_bits_of_the_run_on_one_machine(
    tmp_path: Path, options: RunOptions, make_sites
) -> None:
    content = options.model_dump(mode="json", exclude_unset=True)
    content["training"] |= {"rounds": 20, "patience": 1, "optimizer": {"learning_rate": 1e-9}}
    study, sites = run_there_and_here(tmp_path, RunOptions.model_validate(content), make_sites)
    summaries = [read_summary(folder / "summary.json") for folder in (study, tmp_path / "here")]
    assert summaries[0].rounds == summaries[1].rounds < 20
    assert StudyFolder(study).read_status()["rounds"] == summaries[0].rounds
    for name in content["data"]["sites"]:
        here, there = SiteStore(tmp_path / "here" / "sites" / name / "state").load(), local_state(sites, name)
        assert digest(here.local) == digest(there.local)


def test_a_manifest_does_not_say_where_the_coordinator_keeps_its_backbone(study: Path, options: RunOptions) -> None:
    manifest = read_manifest(study / "manifest.json")
    assert Path(options.model.backbone).is_absolute()
    assert manifest.configuration["model"]["backbone"] == Path(options.model.backbone).name
    assert str(Path(options.model.backbone).parent) not in (study / "manifest.json").read_text()


@pytest.mark.slow
def test_sites_that_train_on_tiles_weigh_by_their_cases(tmp_path: Path, options: RunOptions, make_sites) -> None:
    training = options.training.model_copy(update={"rounds": 1, "shared_warmup_rounds": 0})
    data = options.data.model_copy(update={"tiling": TilingOptions(side=48)})
    run_there_and_here(tmp_path, options.model_copy(update={"data": data, "training": training}), make_sites)


@pytest.mark.slow
def test_a_site_predicts_with_what_it_ended_a_study_with(tmp_path: Path, options: RunOptions, make_sites) -> None:
    study, sites = run_there_and_here(tmp_path, options, make_sites)
    (name, data), *_ = options.data.sites.items()
    image = sorted((data / "images").iterdir())[0]
    expected = open_run(tmp_path / "here").site(name).predict(image)
    for asked in (None, study.name):
        assert (open_run(sites.folders[name], study=asked).site(name).predict(image) == expected).all()
    limited = open_run(sites.folders[name], ["data.image.max_megapixels=0.001"])
    with pytest.raises(DataError, match="max_megapixels"):
        limited.site(name, "shared").predict(image)
    with pytest.raises(OptionError, match="max_megapixel"):
        open_run(sites.folders[name], ["data.image.max_megapixel=1"])
    with pytest.raises(RunError, match=f"no study other has ended.*{study.name}"):
        open_run(sites.folders[name], study="other")
    shutil.rmtree(sites.folders[name] / "studies")
    with pytest.raises(RunError, match="ended here: none yet"):
        open_run(sites.folders[name])


@pytest.mark.slow
def test_a_coordinator_that_dies_before_it_commits_repeats_the_round_to_the_same_bits(
    tmp_path: Path, options: RunOptions, make_sites, study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sites = make_sites(options, read_manifest(study / "manifest.json"))
    save = StudyFolder.save_state

    def die(self: StudyFolder, state, manifest, *more) -> None:
        if state.round == 2:
            monkeypatch.setattr(StudyFolder, "save_state", save)
            raise KeyboardInterrupt
        save(self, state, manifest, *more)

    monkeypatch.setattr(StudyFolder, "save_state", die)
    with pytest.raises(KeyboardInterrupt):
        StudyRun(study, sites).run()
    assert StudyFolder(study).load_state(read_manifest(study / "manifest.json")).round == 1
    assert StudyRun(study, sites).run() == "finished"
    run(options, tmp_path / "here")
    assert digest(tensors.load(study / SERVER)[0]) == digest(tensors.load(tmp_path / "here" / SERVER)[0])
    asked = [round_ for task, round_, _ in sites.asked if task == "train"]
    assert asked == [0, 1, 1, 2]


@pytest.mark.slow
def test_a_site_joins_leaves_and_returns_with_its_own_experts(
    tmp_path: Path, toy_options: RunOptions, make_sites
) -> None:
    training = toy_options.training.model_copy(update={"rounds": 8, "final_steps": 0})
    evaluation = toy_options.evaluation.model_copy(update={"validate_every": 0})
    options = toy_options.model_copy(update={"training": training, "evaluation": evaluation})
    study = create_study(options, tmp_path / "studies", RoundPolicy(quorum=2))
    sites = make_sites(options, read_manifest(study / "manifest.json"))
    late = list(options.data.sites)[2]
    seen: dict[int, str] = {}

    def away(site: str, task: str, round_: int) -> bool:
        return site == late and task in ("join", "train") and (round_ < 3 or 5 <= round_ < 7)

    def change(site: str, task: str, round_: int, wire: dict[str, bytes]) -> dict[str, bytes]:
        if site == late and task == "train":
            seen[round_] = digest(local_state(sites, late).local)
        return wire

    sites.away, sites.change = away, change
    assert StudyRun(study, sites).run() == "finished"
    accepted = {row["round"]: row["accepted"] for row in rows(study, "aggregate")}
    assert [late in accepted[r] for r in range(8)] == [False] * 3 + [True] * 2 + [False] * 2 + [True]
    missing = {row["round"]: row["sites"] for row in rows(study, "absent")}
    assert set(missing) == {5, 6}
    assert all(late in found for found in missing.values())
    # Its state of round 5 was taken up in round 7: the next generation follows the last one, not a new beginning.
    assert sorted(seen) == [3, 4, 7]
    store = SiteStore(next((sites.folders[late] / "studies").iterdir()) / "state")
    assert digest(store.load(round=5).local) == seen[4]


class ScriptedSites:
    """Sites that do not train: each adds its own number to the shared parameters. Tests can change the messages."""

    def __init__(self, manifest: StudyManifest, names: list[str]) -> None:
        self.manifest, self.names = manifest, names
        self.away: Callable[[str, str, int], bool] = lambda site, task, round_: False
        self.change: Callable[[str, str, int, dict], dict] = lambda site, task, round_, wire: wire
        self.late: dict[str, int] = {}
        self.step: Callable[[int], float] = lambda place: 0.001 * place
        self.known_away = False

    def connected(self) -> list[str]:
        return self.names

    def needs_new_job(self) -> bool:
        return False

    def ask(self, request, task, sites, deadline_s) -> Answers:
        parsed = request_from_wire(request)
        there = [site for site in sites if not self.away(site, task, parsed.round)]
        wires = {s: self.change(s, task, parsed.round, reply_to_wire(self._reply(s, parsed))) for s in there}
        late, self.late = self.late, {}
        missing = {site: f"no reply within {deadline_s} s" for site in sites if site not in there}
        return Answers(wires, missing, late, () if self.known_away else tuple(missing))

    def _reply(self, site: str, request: Request) -> Reply:
        place, update = self.names.index(site) + 1, b""
        numbers: dict[str, float] = {}
        if request.task == "join":
            numbers = {"cases": 10 * place}
        elif request.task == "test":
            whole = {"cases": place, "patients": place, "unit": 1, "volume_unit": 1}
            counts = ("undefined_", "present", "missed", "extra", "absent", "not_annotated")
            for name in self.manifest.scalar_metrics["test"]:
                last = name.split(".")[-1]
                numbers[name] = whole.get(last, 0 if last.startswith(counts) else 0.5)
        elif request.task == "train":
            shared, _ = tensors.from_bytes(request.shared, max_bytes=10**8)
            moved = {name: value + self.step(place) for name, value in shared.items()}
            update = encode(Update(site, request.round, moved, 10 * place))
        return Reply(request.task, request.study, request.round, numbers, update)


@pytest.fixture
def with_page() -> None:
    """The report is written, too."""


@pytest.fixture
def scripted(
    options: RunOptions, study: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> ScriptedSites:
    if "with_page" not in request.fixturenames:
        monkeypatch.setattr(run_end, "write_page", lambda folder: folder)  # drawing takes longer than the rest
    return ScriptedSites(read_manifest(study / "manifest.json"), list(options.data.sites))


def test_a_round_is_the_mean_weighted_by_the_registered_cases(study: Path, scripted: ScriptedSites) -> None:
    start = StudyFolder(study).load_state(scripted.manifest).shared
    StudyRun(study, scripted).run()
    end = StudyFolder(study).load_state(scripted.manifest).shared
    mean = 3 * 0.001 * (10 * 1 + 20 * 2 + 30 * 3) / 60
    for name, value in start.items():
        assert torch.allclose(end[name], value + mean, atol=1e-6), name


def test_weights_sum_to_1_in_every_round_whoever_is_there(
    tmp_path: Path, options: RunOptions, scripted: ScriptedSites, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row 21 of docs/reliability.md. All sites change all values by the same amount, so that the mean changes by the sum of the weights."""
    training = options.training.model_copy(update={"rounds": 9})
    study = create_study(options.model_copy(update={"training": training}), tmp_path / "nine", RoundPolicy(quorum=2))
    scripted.manifest, late = read_manifest(study / "manifest.json"), scripted.names[2]
    scripted.step, scripted.known_away = lambda place: 0.001, True
    scripted.away = lambda site, task, round_: site == late and (round_ < 3 or 5 <= round_ < 7)
    moved: list[float] = []
    save = StudyFolder.save_state

    def measure(self: StudyFolder, state, manifest, *more) -> None:
        before = self.load_state(manifest).shared
        moved.append(max(float((value - before[name]).max()) for name, value in state.shared.items()))
        save(self, state, manifest, *more)

    monkeypatch.setattr(StudyFolder, "save_state", measure)
    StudyRun(study, scripted).run()
    assert moved == pytest.approx([0.001] * 9, rel=1e-3)
    accepted = [late in row["accepted"] for row in rows(study, "aggregate")]
    assert accepted == [False] * 3 + [True] * 2 + [False] * 2 + [True] * 2


@pytest.mark.parametrize(("known_away", "asked"), [(True, [0, 1, 2, 3, 4, 5]), (False, [0, 2, 5])])
def test_a_site_for_which_rounds_waited_is_asked_less_often_and_one_that_is_known_to_be_away_always(
    tmp_path: Path, options: RunOptions, scripted: ScriptedSites, known_away: bool, asked: list[int]
) -> None:
    training = options.training.model_copy(update={"rounds": 6})
    study = create_study(options.model_copy(update={"training": training}), tmp_path / "six", RoundPolicy(quorum=2))
    scripted.manifest, scripted.known_away = read_manifest(study / "manifest.json"), known_away
    away = scripted.names[2]
    scripted.away = lambda site, task, round_: site == away and task == "train"
    StudyRun(study, scripted).run()
    reasons = {row["round"]: row["sites"][away] for row in rows(study, "absent") if row["task"] == "train"}
    assert sorted(reasons) == [0, 1, 2, 3, 4, 5]
    assert [round_ for round_, reason in reasons.items() if not reason.startswith("not asked")] == asked


def test_every_job_commits_a_round_before_it_ends_for_a_site_that_waits(study: Path, scripted: ScriptedSites) -> None:
    """Otherwise a site that leaves and returns during the requests to join or for summaries would end every job before its first round."""
    scripted.needs_new_job = lambda: True
    assert [StudyRun(study, scripted).run() for _ in range(3)] == ["again", "again", "finished"]
    assert [row["round"] for row in rows(study, "aggregate")] == [0, 1, 2]


def waits(tmp_path: Path, options: RunOptions, scripted: ScriptedSites, task: str, rounds: int = 6) -> list[int]:
    """The rounds in which a study waits until the deadline for a site that is connected and replies to all tasks but this one."""
    training = options.training.model_copy(update={"rounds": rounds})
    options = options.model_copy(update={"training": training})
    study = create_study(options, tmp_path / "more", RoundPolicy(quorum=2))
    scripted.manifest, silent = read_manifest(study / "manifest.json"), scripted.names[2]
    scripted.away = lambda site, asked, round_: site == silent and asked == task
    StudyRun(study, scripted).run()
    absent = [row for row in rows(study, "absent") if row["task"] == task]
    assert [row["round"] for row in absent] == list(range(absent[-1]["round"] + 1))  # each round once, with a reason
    return [row["round"] for row in absent if not row["sites"][silent].startswith("not asked")]


def test_rounds_wait_less_and_less_often_for_a_site_that_does_not_join(
    tmp_path: Path, options: RunOptions, scripted: ScriptedSites
) -> None:
    assert waits(tmp_path, options, scripted, "join", rounds=12) == [0, 2, 5, 10]


def test_rounds_wait_less_and_less_often_for_a_site_that_trains_and_does_not_validate(
    tmp_path: Path, options: RunOptions, scripted: ScriptedSites
) -> None:
    """It is asked again for the last validations, after the last round and after the final training."""
    assert waits(tmp_path, options, scripted, "validate", rounds=12) == [0, 2, 5, 10, 11, 12]


def test_a_site_that_has_just_refused_to_join_is_asked_again_after_a_round(
    options: RunOptions, make_sites, study: Path
) -> None:
    sites = make_sites(options, read_manifest(study / "manifest.json"))
    late = list(options.data.sites)[2]
    SitePolicy(sites.folders[late]).withdraw(study.name)
    sites.change = lambda site, task, round_, wire: pytest.fail("enough") if round_ else wire
    with pytest.raises(pytest.fail.Exception, match="enough"):
        StudyRun(study, sites).run()
    joins = [(round_, asked) for task, round_, asked in sites.asked if task == "join"]
    assert joins == [(0, tuple(options.data.sites)), (1, (late,))]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
def test_a_rejected_site_is_named_and_changes_no_bit_of_the_others(
    tmp_path: Path,
    options: RunOptions,
    study: Path,
    scripted: ScriptedSites,
    caplog: pytest.LogCaptureFixture,
    value: float,
) -> None:
    bad = scripted.names[1]

    def poison(site: str, task: str, round_: int, wire: dict) -> dict:
        if site != bad or task != "train":
            return wire
        reply = reply_from_wire(wire)
        update = decode(reply.update, scripted.manifest.spec)
        next(iter(update.tensors.values())).reshape(-1)[0] = value
        return reply_to_wire(replace(reply, update=encode(update)))

    scripted.change = poison
    StudyRun(study, scripted).run()
    assert "round 1: update refused: " in caplog.text
    for row in rows(study, "aggregate"):
        assert row["accepted"] == [name for name in scripted.names if name != bad]
        assert bad in row["rejected"][bad]
    without = create_study(options, tmp_path / "without", RoundPolicy(quorum=2))
    scripted.change = lambda site, task, round_, wire: wire
    scripted.away = lambda site, task, round_: site == bad and task == "train"
    StudyRun(without, scripted).run()
    assert digest(tensors.load(study / SERVER)[0]) == digest(tensors.load(without / SERVER)[0])


@pytest.mark.slow
def test_the_size_of_a_refused_message_is_not_that_of_the_study(study: Path, scripted: ScriptedSites) -> None:
    bad = scripted.names[0]
    scripted.change = lambda site, task, round_, wire: (
        {**wire, "update": b"x" * 10**6} if site == bad and task == "train" else wire
    )
    StudyRun(study, scripted).run()
    sizes = [row["up_bytes"] for row in rows(study, "aggregate")]
    assert sizes[-1][bad] == 10**6
    reported = json.loads((study / "summary.json").read_text())["communication"]["up_bytes_per_site_round"]
    assert reported == max(size for site, size in sizes[-1].items() if site != bad)


def test_a_round_with_too_few_updates_for_the_method_names_the_refused_site_and_is_repeated(
    tmp_path: Path, options: RunOptions
) -> None:
    """A trimmed mean that discards a third at each end needs all three sites; one of them sends an update that cannot be read."""
    changes = {"method": "trimmed-mean", "method_options": {"trimmed-mean": {"trimmed_share": 0.34}}}
    trimmed = RunOptions.model_validate(options.model_dump() | changes)
    study = create_study(trimmed, tmp_path / "studies", RoundPolicy(quorum=2))
    sites = ScriptedSites(read_manifest(study / "manifest.json"), list(options.data.sites))
    sites.change = lambda site, task, round_, wire: (
        HOSTILE["another update"](wire) if site == sites.names[0] and task == "train" and round_ == 1 else wire
    )
    with pytest.raises(QuorumError, match=r"2 accepted update.*trimmed-mean needs at least 3"):
        StudyRun(study, sites).run()
    assert sites.names[0] in rows(study, "aggregate")[-1]["rejected"]
    sites.change = lambda site, task, round_, wire: wire
    assert StudyRun(study, sites).run() == "finished"


def test_late_replies_are_counted_and_named(study: Path, scripted: ScriptedSites, with_page: None) -> None:
    scripted.away = lambda site, task, round_: site == scripted.names[0] and (task, round_) == ("train", 1)
    scripted.late = {scripted.names[0]: 1}
    StudyRun(study, scripted).run()
    reasons = [
        reason for row in rows(study, "absent") for site, reason in row["sites"].items() if site == scripted.names[0]
    ]
    assert reasons[0] == "1 reply(s) came after their deadline"
    assert any(f"no reply within {RoundPolicy().deadline_s} s" in reason for reason in reasons)
    page = (study / "report.html").read_text()
    assert f"no reply within {RoundPolicy().deadline_s} s" in page


def test_a_site_cannot_change_its_weight_between_two_runs_of_the_coordinator(
    study: Path, scripted: ScriptedSites
) -> None:
    StudyRun(study, scripted).run()
    scripted.names.reverse()  # now the first says it has the last one's cases
    with pytest.raises(QuorumError):
        StudyRun(study, scripted).run()
    refused = rows(study, "absent")[-1]["sites"]
    assert "it registered with 10 cases before and says 30 now." in refused.values()


HOSTILE: dict[str, Callable[[dict[str, bytes]], dict]] = {
    "no parts": lambda wire: {},
    "a part too many": lambda wire: {**wire, "note": b"Jane Doe"},
    "text for bytes": lambda wire: {**wire, "update": "Jane Doe"},
    "no JSON": lambda wire: {**wire, "head": b"{Jane Doe"},
    "another task": lambda wire: {**wire, "head": wire["head"].replace(b'"train"', b'"finalize"')},
    "another round": lambda wire: {**wire, "head": wire["head"].replace(b'"round": ', b'"round": 9')},
    "a number with a name": lambda wire: {**wire, "head": _with_number(wire["head"], "Jane Doe")},
    "a word not on the list": lambda wire: {
        **wire,
        "head": wire["head"].replace(b'"refused": null', b'"refused": "Jane"'),
    },
    "another update": lambda wire: {**wire, "update": b"Jane Doe"},
    "no update": lambda wire: {**wire, "update": b""},
}


def _with_number(head: bytes, name: str) -> bytes:
    content = json.loads(head)
    content["scalar_metrics"][name] = 1.0
    return json.dumps(content).encode()


@pytest.mark.parametrize("how", HOSTILE)
def test_a_hostile_site_is_refused_by_name_and_nothing_it_says_is_repeated(
    study: Path, scripted: ScriptedSites, how: str
) -> None:
    bad = scripted.names[0]
    scripted.change = lambda site, task, round_, wire: (
        HOSTILE[how](wire) if site == bad and task == "train" and round_ == 1 else wire
    )
    StudyRun(study, scripted).run()
    accepted = [row["accepted"] for row in rows(study, "aggregate")]
    assert [bad in names for names in accepted] == [True, False, True]
    named = [row["rejected"] for row in rows(study, "aggregate")] + [row["sites"] for row in rows(study, "absent")]
    assert any(bad in reasons for reasons in named)
    assert "Jane" not in (study / "records.jsonl").read_text() + (study / "summary.json").read_text()


def test_below_the_quorum_the_study_stops_where_it_stands_and_goes_on_later(
    study: Path, scripted: ScriptedSites
) -> None:
    scripted.away = lambda site, task, round_: site in scripted.names[1:] and task == "train" and round_ == 1
    before = (study / SERVER).read_bytes()
    with pytest.raises(QuorumError, match="1 accepted update") as caught:
        StudyRun(study, scripted).run()
    assert all(f"{site}: no reply within 1800 s." in str(caught.value) for site in scripted.names[1:])
    assert f"{scripted.names[0]}: " not in str(caught.value)
    assert QuorumError.exit_code == 9
    assert StudyFolder(study).load_state(scripted.manifest).round == 1
    stands = (study / SERVER).read_bytes()
    assert stands != before
    with pytest.raises(QuorumError):
        StudyRun(study, scripted).run()
    assert (study / SERVER).read_bytes() == stands
    scripted.away = lambda site, task, round_: False
    assert StudyRun(study, scripted).run() == "finished"


def test_a_site_that_does_not_answer_a_second_test_keeps_its_scores(
    study: Path, scripted: ScriptedSites, with_page: None, caplog: pytest.LogCaptureFixture
) -> None:
    assert StudyRun(study, scripted).run() == "finished"
    first, third = read_summary(study / "summary.json"), scripted.names[2]

    def half_as_good(site: str, task: str, round_: int, wire: dict) -> dict:
        reply = reply_from_wire(wire)
        scores = {name: 0.25 if value == 0.5 else value for name, value in reply.scalar_metrics.items()}
        return reply_to_wire(replace(reply, scalar_metrics=scores)) if task == "test" else wire

    scripted.change, scripted.away = half_as_good, lambda site, task, round_: site == third
    assert StudyRun(study, scripted).run() == "finished"
    again = read_summary(study / "summary.json")
    assert list(again.sites) == scripted.names
    assert again.sites[third] == first.sites[third]
    assert [again.sites[name].in_use.dice for name in scripted.names] == [0.25, 0.25, 0.5]
    assert again.mean.in_use.dice == pytest.approx((0.25 + 0.25 + 0.5) / 3)
    assert (again.mean.in_use.cases, again.worst_site) == (1 + 2 + 3, scripted.names[0])
    assert f"{third} sent no scores; those of the earlier test are kept" in caplog.text


def test_scores_of_a_study_that_had_not_ended_are_not_kept(study: Path, scripted: ScriptedSites) -> None:
    assert StudyRun(study, scripted).run() == "finished"
    shared, names = study / "shared", scripted.names
    shutil.copy(max((shared / "earlier").iterdir()), study / SERVER)  # a round is repeated, and may have another result
    scripted.away = lambda site, task, round_: site == names[2]
    assert StudyRun(study, scripted).run() == "finished"
    assert list(read_summary(study / "summary.json").sites) == names[:2]


def test_rolled_back_shared_parameters_are_those_of_the_earlier_round_and_no_round_is_repeated(
    tmp_path: Path, options: RunOptions, scripted: ScriptedSites
) -> None:
    training = options.training.model_copy(update={"rounds": 7})
    study = create_study(options.model_copy(update={"training": training}), tmp_path / "seven", RoundPolicy(quorum=2))
    manifest, stored = read_manifest(study / "manifest.json"), StudyFolder(study)
    scripted.manifest, start = manifest, stored.load_state(manifest).shared
    with pytest.raises(RunError, match=r"stored are the states after none round"):
        stored.roll_back(manifest, 0)
    scripted.step = lambda place: 0.001
    scripted.away = lambda site, task, round_: task == "train" and round_ == 5
    with pytest.raises(QuorumError):
        StudyRun(study, scripted).run()
    assert stored.earlier_states() == [2, 3, 4]  # the committed one is after round 5
    with pytest.raises(RunError, match=r"after 1 round\(s\) is not stored; stored are the states after 2, 3, 4"):
        stored.roll_back(manifest, 1)
    assert stored.load_state(manifest).round == 5
    state = stored.roll_back(manifest, 3)
    assert state.round == 6
    for name, value in stored.load_state(manifest).shared.items():
        assert torch.allclose(value, start[name] + 3 * 0.001, atol=1e-6), name
    scripted.away = lambda site, task, round_: False
    assert StudyRun(study, scripted).run() == "finished"
    for name, value in stored.load_state(manifest).shared.items():
        assert torch.allclose(value, start[name] + 4 * 0.001, atol=1e-6), name
    assert [row["round"] for row in rows(study, "aggregate")] == [0, 1, 2, 3, 4, 6]
    assert [(row["round"], row["to_round"]) for row in rows(study, "rollback")] == [(5, 3)]
    with pytest.raises(RunError, match="all rounds of the study are done"):
        stored.roll_back(manifest, 4)


def test_a_study_that_ended_early_is_not_rolled_back(
    tmp_path: Path, options: RunOptions, scripted: ScriptedSites
) -> None:
    training = options.training.model_copy(update={"rounds": 9, "patience": 1})
    study = create_study(options.model_copy(update={"training": training}), tmp_path / "nine", RoundPolicy(quorum=2))
    manifest = scripted.manifest = read_manifest(study / "manifest.json")

    def always_the_same(site: str, task: str, round_: int, wire: dict) -> dict:
        names = [name for name in manifest.scalar_metrics["validate"] if name.startswith("dice.")]
        scores = dict.fromkeys(names, 0.5)
        return reply_to_wire(replace(reply_from_wire(wire), scalar_metrics=scores)) if task == "validate" else wire

    scripted.change = always_the_same
    assert StudyRun(study, scripted).run() == "finished"
    ended = StudyFolder(study).load_state(manifest).round
    assert ended == 3  # validated after every round: no gain after the second one, and one round more
    with pytest.raises(RunError, match="all rounds of the study are done"):
        StudyFolder(study).roll_back(manifest, ended - 1)


@pytest.mark.slow
def test_a_coordinator_restored_from_a_copy_skips_the_rounds_that_only_its_sites_have(
    tmp_path: Path, options: RunOptions, make_sites
) -> None:
    training = options.training.model_copy(update={"rounds": 6})
    study = create_study(options.model_copy(update={"training": training}), tmp_path / "six", RoundPolicy())
    manifest, stored = read_manifest(study / "manifest.json"), StudyFolder(study)
    sites = make_sites(options, manifest)
    for done in (2, 4):
        sites.needs_new_job = lambda done=done: sites.asked[-1][1] + 1 >= done
        assert StudyRun(study, sites).run() == "again"
        if done == 2:
            shutil.copytree(study, tmp_path / "copy")
    shutil.rmtree(study)
    (tmp_path / "copy").rename(study)
    sites.needs_new_job = lambda: False
    with pytest.raises(QuorumError, match="restored from a copy") as caught:
        StudyRun(study, sites).run()
    assert f"{', '.join(options.data.sites)}: the sites have trained later rounds" in str(caught.value)
    assert f"rollback FOLDER {manifest.study} --skip-to" in str(caught.value)
    before = stored.load_state(manifest)
    with pytest.raises(RunError, match=r"cannot continue with round 7: give a round after 3 and not after 6"):
        stored.roll_back(manifest, None, 6)
    stored.roll_back(manifest, None, 4)
    assert digest(stored.load_state(manifest).shared) == digest(before.shared)
    assert stored.earlier_states() == [0, 1]
    assert StudyRun(study, sites).run() == "finished"
    assert [row["round"] for row in rows(study, "aggregate")] == [0, 1, 4, 5]


@pytest.mark.slow
def test_sites_take_part_in_the_round_after_a_rollback(tmp_path: Path, options: RunOptions, make_sites) -> None:
    """Sites bound the change of the shared parameters since those that they accepted last; a rollback returns to earlier ones."""
    training = options.training.model_copy(update={"rounds": 5})
    study = create_study(options.model_copy(update={"training": training}), tmp_path / "five", RoundPolicy(quorum=2))
    manifest, stored = read_manifest(study / "manifest.json"), StudyFolder(study)
    sites = make_sites(options.model_copy(update={"training": training}), manifest)
    sites.away = lambda site, task, round_: task == "train" and round_ == 3
    with pytest.raises(QuorumError):
        StudyRun(study, sites).run()
    stored.roll_back(manifest, 1)
    sites.away = lambda site, task, round_: False
    assert StudyRun(study, sites).run() == "finished"
    (last,) = [row for row in rows(study, "aggregate") if row["round"] == 4]
    assert last["accepted"] == list(options.data.sites)


def test_a_round_in_which_every_site_is_refused_is_recorded_with_the_reasons(
    study: Path, scripted: ScriptedSites
) -> None:
    def poison(site: str, task: str, round_: int, wire: dict) -> dict:
        if task != "train":
            return wire
        reply = reply_from_wire(wire)
        update = decode(reply.update, scripted.manifest.spec)
        next(iter(update.tensors.values())).reshape(-1)[0] = float("nan")
        return reply_to_wire(replace(reply, update=encode(update)))

    scripted.change = poison
    with pytest.raises(QuorumError, match="0 accepted"):
        StudyRun(study, scripted).run()
    (row,) = rows(study, "aggregate")
    assert row["accepted"] == []
    assert set(row["rejected"]) == set(scripted.names)


def test_nobody_there_is_an_error_and_no_wait(options: RunOptions, make_sites, study: Path) -> None:
    sites = make_sites(options, None)  # nobody approved anything
    named = ", ".join(options.data.sites)
    told = (
        f"0 of 3 sites joined ({named}: its operator has not approved this study); the quorum is 2. Nothing was changed"
    )
    with pytest.raises(QuorumError, match=re.escape(told)):
        StudyRun(study, sites).run()
    (row,) = rows(study, "absent")
    assert row["sites"] == dict.fromkeys(sorted(options.data.sites), "its operator has not approved this study")


def refuse_to_join(scripted: ScriptedSites, words: dict[int, str]) -> None:
    """Let sites, by their place, refuse to join with these codes; every job of the study ends after its first round."""
    codes = {scripted.names[place]: word for place, word in words.items()}

    def change(site: str, task: str, round_: int, wire: dict) -> dict:
        if task != "join" or site not in codes:
            return wire
        return reply_to_wire(replace(reply_from_wire(wire), scalar_metrics={}, refused=codes[site]))

    scripted.change, scripted.needs_new_job = change, lambda: True


@pytest.mark.parametrize("missing", [[0], [0, 1, 2]])
def test_a_study_waits_for_the_approval_of_its_sites_and_then_begins_as_if_nothing_had_happened(
    study: Path, scripted: ScriptedSites, missing: list[int]
) -> None:
    refuse_to_join(scripted, dict.fromkeys(missing, "not-approved"))
    stored = StudyFolder(study)
    for _ in range(2):
        first = StudyRun(study, scripted, may_wait=True)
        assert first.run() == "waits"
        assert first.waits_for == f"waits for the approval of {', '.join(scripted.names[place] for place in missing)}"
        assert (stored.read_status()["state"], stored.read_registered()) == ("submitted", {})
        assert stored.load_state(scripted.manifest).round == 0
    refuse_to_join(scripted, {})
    assert StudyRun(study, scripted, may_wait=True).run() == "again"
    assert list(stored.read_registered().values()) == [10, 20, 30]
    refuse_to_join(scripted, dict.fromkeys(missing, "not-approved"))
    if len(missing) == 1:
        assert StudyRun(study, scripted, may_wait=True).run() == "again"  # a study with a round does not wait
    else:
        with pytest.raises(QuorumError, match="0 of 3 sites joined"):
            StudyRun(study, scripted, may_wait=True).run()


def test_when_the_wait_is_over_a_study_begins_without_the_site_that_has_not_approved_it(
    study: Path, scripted: ScriptedSites
) -> None:
    refuse_to_join(scripted, {0: "not-approved"})
    assert StudyRun(study, scripted).run() == "again"
    assert list(StudyFolder(study).read_registered()) == sorted(scripted.names[1:])


def test_a_study_waits_for_a_silent_site_only_if_it_needs_it(study: Path, scripted: ScriptedSites) -> None:
    refuse_to_join(scripted, {0: "data"})
    scripted.away = lambda site, task, round_: site == scripted.names[1]
    run_ = StudyRun(study, scripted, may_wait=True)
    assert (run_.run(), run_.waits_for) == ("waits", f"waits for a reply of {scripted.names[1]}")
    refuse_to_join(scripted, {})
    assert StudyRun(study, scripted, may_wait=True).run() == "again"


def test_a_quorum_that_no_approval_can_reach_stops_a_study_at_once_with_every_reason(
    study: Path, scripted: ScriptedSites
) -> None:
    refuse_to_join(scripted, {0: "data", 1: "data", 2: "not-approved"})
    one, two, three = scripted.names
    told = f"({one}, {two}: there is a problem with its data; {three}: its operator has not approved this study)"
    with pytest.raises(QuorumError, match=re.escape(told)):
        StudyRun(study, scripted, may_wait=True).run()
    scripted.names = [one]
    refuse_to_join(scripted, {})
    scripted.manifest = read_manifest(study / "manifest.json")
    with pytest.raises(QuorumError, match=re.escape(f"1 of 3 sites joined ({two}, {three}: it is not connected)")):
        StudyRun(study, scripted).run()


@pytest.mark.slow
def test_outbound_bytes_are_the_manifests_and_the_ledger_has_every_message(
    options: RunOptions, make_sites, study: Path
) -> None:
    manifest = read_manifest(study / "manifest.json")
    sites = make_sites(options, manifest)
    name = next(iter(sites.agents))
    StudyRun(study, sites).run()
    values = sum(manifest.component_bytes().values())
    sent = [line for line in Ledger(sites.folders[name] / "ledger.jsonl").read() if line["by_component"]]
    assert len(sent) == manifest.rounds
    for line in sent:
        assert line["tensors"] == sorted(manifest.tensors)
        assert line["by_component"] == manifest.component_bytes()
    # The experts never stand on the wire, in no message of any site.
    for site in sites.agents:
        for tensor in local_state(sites, site).local.values():
            raw = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()[:64]
            if len(raw) == 64 and any(raw):
                assert not [wire for wire in sites.wires if raw in wire["update"] or raw in wire["head"]]
    updates = [wire["update"] for wire in sites.wires if wire["update"]]
    assert all(values < len(update) < values + 1000 for update in updates)
