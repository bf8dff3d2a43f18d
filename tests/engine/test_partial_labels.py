"""Federations whose sites do not label alike, from their files to the scores."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pfedsam.core import tensors
from pfedsam.core.errors import QuorumError
from pfedsam.core.tensors import digest
from pfedsam.engine.rounds import RoundPolicy, StudyRun
from pfedsam.engine.run import run
from pfedsam.engine.server_files import SERVER
from pfedsam.engine.study_folder import create_study
from pfedsam.experiment.build import build_model, build_site_data, read_sites
from pfedsam.experiment.options import RunOptions
from pfedsam.federation.manifest import read_manifest

ONE_ROUND = {"rounds": 1, "steps_per_round": 2, "batch_size": 2, "final_steps": 0, "phases": "coupled"}


def of(toy: RunOptions, **data: object) -> RunOptions:
    """The toy federation with other options of its data, in one round."""
    content = toy.model_dump(mode="json")
    content["data"] |= data
    content["training"] = {**ONE_ROUND, "optimizer": {"learning_rate": 4e-3}}
    content["method_options"] = {}
    return RunOptions.model_validate(content)


def renumbered(folder: Path, to: Path, table: dict[int, int]) -> Path:
    """A site's folder with other ids in its masks."""
    shutil.copytree(folder, to)
    for path in (to / "masks").iterdir():
        ids = np.asarray(Image.open(path))
        changed = ids.copy()
        for old, new in table.items():
            changed[ids == old] = new
        Image.fromarray(changed).save(path)
    return to


def trained(folder: Path) -> str:
    return digest(tensors.load(folder / SERVER)[0])


def test_a_site_with_a_numbering_of_its_own_gives_the_bits_of_renumbered_files(
    toy_options: RunOptions, tmp_path: Path
) -> None:
    first, *others = toy_options.data.sites
    other = renumbered(toy_options.data.folder(first), tmp_path / "data" / first, {1: 7, 2: 1})
    sites = {name: str(toy_options.data.folder(name)) for name in others}
    own = {first: {"folder": str(other), "labels": {"organ": [7], "lesion": [1]}}, **sites}
    expected = run(of(toy_options), tmp_path / "one")
    found = run(of(toy_options, sites=own), tmp_path / "two")
    assert trained(tmp_path / "one") == trained(tmp_path / "two")
    assert found.sites == expected.sites


def test_a_class_is_not_scored_and_not_moved_where_it_is_not_annotated(toy_options: RunOptions, tmp_path: Path) -> None:
    first, second, third = toy_options.data.sites
    folders = {
        name: str(renumbered(toy_options.data.folder(name), tmp_path / "data" / name, {2: 1}))
        for name in (first, second)
    }
    sites = {
        first: {"folder": folders[first], "not_annotated": ["lesion"]},
        second: {"folder": folders[second], "not_annotated": ["lesion"]},
        third: str(toy_options.data.folder(third)),
    }
    summary = run(of(toy_options, sites=sites), tmp_path / "run")
    lesion = summary.sites[first].in_use.classes["lesion"]  # type: ignore[union-attr]
    assert lesion.dice is None
    assert (lesion.present, lesion.missed, lesion.not_annotated) == (0, 0, summary.sites[first].in_use.cases)  # type: ignore[union-attr]
    assert set(lesion.undefined.values()) == {0}
    whole = summary.sites[first].in_use
    assert whole is not None
    assert whole.dice == whole.classes["organ"].dice
    assert summary.sites[third].in_use.classes["lesion"].not_annotated == 0  # type: ignore[union-attr]
    scores = json.loads((tmp_path / "run" / "sites" / first / "scores.json").read_text())
    assert {case["classes"]["lesion"]["presence"] for case in scores["models"]["personal"]} == {"not_annotated"}
    assert "not annotated" in (tmp_path / "run" / "report.html").read_text()


