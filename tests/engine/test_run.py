"""A local run gives the same result whatever interrupts it, and nothing private is outside the folder of a site."""

import json
import multiprocessing
import os
import random
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from event_log import records_without_times
from PIL import Image
from safetensors.torch import load_file, save_file
from volume_files import write_nifti

from pfedsam.core import tensors
from pfedsam.core.errors import DataError, OptionError, RunError, StoreError
from pfedsam.core.lock import LOCK, exclusive
from pfedsam.core.tensors import digest, load
from pfedsam.data.tiling import TilingOptions
from pfedsam.engine import run as run_module
from pfedsam.engine.model_selection import models_of
from pfedsam.engine.opened import open_run
from pfedsam.engine.progress import Event
from pfedsam.engine.run import run
from pfedsam.engine.server_files import SERVER, read_server
from pfedsam.experiment.build import build_model
from pfedsam.experiment.load import dump_options
from pfedsam.experiment.options import RunOptions
from pfedsam.federation.methods import METHODS
from pfedsam.federation.pipeline.build import CommunicationOptions
from pfedsam.federation.site_store import SiteState, SiteStore
from pfedsam.report.records import read_records, validations_in
from pfedsam.report.summary_file import read_summary
from pfedsam.report.tables import run_tables
from pfedsam.training.schedule import end_of_training


def fingerprint(folder: Path, options: RunOptions) -> dict[str, object]:
    """Everything that must be equal to the bit: shared and local parameters, optimiser, records, scores."""
    stored, described = read_server(folder)  # the file itself names the records of its run, which hold seconds
    found: dict[str, object] = {"shared": digest(stored), "round": described["round"]}
    for site in options.data.sites:
        state = SiteStore(folder / "sites" / site / "state").load()
        assert state is not None
        found[f"{site} local"] = digest(state.local)
        found[f"{site} optimizer"] = digest(state.optimizer)
        found[f"{site} feedback"] = [digest(kept.memory) for kept in _generations(folder, site, options)]
        found[f"{site} scores"] = (folder / "sites" / site / "scores.json").read_bytes()
    found["records"] = records_without_times(folder)
    return found


def _generations(folder: Path, site: str, options: RunOptions) -> list[SiteState]:
    """The states that a site keeps, the last round's and the one after the final phase."""
    store, rounds = SiteStore(folder / "sites" / site / "state"), options.training.rounds
    return [state for state in (store.load(round=rounds), store.load(round=rounds + 1)) if state]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("finished") / "run"


@pytest.fixture
def reference(finished: Path, toy_options: RunOptions) -> Path:
    """An undisturbed run, made once."""
    if not (finished / "summary.json").exists():
        shutil.rmtree(finished, ignore_errors=True)
        run(toy_options, finished)
    return finished


def survive(options: RunOptions, folder: Path, kills: int) -> None:
    """Run to the end although the process is killed so many times, at random moments."""
    chance, forked, killed = random.Random(7), multiprocessing.get_context("fork"), 0
    for _ in range(6 * kills):
        process = forked.Process(
            target=run, args=(options, folder), kwargs={"resume": (folder / "config.yaml").exists()}
        )
        process.start()
        process.join(chance.uniform(0.2, 1.2) if killed < kills else 120)
        if process.exitcode is None:
            process.kill()
            process.join()
            killed += 1
        elif process.exitcode == 0:
            if killed >= kills:
                break
            # It finished before it was killed often enough: let it lose its last rounds and go on being killed.
            shutil.rmtree(folder)
    assert killed == kills
    assert process.exitcode == 0


def with_codec(options: RunOptions, codec: str) -> RunOptions:
    return RunOptions.model_validate({**options.model_dump(), "communication": {"codec": codec, "block": 16}})


@pytest.mark.slow
def test_a_run_killed_at_ten_random_moments_resumes_to_the_same_bits(
    tmp_path: Path, toy_options: RunOptions, reference: Path
) -> None:
    survive(toy_options, tmp_path / "killed", kills=10)
    assert fingerprint(tmp_path / "killed", toy_options) == fingerprint(reference, toy_options)


