"""A new site joins a finished federation: the shared parameters do not change, and the folder can be used for predictions."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from pfedsam.core import tensors
from pfedsam.core.errors import DataError, OptionError, RunError
from pfedsam.data.manifest import Case, Site
from pfedsam.data.synthetic import SyntheticOptions, write_sites
from pfedsam.data.trained_on import TrainedOn
from pfedsam.engine import onboarding
from pfedsam.engine.onboarding import (
    Newcomer,
    _plane,
    _refuse_other_sequences,
    _warn_of_other_kind,
    onboard,
    warm_start,
)
from pfedsam.engine.opened import open_run
from pfedsam.engine.run import run
from pfedsam.engine.server_files import SERVER, read_server
from pfedsam.experiment.options import RunOptions
from pfedsam.federation.site_store import SiteStore
from pfedsam.report.onboarded import ALONE, EVERYTHING, LOCAL_PART, NOTHING, WAYS
from pfedsam.report.summary_file import read_summary


@pytest.fixture(scope="session")
def new_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("new")
    write_sites(folder, SyntheticOptions(sites=1, cases=8, side=96), seed=9)
    return next(path for path in folder.iterdir() if path.is_dir())


@pytest.fixture
def short(toy_options: RunOptions) -> RunOptions:
    training = toy_options.training.model_copy(update={"rounds": 1, "shared_warmup_rounds": 0})
    return toy_options.model_copy(update={"training": training})


@pytest.mark.slow
def test_a_new_site_gets_its_local_part_and_nothing_else_changes(
    tmp_path: Path, short: RunOptions, new_site: Path
) -> None:
    runtime = short.runtime.model_copy(update={"cache_folder": tmp_path / "cache of the run"})
    run(short.model_copy(update={"runtime": runtime}), tmp_path / "run")
    shutil.rmtree(tmp_path / "cache of the run")  # as if the run had been moved to another machine
    before = (tmp_path / "run" / SERVER).read_bytes()
    new = Newcomer("newcomer", new_site, labels=2, steps=3)
    found = onboard(open_run(tmp_path / "run"), new, tmp_path / "out")
    assert list(found.ways) == [NOTHING, LOCAL_PART, EVERYTHING, ALONE]
    assert (found.trained_on, found.in_use) == (2, LOCAL_PART)
    assert (tmp_path / "run" / SERVER).read_bytes() == before
    assert not (tmp_path / "cache of the run").exists()
    assert [path.name for path in (tmp_path / "out" / "cache").iterdir()] == ["newcomer"]

    shared, kept = (tensors.load(folder / SERVER)[0] for folder in (tmp_path / "run", tmp_path / "out"))
    assert tensors.digest(shared) == tensors.digest(kept)
    described = [read_server(folder)[1] for folder in (tmp_path / "run", tmp_path / "out")]
    assert described[0]["backbone"] == described[1]["backbone"]
    state = SiteStore(tmp_path / "out" / "sites" / "newcomer" / "state").load()
    assert state is not None
    start = open_run(tmp_path / "run").built.start("local")
    assert any(not torch.equal(state.local[name], start[name]) for name in start)

    assert read_summary(tmp_path / "out" / "summary.json").steps == 3
    opened = open_run(tmp_path / "out")
    image = sorted((new_site / "images").iterdir())[0]
    assert opened.site("newcomer").predict(image).shape == (96, 96)
    again = opened.evaluate()
    assert again.sites["newcomer"].personal is not None
    assert again.sites["newcomer"].personal.dice == found.ways[LOCAL_PART]["dice"]
    assert again.sites["newcomer"].shared.dice == found.ways[NOTHING]["dice"]
    assert (again.rounds, again.steps) == (1, 3)

    content = json.loads((tmp_path / "out" / "onboarding.json").read_text())
    assert content["ways"][ALONE] == found.ways[ALONE]
    assert onboard(open_run(tmp_path / "run"), new, tmp_path / "out") == found  # read, not trained again
    page = (tmp_path / "out" / "report.html").read_text()
    assert "onboarding of newcomer with pfedsam" in page
    assert "everything trained from the backbone, without the federation" in page
    assert "Sent by a site per round" not in page
    with pytest.raises(RunError, match="'out' contains a finished onboarding already, of another site, federation"):
        onboard(open_run(tmp_path / "run"), Newcomer("newcomer", new_site, labels=3, steps=3), tmp_path / "out")
    with pytest.raises(OptionError, match="already"):
        onboard(open_run(tmp_path / "run"), Newcomer(next(iter(short.data.sites)), new_site, 2), tmp_path / "x")


@pytest.mark.slow
def test_the_result_of_a_site_whose_data_changed_is_not_returned(
    tmp_path: Path, short: RunOptions, new_site: Path
) -> None:
    run(short.model_copy(update={"method": "fedavg"}), tmp_path / "run")
    site = shutil.copytree(new_site, tmp_path / "site")
    opened, new = open_run(tmp_path / "run"), Newcomer("newcomer", site, labels=2, steps=1)
    found = onboard(opened, new, tmp_path / "out")
    parts = json.loads((tmp_path / "out" / "sites" / "newcomer" / "split.json").read_text())
    test, other = parts["test"][0], parts["train"][0]
    mask = next((site / "masks").glob(f"{test}.*"))
    before = mask.read_bytes()
    mask.write_bytes(next((site / "masks").glob(f"{other}.*")).read_bytes())
    with pytest.raises(DataError, match=f"'newcomer', case '{test}': image or mask was changed.*in another folder"):
        onboard(opened, new, tmp_path / "out")
    mask.write_bytes(before)
    assert onboard(opened, new, tmp_path / "out") == found


@pytest.mark.slow
def test_an_onboarding_that_was_stopped_can_be_given_again(
    tmp_path: Path, short: RunOptions, new_site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(short.model_copy(update={"method": "fedavg"}), tmp_path / "run")
    opened, new, out = open_run(tmp_path / "run"), Newcomer("newcomer", new_site, labels=2, steps=1), tmp_path / "out"
    read = onboarding.build_site_data

    def stopped(*given: Any) -> None:
        read(*given)
        raise KeyboardInterrupt

    monkeypatch.setattr(onboarding, "build_site_data", stopped)
    with pytest.raises(KeyboardInterrupt):
        onboard(opened, new, out)
    assert (out / "cache").exists()
    monkeypatch.undo()
    (out / ".onboarding.key.x1.tmp").touch()  # of a call that was killed
    found = onboard(opened, new, out)
    page = (out / "report.html").read_bytes()
    (out / "report.html").unlink()  # as if the disk had been full
    assert onboard(opened, new, out) == found
    assert (out / "report.html").read_bytes() == page


@pytest.mark.slow
def test_a_method_without_a_local_part_has_the_shared_model_in_use_also_from_the_coordinators_folder(
    tmp_path: Path, short: RunOptions, new_site: Path
) -> None:
    run(short.model_copy(update={"method": "fedavg"}), tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "sites")  # as a study between hospitals: the coordinator has no folder of a site
    (tmp_path / "run" / "policy.json").write_text("{}")
    found = onboard(open_run(tmp_path / "run"), Newcomer("newcomer", new_site, 2, steps=2), tmp_path / "out")
    assert list(found.ways) == [NOTHING, EVERYTHING, ALONE]
    assert found.in_use == NOTHING
    assert read_summary(tmp_path / "out" / "summary.json").steps == 0


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fedper", "unet-fedbn"])
def test_no_shared_model_is_reported_where_the_method_has_none(
    tmp_path: Path, short: RunOptions, new_site: Path, method: str
) -> None:
    content = short.model_dump(mode="json") | {"method": method, "method_options": {}}
    content["training"]["phases"] = "coupled"
    if method == "unet-fedbn":
        content["model"] = {"unet": {"channels": [4, 8], "residual_units": 1}, "image_size": 64}
    run(RunOptions.model_validate(content), tmp_path / "run")
    found = onboard(open_run(tmp_path / "run"), Newcomer("newcomer", new_site, 2, steps=2), tmp_path / "out")
    assert list(found.ways) == [LOCAL_PART, EVERYTHING, ALONE]
    assert found.in_use == LOCAL_PART
    summary = read_summary(tmp_path / "out" / "summary.json")
    assert (summary.sites["newcomer"].shared, summary.mean.shared) == (None, None)
    assert summary.sites["newcomer"].personal is not None
    assert summary.sites["newcomer"].personal.dice == found.ways[LOCAL_PART]["dice"]
    assert WAYS[NOTHING] not in (tmp_path / "out" / "report.html").read_text()
    assert not (tmp_path / "out" / "others" / NOTHING).exists()


def test_a_site_with_another_number_of_sequences_does_not_join() -> None:
    def site(number: int) -> Site:
        further = (Path("b"),) * (number - 1)
        return Site("s", Path(), (Case("s", "c", Path("a"), None, "c", "train", volume=True, sequences=further),))

    known = [TrainedOn(), TrainedOn(sequences=2)]
    _refuse_other_sequences(known, site(2))
    _refuse_other_sequences(known[:1], site(1))  # it is not known
    with pytest.raises(
        DataError, match=r"site 's': its cases have 1 sequence\(s\), and those of the federation have 2"
    ):
        _refuse_other_sequences(known, site(1))


def test_a_new_site_is_cut_in_the_plane_of_the_federation() -> None:
    axial, coronal, unknown = TrainedOn(plane="axial"), TrainedOn(plane="coronal"), TrainedOn()
    assert _plane([axial, axial, unknown]) == "axial"
    assert _plane([axial, coronal]) is None
    assert _plane([unknown]) is None


def test_a_site_with_images_of_another_kind_joins_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    def site(*, volume: bool) -> Site:
        return Site("s", Path(), (Case("s", "c", Path("a"), None, "c", "train", volume=volume),))

    known = [TrainedOn(), TrainedOn(sequences=1)]
    _warn_of_other_kind(known, site(volume=True))
    _warn_of_other_kind(known[:1], site(volume=False))  # it is not known
    assert caplog.text == ""
    _warn_of_other_kind(known, site(volume=False))
    assert "site 's' has pictures (PNG, JPEG or TIFF), and the federation was trained on volumes" in caplog.text


def test_own_copies_of_shared_parameters_begin_at_the_federations() -> None:
    local = {"experts.w": torch.zeros(2), "personal_output_layers.w": torch.zeros(2)}
    origins = {"personal_output_layers.w": "output_layers.w"}
    found = warm_start(local, {"output_layers.w": torch.ones(2)}, origins)
    assert found["personal_output_layers.w"].tolist() == [1, 1]
    assert found["experts.w"].tolist() == [0, 0]
    assert local["personal_output_layers.w"].tolist() == [0, 0]
    assert warm_start({"experts.w": torch.zeros(2)}, {}, origins).keys() == {"experts.w"}