def test_regions_that_share_ids_run_to_the_end(toy_options: RunOptions, tmp_path: Path) -> None:
    regions = of(toy_options, classes={"whole": [1, 2], "lesion": [2]}, overlap=True)
    summary = run(regions, tmp_path / "run")
    for site in summary.sites.values():
        assert site.in_use is not None
        whole, lesion = site.in_use.classes["whole"], site.in_use.classes["lesion"]
        assert whole.present == site.in_use.cases
        assert (lesion.present or 0) <= whole.present


@pytest.mark.slow
def test_regions_and_ids_of_a_sites_own_give_the_bits_of_renumbered_files(
    toy_options: RunOptions, tmp_path: Path
) -> None:
    first, *others = toy_options.data.sites
    other = renumbered(toy_options.data.folder(first), tmp_path / "data" / first, {2: 9, 1: 5})
    sites = {name: str(toy_options.data.folder(name)) for name in others}
    own = {first: {"folder": str(other), "labels": {"whole": [5, 9], "lesion": [9]}}, **sites}
    regions = {"classes": {"whole": [1, 2], "lesion": [2]}, "overlap": True}
    expected = run(of(toy_options, **regions), tmp_path / "one")
    found = run(of(toy_options, **regions, sites=own), tmp_path / "two")
    assert trained(tmp_path / "one") == trained(tmp_path / "two")
    assert found.sites == expected.sites


@pytest.mark.slow
def test_classes_of_several_ids_give_the_bits_of_files_with_one_id(toy_options: RunOptions, tmp_path: Path) -> None:
    united = {
        name: str(renumbered(folder, tmp_path / "data" / name, {2: 1}))
        for name in toy_options.data.sites
        if (folder := toy_options.data.folder(name))
    }
    expected = run(of(toy_options, sites=united, classes={"any": [1]}), tmp_path / "one")
    found = run(of(toy_options, classes={"any": [1, 2]}), tmp_path / "two")
    assert trained(tmp_path / "one") == trained(tmp_path / "two")
    assert found.sites == expected.sites


def test_a_study_of_several_machines_learns_at_the_join_what_sites_annotate(
    toy_options: RunOptions, tmp_path: Path, make_sites
) -> None:
    options = of(toy_options)
    study = create_study(options, tmp_path / "studies", RoundPolicy(quorum=2))
    manifest = read_manifest(study / "manifest.json")
    assert manifest.class_tensors["class_tokens"] == ("organ", "lesion")
    assert {manifest.class_tensors[n] for n in manifest.class_tensors if n.startswith("output_layers.mlps.1.")} == {
        ("lesion",)
    }
    sites = make_sites(options, manifest)
    for name, folder in sites.folders.items():
        other = renumbered(toy_options.data.folder(name), tmp_path / "data" / name, {2: 1})
        text = (folder / "site.yaml").read_text().replace(str(toy_options.data.folder(name)), str(other))
        (folder / "site.yaml").write_text(f"{text}not_annotated: [lesion]\n")
    sites = type(sites)(sites.folders)
    with pytest.raises(QuorumError, match="class 'lesion' is annotated at none of the sites that joined"):
        StudyRun(study, sites).run()


def test_pictures_with_foreground_are_drawn_as_often_as_asked(toy_options: RunOptions, tmp_path: Path) -> None:
    first = next(iter(toy_options.data.sites))
    folder = tmp_path / "data" / first
    shutil.copytree(toy_options.data.folder(first), folder)
    masks = sorted((folder / "masks").iterdir())
    for path in masks[1:]:
        Image.fromarray(np.zeros_like(np.asarray(Image.open(path)))).save(path)
    options = of(toy_options, sites={first: str(folder)}, foreground_share=0.5)
    (site,) = read_sites(options).values()
    built = build_model(options)
    data = build_site_data(options, first, site.cases, built, tmp_path / "cache")
    drawn = data.draw(built.model, round_=0, phase="any", batch_size=4, steps=3)
    assert all((batch.labels.flatten(1).amax(dim=1) > 0).sum() >= 2 for batch in drawn)