def test_a_site_that_was_restored_from_an_older_copy_ends_the_run(
    tmp_path: Path, toy_options: RunOptions, reference: Path
) -> None:
    """With its folder alone, the site would go on from an earlier round than the others, and the run end with other bits."""
    folder, site = Path(shutil.copytree(reference, tmp_path / "run")), list(toy_options.data.sites)[1]
    store = SiteStore(folder / "sites" / site / "state")
    state = store.load(round=toy_options.training.rounds)
    assert state is not None
    store.commit(replace(state, round=2))
    before = (folder / SERVER).read_bytes()
    with pytest.raises(
        StoreError, match=rf"state of site '{site}' is that after round 2, but the run in 'run' has done 4"
    ):
        run(toy_options, folder, resume=True)
    assert (folder / SERVER).read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"study": "0" * 16},
            "was begun by another version of pFedSAM: .*continue it with that version, or start again",
        ),
        ({"study": "0" * 16, "backbone": ""}, "another version of pFedSAM, or with other weights of its backbone"),
        ({"study": "0" * 16, "backbone": "0" * 64}, "has other weights now"),
    ],
)
def test_a_run_that_cannot_be_continued_says_why(
    tmp_path: Path,
    toy_options: RunOptions,
    reference: Path,
    changes: dict[str, str],
    message: str,
) -> None:
    """Of another version, whose further options change the identity; of an earlier one without the backbone's hash; on other weights."""
    folder = Path(shutil.copytree(reference, tmp_path / "run"))
    stored, described = read_server(folder)
    tensors.save(folder / SERVER, stored, {key: value for key, value in (described | changes).items() if value})
    with pytest.raises(RunError, match=message):
        run(toy_options, folder, resume=True)


@pytest.fixture(scope="module")
def int8_finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("int8") / "run"


@pytest.fixture
def int8_reference(int8_finished: Path, toy_options: RunOptions) -> Path:
    """An undisturbed run with integers and error feedback, made once."""
    if not (int8_finished / "summary.json").exists():
        run(with_codec(toy_options, "int8"), int8_finished)
    return int8_finished


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_bits_with_integers_and_error_feedback(
    tmp_path: Path, toy_options: RunOptions, int8_reference: Path
) -> None:
    options = with_codec(toy_options, "int8")
    survive(options, tmp_path / "killed", kills=4)
    assert fingerprint(tmp_path / "killed", options) == fingerprint(int8_reference, options)
    shared = tensors.load(tmp_path / "killed" / SERVER)[0]
    for site in options.data.sites:
        kept = _generations(tmp_path / "killed", site, options)
        assert len(kept) == 2
        assert kept[0].memory.keys() == shared.keys()
        assert max(value.abs().max() for value in kept[0].memory.values()) > 0
        assert kept[1].memory == {}  # nothing is sent after the final phase


def check_bytes(folder: Path, exact_folder: Path, shrinks: float) -> None:
    """The bytes in a summary are those on the wire, and make up the components."""
    found = read_summary(folder / "summary.json").communication
    exact = read_summary(exact_folder / "summary.json").communication
    sent = [record["up_bytes"] for record in read_records(folder / "records.jsonl") if "up_bytes" in record]
    assert found.up_bytes_per_site_round == max(sent[-1].values())
    assert found.down_bytes_per_site_round == exact.down_bytes_per_site_round
    values = sum(found.by_component.values())
    assert sum(exact.by_component.values()) / values == pytest.approx(shrinks, rel=0.05)
    assert values < found.up_bytes_per_site_round < values + 1000


@pytest.mark.slow
def test_bytes_with_int8_are_those_on_the_wire(reference: Path, int8_reference: Path) -> None:
    """With a scale for 16 values, nine bits a value; a tensor's last block is often shorter."""
    check_bytes(int8_reference, reference, 3.5)


@pytest.mark.slow
def test_without_error_feedback_int4_sends_as_little_and_nothing_is_kept(
    tmp_path: Path, toy_options: RunOptions, reference: Path
) -> None:
    training = toy_options.training.model_copy(update={"rounds": 1, "shared_warmup_rounds": 0})
    communication = CommunicationOptions(codec="int4", error_feedback=False, block=16)
    options = toy_options.model_copy(update={"training": training, "communication": communication})
    run(options, tmp_path / "run")
    check_bytes(tmp_path / "run", reference, 6.2)
    for site in options.data.sites:
        assert all(state.memory == {} for state in _generations(tmp_path / "run", site, options))


@pytest.mark.slow
def test_processes_change_no_bit(tmp_path: Path, toy_options: RunOptions, reference: Path) -> None:
    parallel = toy_options.model_copy(update={"runtime": toy_options.runtime.model_copy(update={"workers": 2})})
    run(parallel, tmp_path / "parallel")
    assert fingerprint(tmp_path / "parallel", toy_options) == fingerprint(reference, toy_options)


