"""The embedded runtime: the same result whatever happens to it, and nothing private outside a site's folder."""

import json
import multiprocessing
import random
import shutil
from pathlib import Path

import pytest

from pfedsam.core.errors import DataError, RunError
from pfedsam.core.tensors import digest
from pfedsam.data.tiling import TilingOptions
from pfedsam.experiment.options import RunOptions
from pfedsam.federation.methods import METHODS
from pfedsam.federation.site_store import SiteStore
from pfedsam.report.records import deterministic_view, read_records
from pfedsam.runtime.in_process import SERVER, run
from pfedsam.runtime.run_folder import open_run


def fingerprint(folder: Path, options: RunOptions) -> dict[str, object]:
    """Everything that must be equal to the bit: shared and local parameters, optimiser, records, scores."""
    found: dict[str, object] = {"shared": (folder / SERVER).read_bytes()}
    for site in options.data.sites:
        state = SiteStore(folder / "sites" / site / "state").load()
        assert state is not None
        found[f"{site} local"] = digest(state.local)
        found[f"{site} optimizer"] = digest(state.optimizer)
        found[f"{site} scores"] = (folder / "sites" / site / "scores.json").read_bytes()
    found["records"] = deterministic_view(read_records(folder / "records.jsonl"))
    return found


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


def test_a_run_killed_at_ten_random_moments_resumes_to_the_same_bits(
    tmp_path: Path, toy_options: RunOptions, reference: Path
) -> None:
    folder, chance = tmp_path / "killed", random.Random(7)
    forked = multiprocessing.get_context("fork")
    kills = 0
    for _ in range(60):
        process = forked.Process(
            target=run, args=(toy_options, folder), kwargs={"resume": (folder / "config.yaml").exists()}
        )
        process.start()
        process.join(chance.uniform(0.2, 1.2) if kills < 10 else 120)
        if process.exitcode is None:
            process.kill()
            process.join()
            kills += 1
        elif process.exitcode == 0:
            if kills >= 10:
                break
            # It finished before it was killed often enough: let it lose its last rounds and go on being killed.
            shutil.rmtree(folder)
    assert kills == 10
    assert process.exitcode == 0
    assert fingerprint(folder, toy_options) == fingerprint(reference, toy_options)


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


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_finishes_with_scores_for_every_site(tmp_path: Path, toy_options: RunOptions, method: str) -> None:
    training = toy_options.training.model_copy(update={"rounds": 1})
    summary = run(toy_options.model_copy(update={"method": method, "training": training}), tmp_path / method)
    assert set(summary.sites) == set(toy_options.data.sites)
    assert summary.mean.in_use is not None
    assert (summary.communication.up_bytes_per_site_round > 0) == (method in ("fedavg", "pfedsam"))


def test_another_configuration_is_refused_and_the_folder_stays(reference: Path, toy_options: RunOptions) -> None:
    before = {path: path.read_bytes() for path in reference.rglob("*") if path.is_file()}
    other = toy_options.model_copy(update={"seed": 4})
    with pytest.raises(RunError, match="seed"):
        run(other, reference, resume=True)
    with pytest.raises(RunError, match="--resume"):
        run(toy_options, reference)
    assert {path: path.read_bytes() for path in reference.rglob("*") if path.is_file()} == before


def test_a_folder_with_other_things_is_refused(tmp_path: Path, toy_options: RunOptions) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(RunError, match="not empty"):
        run(toy_options, tmp_path)


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


def test_summary_names_the_schema(reference: Path) -> None:
    assert json.loads((reference / "summary.json").read_text())["schema"] == 1


def test_tiles_train_and_pictures_are_scored_whole(tmp_path: Path, toy_options: RunOptions) -> None:
    training = toy_options.training.model_copy(update={"rounds": 1})
    data = toy_options.data.model_copy(update={"tiling": TilingOptions(side=48, overlap=0.25)})
    options = toy_options.model_copy(update={"data": data, "training": training})
    whole = run(options, tmp_path / "run")
    again = open_run(tmp_path / "run").evaluate()
    assert again.sites == whole.sites
    site, folder = next(iter(toy_options.data.sites.items()))
    image = sorted((folder / "images").iterdir())[0]
    assert open_run(tmp_path / "run").predict(site, image).shape == (96, 96)


def test_what_is_chosen_on_validation_is_the_model_that_a_site_ends_with(reference: Path) -> None:
    rows = [one for one in read_records(reference / "records.jsonl") if one["kind"] == "validation"]
    aligned = [
        one
        for one in read_records(reference / "records.jsonl")
        if one["kind"] == "round" and one["round"] == rows[-1]["round"]
    ]
    assert rows[-1]["round"] == 4  # after rounds 0 to 3 and the last phase
    assert {one["phase"] for one in aligned} == {"local"}
