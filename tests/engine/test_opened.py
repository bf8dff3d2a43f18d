"""Trained models are opened from three kinds of folders; a folder that was changed is refused, and no other model is used instead."""

import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file
from volume_files import write_nifti

from pfedsam.cli.predicting import with_backbone
from pfedsam.core import tensors
from pfedsam.core.errors import CheckpointError, DataError, OptionError, RunError, StoreError
from pfedsam.core.lock import exclusive
from pfedsam.data.manifest import Case
from pfedsam.data.trained_on import TrainedOn
from pfedsam.engine.opened import OpenSite, open_run
from pfedsam.engine.predict_volume import PredictOptions
from pfedsam.engine.round_policy import RoundPolicy
from pfedsam.engine.run import run
from pfedsam.engine.server_files import SERVER
from pfedsam.engine.site_session import SiteScorer
from pfedsam.engine.study_folder import create_study
from pfedsam.experiment.options import RunOptions
from pfedsam.federation.manifest import read_manifest
from pfedsam.federation.messages import Request
from pfedsam.federation.site_policy import SitePolicy
from pfedsam.report.records import RecordWriter


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("finished") / "run"


@pytest.fixture
def folder(finished: Path, tmp_path: Path, toy_options: RunOptions) -> Path:
    """A finished run of one round, of which each test may change its own copy."""
    if not finished.exists():
        training = toy_options.training.model_copy(update={"rounds": 1, "shared_warmup_rounds": 0, "final_steps": 0})
        run(toy_options.model_copy(update={"training": training}), finished)
    return Path(shutil.copytree(finished, tmp_path / "copy"))


def _image(options: RunOptions) -> tuple[str, Path]:
    site, data = next(iter(options.data.sites.items()))
    return site, min((data / "images").iterdir())


def test_a_site_whose_parameters_were_taken_away_has_no_model(folder: Path, toy_options: RunOptions) -> None:
    site, image = _image(toy_options)
    assert open_run(folder).site(site).predict(image).shape == (96, 96)
    shutil.rmtree(folder / "sites" / site)
    with pytest.raises(RunError, match=rf"'copy' contains no parameters of the site '{site}'.*from a copy of the run"):
        open_run(folder).site(site).predict(image)


def test_a_run_that_another_process_works_on_is_not_scored_anew(folder: Path) -> None:
    opened, before = open_run(folder), (folder / "summary.json").read_bytes()
    with exclusive(folder), pytest.raises(RunError, match="Another process works in 'copy'"):
        opened.evaluate()
    assert (folder / "summary.json").read_bytes() == before


@pytest.mark.parametrize(
    ("before", "after", "kind"),
    [
        ("method: pfedsam", "method: fedmsa", "shared"),
        ("rank: 2", "rank: 3", "shared"),
        ("width: 4", "width: 8", "local"),
    ],
)
def test_a_configuration_changed_after_training_is_refused(
    folder: Path, toy_options: RunOptions, before: str, after: str, kind: str
) -> None:
    config = (folder / "config.yaml").read_text("utf-8").partition("\n")[2]  # less its digest, as version 0.1 wrote it
    assert before in config
    (folder / "config.yaml").write_text(config.replace(before, after), "utf-8")
    with pytest.raises(
        RunError, match=rf"The {kind} parameters in 'copy' .*Restore the config.yaml that the run wrote"
    ):
        open_run(folder).site(next(iter(toy_options.data.sites)))