def test_nothing_of_a_sites_data_stands_outside_its_folder(reference: Path, toy_options: RunOptions) -> None:
    names = {path.stem for folder in toy_options.data.sites.values() for path in (folder / "images").iterdir()}
    for path in (reference / "records.jsonl", reference / "summary.json", reference / "report.html"):
        text = path.read_text()
        assert not [name for name in names if name in text], path.name
    local = set(SiteStore(reference / "sites" / next(iter(toy_options.data.sites)) / "state").load().local)  # type: ignore[union-attr]
    shared = (reference / SERVER).read_bytes()
    assert local
    assert not [name for name in local if f'"{name}"'.encode() in shared]


QUICK = ("centralized", "fedavg", "local-only", "pfedsam")


@pytest.mark.parametrize(
    "method", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in sorted(METHODS)]
)
def test_every_method_finishes_with_scores_for_every_site(tmp_path: Path, toy_options: RunOptions, method: str) -> None:
    training = toy_options.training.model_copy(update={"rounds": 1, "shared_warmup_rounds": 0})
    own = {"trimmed-mean": {"trimmed_share": 0.4}} if method == "trimmed-mean" else {}  # of three sites one at each end
    content = toy_options.model_dump() | {"method": method, "training": training.model_dump(), "method_options": own}
    options = RunOptions.model_validate(content)
    summary = run(options, tmp_path / method)
    assert set(summary.sites) == set(toy_options.data.sites)
    assert summary.mean.in_use is not None
    silent = not build_model(options).partition.shared
    assert (summary.communication.up_bytes_per_site_round == 0) == silent


@pytest.mark.parametrize(
    ("method", "has_personal", "has_shared"),
    [
        ("fedavg", False, True),
        ("ditto", True, True),
        ("fedbn", True, True),
        ("feddpa", True, True),
        ("fedper", True, False),
        ("fedsa-lora", True, False),
        ("local-only", True, False),
        ("fedavg-finetuned", True, True),
        ("centralized", False, True),
        ("centralized-finetuned", True, False),
    ],
)
def test_a_shared_model_is_reported_where_there_is_one(
    toy_options: RunOptions, method: str, has_personal: bool, has_shared: bool
) -> None:
    options = toy_options.model_copy(update={"method": method})
    models = models_of(options, build_model(options))
    assert ("personal" in models, "shared" in models) == (has_personal, has_shared)


@pytest.mark.slow
def test_after_pooled_rounds_each_site_goes_on_alone(tmp_path: Path, toy_options: RunOptions) -> None:
    training = toy_options.training.model_copy(update={"rounds": 1, "shared_warmup_rounds": 0})
    options = toy_options.model_copy(update={"method": "centralized-finetuned", "training": training})
    pooled = options.model_copy(update={"method": "centralized"})
    run(options, tmp_path / "tuned")
    run(pooled.model_copy(update={"training": training.model_copy(update={"final_steps": 0})}), tmp_path / "pooled")
    states = {
        name: SiteStore(tmp_path / "tuned" / "sites" / name / "state").load()
        for name in ("pooled", *options.data.sites)
    }
    alone = SiteStore(tmp_path / "pooled" / "sites" / "pooled" / "state").load()
    assert alone is not None
    assert states["pooled"] is not None
    assert digest(states["pooled"].local) == digest(alone.local)
    assert len({digest(state.local) for state in states.values() if state}) == 1 + len(options.data.sites)
    # A step of AdamW is about as long as the learning rate: a site that had started anew would be further away.
    name = next(n for n in alone.local if n.startswith("output_layers"))
    site = states[next(iter(options.data.sites))]
    assert site is not None
    assert (site.local[name] - alone.local[name]).abs().max() < 2 * training.optimizer.learning_rate
    # Taken up again after the sites' end, it ends with the same bits.
    before = fingerprint(tmp_path / "tuned", options)
    run(options, tmp_path / "tuned", resume=True)
    assert fingerprint(tmp_path / "tuned", options) == before


def test_fine_tuning_gives_each_site_its_own_copy_and_leaves_the_shared_model_as_it_was(
    tmp_path: Path, toy_options: RunOptions
) -> None:
    """The shared model of `fedavg-finetuned` has the parameters and the scores of `fedavg`; the sites differ, and are opened as scored."""
    training = toy_options.training.model_copy(
        update={"rounds": 2, "shared_warmup_rounds": 0, "fine_tuning_rounds": 3, "phases": "coupled-halves"}
    )
    evaluation = toy_options.evaluation.model_copy(update={"max_drop": None, "choose_model": False})
    options = toy_options.model_copy(update={"training": training, "evaluation": evaluation})
    found = {
        name: run(options.model_copy(update={"method": name}), tmp_path / name)
        for name in ("fedavg", "fedavg-finetuned")
    }
    stored = [read_server(tmp_path / name)[0] for name in found]
    assert digest(stored[0]) == digest(stored[1])
    shared = [{site: one.shared for site, one in summary.sites.items()} for summary in found.values()]
    assert shared[0] == shared[1]
    tuned = open_run(tmp_path / "fedavg-finetuned")
    copies = {site: tuned.site(site, "personal").parameters.shared for site in options.data.sites}
    assert len({digest(copy) for copy in [*copies.values(), tuned.shared]}) == 1 + len(copies)
    for site in copies:  # AdamW goes on from the rounds: it has counted the steps of two rounds and of three more
        state = SiteStore(tmp_path / "fedavg-finetuned" / "sites" / site / "state").load()
        assert state is not None
        assert {value.item() for key, value in state.optimizer.items() if key.endswith(":step")} == {5 * 2}
    again = tuned.evaluate()
    assert {site: one.personal for site, one in again.sites.items()} == {
        site: one.personal for site, one in found["fedavg-finetuned"].sites.items()
    }


@pytest.mark.slow
@pytest.mark.parametrize(("method", "exported"), [("ffa-lora", True), ("fedsa-lora", False), ("fedsam", False)])
def test_an_adapter_is_exported_where_all_of_lora_is_the_same_everywhere(
    tmp_path: Path, toy_options: RunOptions, method: str, exported: bool
) -> None:
    training = toy_options.training.model_copy(update={"rounds": 1, "shared_warmup_rounds": 0, "final_steps": 0})
    run(toy_options.model_copy(update={"method": method, "training": training}), tmp_path / "run")
    path = tmp_path / "run" / "shared" / "adapter_model.safetensors"
    assert path.exists() == exported
    if exported:
        names = list(load(path)[0])
        assert sum("lora_A" in name for name in names) == sum("lora_B" in name for name in names) > 0


@pytest.mark.slow
def test_without_scores_of_the_shared_model_in_between_a_run_ends_with_the_same_models_and_scores(
    tmp_path: Path, toy_options: RunOptions
) -> None:
    """If no site uses an earlier model (`max_drop`), only the last validation decides, and that one scores both models."""
    found = {}
    for name, each in (("each", True), ("last", False)):
        evaluation = toy_options.evaluation.model_copy(update={"max_drop": None, "validate_shared": each})
        options = toy_options.model_copy(update={"evaluation": evaluation})
        run(options, tmp_path / name)
        found[name] = fingerprint(tmp_path / name, options)
        found[name].pop("records")
    assert found["each"] == found["last"]
    rows = [row for row in read_records(tmp_path / "last" / "records.jsonl") if row["kind"] == "validation"]
    moments = {model: {row["round"] for row in rows if row["model"] == model} for model in ("personal", "shared")}
    assert moments == {"personal": {0, 1, 2, 3, 4}, "shared": {3, 4}}


def test_the_test_can_leave_out_the_shared_model(reference: Path, tmp_path: Path, toy_options: RunOptions) -> None:
    """The scores of the model that a site uses are those of a run that tests both models; a later `evaluate` leaves it out too."""
    evaluation = toy_options.evaluation.model_copy(update={"test_shared": False})
    left_out = run(toy_options.model_copy(update={"evaluation": evaluation}), tmp_path / "run")
    both = read_summary(reference / "summary.json")
    assert all(site.shared is not None for site in both.sites.values())
    for found in (left_out, open_run(tmp_path / "run").evaluate()):
        assert {name: site.personal for name, site in found.sites.items()} == {
            name: site.personal for name, site in both.sites.items()
        }
        assert {site.shared for site in found.sites.values()} == {None}
        assert found.worst_site == both.worst_site


def test_an_option_that_a_method_does_not_train_is_refused(tmp_path: Path, toy_options: RunOptions) -> None:
    model = toy_options.model.model_copy(update={"train_encoder": True})
    with pytest.raises(OptionError, match="does not train encoder"):
        run(toy_options.model_copy(update={"model": model}), tmp_path / "run")