def test_a_model_on_other_weights_of_its_backbone_is_refused(
    folder: Path, toy_options: RunOptions, caplog: pytest.LogCaptureFixture
) -> None:
    site, image = _image(toy_options)
    mask, summary = open_run(folder).site(site).predict(image), (folder / "summary.json").read_bytes()
    weights = Path(toy_options.model.backbone) / "model.safetensors"
    original, changed = weights.read_bytes(), load_file(weights)
    next(iter(changed.values())).view(-1)[0] += 1.0
    save_file(changed, weights, {"format": "pt"})
    try:
        with pytest.raises(RunError, match=r"The backbone of the run in 'copy' has other weights now .*Put them back"):
            open_run(folder).evaluate()
    finally:
        weights.write_bytes(original)  # other tests use the same folder
    assert (folder / "summary.json").read_bytes() == summary
    assert (open_run(folder).site(site).predict(image) == mask).all()
    assert caplog.text == ""


def test_the_classes_of_a_model_keep_their_order(folder: Path) -> None:
    with pytest.raises(
        OptionError, match="in the order organ, lesion, which is that of its outputs, and not lesion, organ"
    ):
        open_run(folder, ["data.classes={lesion: [7], organ: [3]}"])
    assert open_run(folder, ["data.classes={organ: [3], lesion: [7]}"]).options.data.classes["lesion"] == [7]


def test_a_backbone_at_another_place_can_be_given(folder: Path, toy_options: RunOptions, tmp_path: Path) -> None:
    """As on the machine of a hospital that gets the folder of a study from its coordinator."""
    site, image = _image(toy_options)
    original, copy = Path(toy_options.model.backbone), tmp_path / "models: SAM, v2"
    mask = open_run(folder).site(site).predict(image)
    shutil.copytree(original, copy)
    original.rename(original.with_name("moved"))
    try:
        with pytest.raises(CheckpointError, match=r"no such file or folder on this machine.*--backbone"):
            open_run(folder)
        opened = open_run(folder, with_backbone(str(copy)))
    finally:
        original.with_name("moved").rename(original)  # other tests use the same folder
    assert (opened.site(site).predict(image) == mask).all()
    weights = load_file(copy / "model.safetensors")
    next(iter(weights.values())).view(-1)[0] += 1.0
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(RunError, match="has other weights now"):
        open_run(folder, with_backbone(str(copy)))