def test_another_configuration_is_refused_and_the_folder_stays(reference: Path, toy_options: RunOptions) -> None:
    before = {path: path.read_bytes() for path in reference.rglob("*") if path.is_file()}
    other = toy_options.model_copy(update={"seed": 4})
    with pytest.raises(RunError, match="seed"):
        run(other, reference, resume=True)
    classes = dict(reversed(toy_options.data.classes.items()))
    other = toy_options.model_copy(update={"data": toy_options.data.model_copy(update={"classes": classes})})
    with pytest.raises(RunError, match=r"different: data\.classes\..* The order of the classes counts"):
        run(other, reference, resume=True)
    with pytest.raises(RunError, match="--resume"):
        run(toy_options, reference)
    assert {path: path.read_bytes() for path in reference.rglob("*") if path.is_file()} == before


@pytest.mark.slow
def test_a_run_whose_data_were_moved_is_resumed_to_the_same_bits_and_scored_again(
    tmp_path: Path, toy_options: RunOptions, reference: Path
) -> None:
    def in_folder(folder: Path) -> RunOptions:
        return toy_options.model_copy(update={"data": toy_options.data.with_folders({name: folder})})

    def stop(event: Event) -> None:
        if event.stage == "train" and event.done == event.total // 2:
            raise KeyboardInterrupt

    name, data = next(iter((name, toy_options.data.folder(name)) for name in toy_options.data.sites))
    shutil.copytree(data, tmp_path / "data")
    with pytest.raises(KeyboardInterrupt):
        run(in_folder(tmp_path / "data"), tmp_path / "run", progress=stop)
    (tmp_path / "data").rename(tmp_path / "moved")
    mask = min((tmp_path / "moved" / "masks").iterdir())
    kept = mask.read_bytes()
    mask.write_bytes(max((tmp_path / "moved" / "masks").iterdir()).read_bytes())
    with pytest.raises(DataError, match=f"{mask.stem}.*was changed"):
        run(in_folder(tmp_path / "moved"), tmp_path / "run", resume=True)
    mask.write_bytes(kept)
    first = run(in_folder(tmp_path / "moved"), tmp_path / "run", resume=True)
    assert fingerprint(tmp_path / "run", toy_options) == fingerprint(reference, toy_options)
    opened = open_run(tmp_path / "run")
    with pytest.raises(DataError, match=f"there is no folder .*data'.*--site-folder {name}=FOLDER"):
        opened.evaluate()
    with pytest.raises(RunError, match="no site 'other'"):
        opened.evaluate(folders={"other": tmp_path})
    assert opened.evaluate(folders={name: tmp_path / "moved"}).sites == first.sites


def test_a_finished_run_that_is_resumed_keeps_the_time_that_it_took(
    tmp_path: Path, toy_options: RunOptions, reference: Path
) -> None:
    """As each finished method does if a comparison is resumed with a further one."""
    before = read_summary(reference / "summary.json")
    assert set(before.seconds) == {"train", "total"}
    shutil.copytree(reference, tmp_path / "run")
    assert run(toy_options, tmp_path / "run", resume=True).seconds == before.seconds


@pytest.mark.slow
def test_a_run_whose_backbone_was_moved_is_resumed_to_the_same_bits(tmp_path: Path, toy_options: RunOptions) -> None:
    training = toy_options.training.model_copy(update={"rounds": 2, "shared_warmup_rounds": 1})

    def on(backbone: Path | str) -> RunOptions:
        model = toy_options.model.model_copy(update={"backbone": str(backbone)})
        return toy_options.model_copy(update={"model": model, "training": training})

    def stop(event: Event) -> None:
        if event.stage == "train" and event.done == event.total // 2 + 1:
            raise KeyboardInterrupt

    first, moved = tmp_path / "weights", tmp_path / "moved"
    shutil.copytree(toy_options.model.backbone, first)
    run(on(first), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(on(first), tmp_path / "run", progress=stop)
    first.rename(moved)
    with pytest.raises(RunError, match=r"names 'weights' now, and there is no such file.* give their present path"):
        run(on("weights"), tmp_path / "run", resume=True)  # a relative path stays as it is if nothing is there
    weights = load_file(moved / "model.safetensors")
    next(iter(weights.values())).view(-1)[0] += 1.0
    shutil.copytree(moved, tmp_path / "other")
    save_file(weights, tmp_path / "other" / "model.safetensors", {"format": "pt"})
    with pytest.raises(RunError, match="The backbone of the run in 'run' has other weights now"):
        run(on(tmp_path / "other"), tmp_path / "run", resume=True)
    run(on(moved), tmp_path / "run", resume=True)
    assert fingerprint(tmp_path / "run", on(moved)) == fingerprint(tmp_path / "whole", on(first))


def test_only_the_folders_of_a_run_may_differ(reference: Path, toy_options: RunOptions) -> None:
    name = next(iter(toy_options.data.sites))
    other = toy_options.data.with_folders({name: Path("/elsewhere")})
    assert (other.folder(name), list(other.sites)) == (Path("/elsewhere"), list(toy_options.data.sites))
    with pytest.raises(DataError, match=f"site '{name}': there is no folder '/elsewhere'"):
        run(toy_options.model_copy(update={"data": other}), reference, resume=True)
    other = other.model_copy(update={"sites": {**other.sites, "more": Path("/elsewhere")}})
    with pytest.raises(RunError, match=r"different: data\.sites\.more"):
        run(toy_options.model_copy(update={"data": other}), reference, resume=True)


def test_a_run_without_anything_to_resume_says_so(
    tmp_path: Path, toy_options: RunOptions, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "north").mkdir()
    options = toy_options.model_copy(
        update={
            "data": toy_options.data.model_copy(update={"sites": {"north": tmp_path / "north", "b": tmp_path / "b"}})
        }
    )
    for resume in (False, True):
        with pytest.raises(DataError):  # there are no images: nothing is trained here
            run(options, tmp_path / "mispelt", resume=resume)
        assert ("contains no run that could be continued: a new one begins" in caplog.text) is resume


def test_a_folder_with_other_things_is_refused(tmp_path: Path, toy_options: RunOptions) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(RunError, match="not empty"):
        run(toy_options, tmp_path)


def test_a_folder_whose_path_is_no_text_is_refused_before_anything_else(
    tmp_path: Path, toy_options: RunOptions
) -> None:
    events: list[Event] = []
    with pytest.raises(RunError, match="not text in the encoding of file names"):
        run(toy_options, tmp_path / os.fsdecode(b"caf\xe9"), progress=events.append)
    assert (events, list(tmp_path.iterdir())) == ([], [])


def test_a_run_that_another_process_works_on_is_neither_begun_nor_resumed(
    tmp_path: Path, toy_options: RunOptions, reference: Path
) -> None:
    begun = Path(shutil.copytree(reference, tmp_path / "begun"))
    (begun / "summary.json").unlink()
    for folder in (tmp_path / "run", begun):
        with exclusive(folder), pytest.raises(RunError, match=f"Another process works in '{folder.name}'"):
            run(toy_options, folder, resume=folder == begun)
    assert [path.name for path in (tmp_path / "run").iterdir()] == [LOCK]
    assert not (begun / "summary.json").exists()


def test_a_run_that_another_process_began_meanwhile_is_not_overwritten(
    tmp_path: Path, toy_options: RunOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"

    def slow(options: RunOptions, *more: object, **named: object) -> object:
        folder.mkdir()
        (folder / "config.yaml").write_text(dump_options(options))
        return build_model(options, *more, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(run_module, "build_model", slow)
    with pytest.raises(RunError, match="contains a run already"):
        run(toy_options, folder)


@pytest.mark.slow
def test_a_run_killed_before_it_had_its_configuration_begins_anew(
    tmp_path: Path, toy_options: RunOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run_module, "write_config", killed)
    with pytest.raises(KeyboardInterrupt):
        run(toy_options.model_copy(update={"seed": 4}), tmp_path / "run")
    monkeypatch.undo()
    splits = sorted((tmp_path / "run").rglob("split.json"))
    assert len(splits) == len(toy_options.data.sites)
    training = toy_options.training.model_copy(update={"rounds": 1, "shared_warmup_rounds": 0, "final_steps": 0})
    options = toy_options.model_copy(update={"training": training})
    run(options, tmp_path / "run")
    run(options, tmp_path / "undisturbed")
    for path in splits:  # of seed 3, not of the run that was killed
        assert path.read_bytes() == (tmp_path / "undisturbed" / path.relative_to(tmp_path / "run")).read_bytes()


@pytest.mark.parametrize("part", ["train", "val", "test"])
def test_a_damaged_volume_of_any_part_is_refused_before_the_first_round(
    tmp_path: Path, toy_options: RunOptions, part: str
) -> None:
    values = np.random.default_rng(0).normal(size=(8, 8, 4)).astype(np.float32)
    lines = ["image,mask,patient,split"]
    for name in ("train", "val", "test"):
        damaged = np.where(np.arange(4) == 3, np.float32("nan"), values) if name == part else values
        write_nifti(tmp_path / f"site/images/{name}.nii.gz", damaged, np.diag([1, 1, 4, 1]))
        write_nifti(tmp_path / f"site/masks/{name}.nii.gz", (values > 0).astype(np.uint8), np.diag([1, 1, 4, 1]))
        lines.append(f"images/{name}.nii.gz,masks/{name}.nii.gz,{name},{name}")
    (tmp_path / "site/manifest.csv").write_text("\n".join(lines))
    data = toy_options.data.model_copy(update={"sites": {"north": tmp_path / "site"}})
    with pytest.raises(DataError, match=rf"site 'north', case '{part}': plane 3 of '{part}.nii.gz' holds nan"):
        run(toy_options.model_copy(update={"data": data, "method": "local-only"}), tmp_path / "run")
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_masks_that_are_changed_in_the_last_round_are_not_scored(tmp_path: Path, toy_options: RunOptions) -> None:
    """The run is refused as a resumed one is; it ended with scores of the new masks, without a warning."""
    name, folder = next(iter(toy_options.data.sites.items()))
    data = Path(shutil.copytree(folder, tmp_path / "data"))
    training = toy_options.training.model_copy(update={"rounds": 1, "shared_warmup_rounds": 0, "final_steps": 0})
    changes = {
        "training": training,
        "data": toy_options.data.model_copy(update={"sites": {**toy_options.data.sites, name: data}}),
    }

    def change_masks(event: Event) -> None:
        if event.stage == "train" and event.done == event.total:
            for mask in (data / "masks").iterdir():
                with Image.open(mask) as picture:
                    moved = Image.fromarray(np.roll(np.asarray(picture), 30, axis=1))
                moved.save(mask)

    with pytest.raises(DataError, match=rf"site '{name}', .*image or mask was changed since 'split.json' was written"):
        run(toy_options.model_copy(update=changes), tmp_path / "run", progress=change_masks)
    assert not (tmp_path / "run" / "summary.json").exists()


def test_bad_data_is_named_and_nothing_is_written(tmp_path: Path, toy_options: RunOptions) -> None:
    name, folder = next(iter(toy_options.data.sites.items()))
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    victim = sorted((broken / "images").iterdir())[0]
    victim.write_bytes(victim.read_bytes()[:60])
    data = toy_options.data.model_copy(update={"sites": {**toy_options.data.sites, name: broken}})
    with pytest.raises(DataError, match=victim.stem):
        run(toy_options.model_copy(update={"data": data}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_option_that_does_not_fit_the_images_is_refused_before_anything_is_written(
    tmp_path: Path, toy_options: RunOptions
) -> None:
    content = toy_options.model_dump(mode="json")
    content["evaluation"]["flips"], content["data"]["augment"]["flips"] = True, False
    with pytest.raises(OptionError, match=r"data\.augment\.flips"):
        run(RunOptions.model_validate(content), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_training_begins_with_a_call_before_the_first_client_round(tmp_path: Path, toy_options: RunOptions) -> None:
    """The first call says that none of the client rounds, which are as many as rounds times sites, is done."""
    first: list[Event] = []

    def stop(event: Event) -> None:
        if event.stage == "train":
            first.append(event)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(toy_options, tmp_path / "run", progress=stop)
    assert (first[0].done, first[0].total) == (0, toy_options.training.rounds * len(toy_options.data.sites))


def test_summary_names_the_schema(reference: Path) -> None:
    assert json.loads((reference / "summary.json").read_text())["schema"] == 2


@pytest.mark.slow
def test_tiles_train_and_pictures_are_scored_whole(tmp_path: Path, toy_options: RunOptions) -> None:
    training = toy_options.training.model_copy(update={"rounds": 1, "shared_warmup_rounds": 0})
    data = toy_options.data.model_copy(update={"tiling": TilingOptions(side=48, overlap=0.25)})
    options = toy_options.model_copy(update={"data": data, "training": training})
    whole = run(options, tmp_path / "run")
    again = open_run(tmp_path / "run").evaluate()
    assert again.sites == whole.sites
    site, folder = next(iter(toy_options.data.sites.items()))
    image = sorted((folder / "images").iterdir())[0]
    assert open_run(tmp_path / "run").site(site).predict(image).shape == (96, 96)


def test_a_site_kept_an_earlier_model_in_the_run_that_the_others_are_compared_with(reference: Path) -> None:
    assert "kept" in {one["kind"] for one in read_records(reference / "records.jsonl")}


def test_what_is_chosen_on_validation_is_the_model_that_a_site_ends_with(reference: Path) -> None:
    rows = [one for one in read_records(reference / "records.jsonl") if one["kind"] == "validation"]
    aligned = [
        one
        for one in read_records(reference / "records.jsonl")
        if one["kind"] == "round" and one["round"] == rows[-1]["round"]
    ]
    assert rows[-1]["round"] == 4  # after rounds 0 to 3 and the last phase
    assert {one["phase"] for one in aligned} == {"local"}


def test_a_device_that_is_not_there_is_refused_before_anything_is_written(
    toy_options: RunOptions, tmp_path: Path
) -> None:
    runtime = toy_options.runtime.model_copy(update={"device": "cuda:99"})
    with pytest.raises(OptionError, match="The device is cuda:99"):
        run(toy_options.model_copy(update={"runtime": runtime}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_of_another_machines_gpu_is_opened_here(reference: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(reference, folder)
    config = (folder / "config.yaml").read_text().partition("\n")[2]  # less its digest
    assert "device: cpu" in config
    (folder / "config.yaml").write_text(config.replace("device: cpu", "device: cuda:7"))
    assert open_run(folder).site_names == open_run(reference).site_names


@pytest.mark.slow
def test_a_run_that_withholds_small_numbers_says_so(toy_options: RunOptions, tmp_path: Path) -> None:
    communication = toy_options.communication.model_copy(update={"min_cases": 10})
    summary = run(toy_options.model_copy(update={"communication": communication}), tmp_path / "run")
    assert summary.min_cases == 10
    assert {site.in_use.cases for site in summary.sites.values() if site.in_use} == {None}
    rounds = [one for one in read_records(tmp_path / "run" / "records.jsonl") if one["kind"] == "round"]
    assert all(set(one) & {"loss", "segmentation", "distillation", "balance"} == set() for one in rounds)
    assert (summary.mean.in_use.dice, summary.worst_site) == (None, None)  # type: ignore[union-attr]
    page = (tmp_path / "run" / "report.html").read_text()
    assert "fewer than 10" in page
    assert "has the weight of one with 10" in page
    assert run_tables(summary)[0].caption is not None


def patient(options: RunOptions) -> RunOptions:
    """Sites that hardly learn, so that soon none gains for two rounds."""
    content = options.model_dump(mode="json", exclude_unset=True)
    content["training"] |= {"rounds": 20, "patience": 2, "optimizer": {"learning_rate": 1e-9}}
    return RunOptions.model_validate(content)


@pytest.mark.slow
def test_training_ends_when_no_site_gains(tmp_path: Path, toy_options: RunOptions) -> None:
    options = patient(toy_options)
    summary = run(options, tmp_path / "run")
    records = read_records(tmp_path / "run" / "records.jsonl")
    # Scores after the end are those of the last phases; the end itself is computed by hand in `training/test_schedule.py`.
    rounds = end_of_training(options.training, validations_in(records))
    per_round, final = options.training.steps_per_round, options.training.final_steps
    assert rounds < 20
    assert (summary.rounds, summary.steps) == (rounds, rounds * per_round + final)
    assert {row["round"] for row in records if row["kind"] == "aggregate"} == set(range(rounds))
    assert {row["round"] for row in records if row["kind"] == "experts"} == {rounds - 1, rounds}
    assert {row["round"] for row in records if row["kind"] == "validation"} == set(range(rounds + 1))


@pytest.mark.slow
def test_a_run_that_ends_early_and_is_interrupted_resumes_to_the_same_bits(
    tmp_path: Path, toy_options: RunOptions
) -> None:
    options = patient(toy_options)
    run(options, tmp_path / "whole")

    def interrupt(event: Event) -> None:
        if event.stage == "train" and event.detail.startswith("round 4 of"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(options, tmp_path / "cut", progress=interrupt)
    run(options, tmp_path / "cut", resume=True)
    assert fingerprint(tmp_path / "cut", options) == fingerprint(tmp_path / "whole", options)