def test_predictions_of_several_threads_wait_for_each_other(
    folder: Path, toy_options: RunOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All sites use one model in memory, into which their parameters are written."""
    opened, inside, most = open_run(folder), [], []
    sites = {name: opened.site(name) for name in toy_options.data.sites}
    images = {name: min((data / "images").iterdir()) for name, data in toy_options.data.sites.items()}
    alone = {name: site.predict(images[name]) for name, site in sites.items()}
    one = SiteScorer.predict

    def watched(self, *args):
        inside.append(self)
        most.append(len(inside))
        time.sleep(0.02)
        found = one(self, *args)
        inside.pop()
        return found

    monkeypatch.setattr(SiteScorer, "predict", watched)
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(lambda name: sites[name].predict(images[name]), alone))
    assert set(most) == {1}
    assert all((found == alone[name]).all() for name, found in zip(alone, together, strict=True))


def test_a_folder_of_a_comparison_names_the_runs_in_it(folder: Path, tmp_path: Path) -> None:
    for name in ("fedavg", "seed0/pfedsam"):
        shutil.copytree(folder, tmp_path / "both" / name)
    with pytest.raises(
        RunError,
        match=r"'both' contains several runs: fedavg, seed0/pfedsam\. Give one of them, such as .*/both/fedavg\.",
    ):
        open_run(tmp_path / "both")


def test_a_folder_without_a_run_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="contains no run with a finished round"):
        open_run(tmp_path)
    with pytest.raises(RunError, match="There is no folder 'nothing'"):
        open_run(tmp_path / "nothing")


def test_a_run_that_is_not_finished_is_opened_with_a_warning(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    open_run(folder)
    assert caplog.text == ""
    (folder / "summary.json").unlink()  # which a run gets at its end
    open_run(folder)
    assert "The run in 'copy' is not finished" in caplog.text
    assert "those after 1 of 1 round(s). Continue it first with --resume" in caplog.text


@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_a_run_without_its_records_is_not_scored_again(folder: Path, damage: str) -> None:
    opened, before, records = open_run(folder), (folder / "summary.json").read_bytes(), folder / "records.jsonl"
    first = records.read_bytes().splitlines(keepends=True)[0]
    records.unlink() if damage == "missing" else records.write_bytes(first)
    with pytest.raises(StoreError, match=r"records\.jsonl (is missing|has 1 record).*Restore the file from a copy"):
        opened.evaluate()
    assert (folder / "summary.json").read_bytes() == before


def test_a_run_whose_shared_parameters_were_lost_says_so(tmp_path: Path) -> None:
    with RecordWriter(tmp_path / "records.jsonl") as records:
        records.write({"kind": "timing", "round": 3})
    (tmp_path / "config.yaml").touch()
    with pytest.raises(StoreError, match="With it the shared parameters of every round are lost"):
        open_run(tmp_path)


def test_a_site_says_which_of_its_models_it_uses(folder: Path, toy_options: RunOptions) -> None:
    opened = open_run(str(folder))
    assert opened.site_names == list(toy_options.data.sites)
    assert {opened.site(name).uses for name in opened.site_names} <= {"personal", "shared"}
    with pytest.raises(RunError, match="no site 'west'; it has site_1"):
        opened.site("west")


def test_a_study_at_the_coordinator_has_no_local_parameters_and_no_test_images(folder: Path) -> None:
    shutil.rmtree(folder / "sites")
    (folder / "policy.json").write_text("{}")
    opened = open_run(folder)
    with pytest.raises(RunError, match="They are at the site"):
        opened.site(opened.site_names[0])
    with pytest.raises(RunError, match="study between hospitals"):
        opened.evaluate()


def test_a_hospital_that_has_left_a_study_keeps_its_model(tmp_path: Path, toy_options: RunOptions, make_sites) -> None:
    """The model is opened as before, and requests stay refused."""
    training = toy_options.training.model_copy(update={"rounds": 1, "shared_warmup_rounds": 0, "final_steps": 0})
    study = create_study(toy_options.model_copy(update={"training": training}), tmp_path / "studies", RoundPolicy())
    manifest, shared = read_manifest(study / "manifest.json"), tensors.to_bytes(tensors.load(study / SERVER)[0])
    sites, (site, image) = make_sites(toy_options, manifest), _image(toy_options)
    folder, train = sites.folders[site], Request("train", manifest.study, manifest.digest, 0, shared=shared)
    for request in (train, replace(train, task="test", round=1)):
        assert sites.agents[site].handle(request).refused is None
    before = open_run(folder).site(site).predict(image)
    assert SitePolicy(folder).withdraw(manifest.study)
    for asked in (None, manifest.study):
        assert (open_run(folder, study=asked).site(site).predict(image) == before).all()
    assert sites.agents[site].handle(train).refused == "left"


def test_a_model_can_be_asked_for_by_name(folder: Path, toy_options: RunOptions) -> None:
    site, image = _image(toy_options)
    opened = open_run(folder)
    masks = {name: opened.site(site, name).predict(image) for name in ("in-use", "personal", "shared")}
    assert opened.site(site, "personal").uses == "personal"
    assert opened.site(site, "shared").uses == "shared"
    assert (masks["in-use"] == masks[opened.site(site).uses]).all()


def test_a_run_that_is_open_does_not_depend_on_the_working_directory(
    folder: Path, toy_options: RunOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site, image = _image(toy_options)
    expected = open_run(folder).site(site).predict(image)
    monkeypatch.chdir(folder.parent)
    opened = open_run(folder.name)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert (opened.site(site).predict(image) == expected).all()


def test_the_averaged_model_is_not_used_in_place_of_a_fine_tuned_copy(toy_options: RunOptions, tmp_path: Path) -> None:
    training = toy_options.training.model_copy(update={"rounds": 1, "shared_warmup_rounds": 0, "fine_tuning_rounds": 1})
    run(toy_options.model_copy(update={"training": training, "method": "fedavg-finetuned"}), tmp_path / "run")
    site, image = _image(toy_options)
    opened = open_run(tmp_path / "run")
    shared = opened.site(site, "shared").predict(image)
    shutil.rmtree(tmp_path / "run" / "sites" / site)
    for wanted in ("in-use", "personal"):
        with pytest.raises(RunError, match=f"no parameters of the site '{site}'"):
            opened.site(site, wanted)
    assert (opened.site(site, "shared").predict(image) == shared).all()
    (tmp_path / "run" / "onboarding.json").write_text("{}")  # a site that was onboarded has no copy
    assert (opened.site(site).predict(image) == shared).all()


def test_a_model_that_the_method_lacks_is_named(folder: Path, toy_options: RunOptions, tmp_path: Path) -> None:
    training = toy_options.training.model_copy(
        update={"rounds": 1, "shared_warmup_rounds": 0, "final_steps": 0, "phases": "coupled"}
    )
    run(toy_options.model_copy(update={"training": training, "method": "fedavg"}), tmp_path / "fedavg")
    site, _ = _image(toy_options)
    with pytest.raises(RunError, match="A run of the method 'fedavg' has no personal model; it has the shared model"):
        open_run(tmp_path / "fedavg").site(site, "personal")


def test_an_image_far_from_those_of_the_training_is_told(
    folder: Path, toy_options: RunOptions, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    site, image = _image(toy_options)
    with Image.open(image) as picture:
        values = np.asarray(picture.convert("L"), dtype=np.uint16)
    dark = tmp_path / "dark.png"
    Image.fromarray(values * 16).save(dark)  # 12 bits in 16
    opened = open_run(folder)
    opened.site(site).predict(image)
    assert caplog.text == ""
    opened.site(site).predict(dark)
    assert "dark.png: it is much darker than the images that the site trained on" in caplog.text


def test_a_volume_for_a_model_of_pictures_is_a_warning(
    folder: Path, toy_options: RunOptions, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    site, _ = _image(toy_options)
    scan = write_nifti(tmp_path / "scan.nii", np.arange(16 * 16 * 2, dtype=np.int16).reshape(16, 16, 2))
    opened = open_run(folder).site(site)
    said = f"the model of site '{site}' was trained on pictures (PNG, JPEG or TIFF) and is used on volumes"
    assert opened.predict(scan).shape == (2, 16, 16)
    assert said in caplog.text
    caplog.clear()
    opened.predict_volume(Case(site, "scan", scan, None, "scan", volume=True), PredictOptions())
    assert said in caplog.text


def test_a_test_case_that_was_changed_is_not_scored(folder: Path, toy_options: RunOptions, tmp_path: Path) -> None:
    site, _ = _image(toy_options)
    data = Path(shutil.copytree(toy_options.data.sites[site], tmp_path / "data"))
    config = (folder / "config.yaml").read_text("utf-8").partition("\n")[2]
    (folder / "config.yaml").write_text(config.replace(str(toy_options.data.sites[site]), str(data)))
    case = json.loads((folder / "sites" / site / "split.json").read_text())["test"][0]
    (mask,) = (data / "masks").glob(f"{case}.*")
    with Image.open(mask) as picture:
        Image.fromarray(np.flipud(np.asarray(picture))).save(mask)
    with pytest.raises(DataError, match=rf"site '{site}', case '{case}': image or mask was changed"):
        open_run(folder).evaluate()


def test_an_image_that_is_predicted_has_the_spacing_of_the_site(
    toy_options: RunOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = next(iter(toy_options.data.sites))
    volume = toy_options.data.volume.model_copy(update={"spacing_unknown": [site]})
    options = toy_options.model_copy(update={"data": toy_options.data.model_copy(update={"volume": volume})})
    seen: list[Case] = []
    monkeypatch.setattr("pfedsam.engine.opened.predict_volume_file", lambda *given: seen.append(given[3]))
    case = Case(site, "new", Path("new.nii"), None, "new", volume=True)
    OpenSite(site, "personal", options, None, {}).predict_volume(case, PredictOptions())  # type: ignore[arg-type]
    assert seen[0].spacing_lost


def test_a_volume_is_cut_in_the_plane_of_the_training_volumes(
    tmp_path: Path, toy_options: RunOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its largest spacing is along the body's left and right."""
    seen: list[RunOptions] = []
    monkeypatch.setattr("pfedsam.engine.opened.predict_volume_file", lambda *given: seen.append(given[0]))
    path = write_nifti(tmp_path / "a.nii", np.zeros((4, 5, 6), np.int16), np.diag([1.5, 1, 1, 1]))
    case = Case("north", "a", path, None, "a", volume=True)
    for plane in ("axial", None):
        site = OpenSite("north", "personal", toy_options, None, {}, TrainedOn(plane=plane))  # type: ignore[arg-type]
        site.predict_volume(case, PredictOptions())
    assert [options.data.volume.axis for options in seen] == ["axial", "auto"]


def test_a_model_of_several_sequences_predicts_from_all_of_them_or_not_at_all(
    tmp_path: Path, toy_options: RunOptions, caplog: pytest.LogCaptureFixture
) -> None:
    """With the sequences named in a manifest, and no endings in the configuration."""
    draw, sites = np.random.default_rng(0), {}
    for name in ("north", "south"):
        rows = ["image,mask,patient,case,split"]
        for part in ("train", "val", "test"):
            ids = (draw.random((16, 16, 2)) < 0.3).astype(np.uint8)
            for file in (f"{part}_t1", f"{part}_t2"):
                write_nifti(tmp_path / name / f"{file}.nii", draw.integers(0, 900, ids.shape).astype(np.int16))
            write_nifti(tmp_path / name / f"{part}.nii", ids)
            rows.append(f"{part}_t1.nii;{part}_t2.nii,{part}.nii,{part},{part},{part}")
        (tmp_path / name / "manifest.csv").write_text("\n".join(rows))
        sites[name] = str(tmp_path / name)
    content = toy_options.model_dump(mode="json")
    content["data"] |= {"sites": sites, "classes": {"organ": [1]}, "patient_pattern": None}
    content["training"] |= {"rounds": 1, "shared_warmup_rounds": 0, "final_steps": 0}
    run(RunOptions.model_validate(content), tmp_path / "run")

    first, second = (tmp_path / "north" / f"test_{one}.nii" for one in ("t1", "t2"))
    refusing = open_run(tmp_path / "run").site("north")
    assert refusing.trained_on == TrainedOn(plane="axial", sequences=2)
    alone = Case("north", "a", first, None, "a", volume=True)
    both = Case("north", "a", first, None, "a", volume=True, sequences=(second,))
    with pytest.raises(DataError, match=r"case 'test_t1': the model was trained on 2 sequences .*this is one of 1"):
        refusing.predict(first)
    with pytest.raises(DataError, match=r"case 'a': the model was trained on 2 sequences"):
        refusing.predict_volume(alone, PredictOptions())
    paired = open_run(tmp_path / "run", ["data.volume.channels=['_t1', '_t2']"]).site("north")
    np.testing.assert_array_equal(paired.predict(first), refusing.predict_volume(both, PredictOptions()).classes)
    with pytest.raises(DataError, match=r"'test_t2\.nii' does not end with '_t1'"):
        paired.predict(second)
    picture = tmp_path / "a.png"
    Image.fromarray(np.eye(16, dtype=np.uint8)).save(picture)
    caplog.clear()
    assert paired.predict(picture).shape == (16, 16)
    assert "was trained on volumes (NIfTI or DICOM) and is used on pictures" in caplog.text
