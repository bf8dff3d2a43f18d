"""Federations whose sites annotate different classes, from their files to the scores."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pfedsam.core import tensors
from pfedsam.core.errors import OptionError, QuorumError
from pfedsam.core.tensors import digest
from pfedsam.engine.round_policy import RoundPolicy
from pfedsam.engine.rounds import StudyRun
from pfedsam.engine.run import run
from pfedsam.engine.server_files import SERVER
from pfedsam.engine.study_folder import build_manifest, create_study
from pfedsam.experiment.build import build_method, build_model, build_site_data, read_sites
from pfedsam.experiment.options import RunOptions
from pfedsam.federation.aggregation import Annotations
from pfedsam.federation.manifest import read_manifest
from pfedsam.federation.server import aggregate
from pfedsam.federation.update import Update

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


def unet(method: str, **own: object) -> RunOptions:
    """A U-Net at the sites a and b, of which b does not annotate the class y."""
    sites = {"a": "a", "b": {"folder": "b", "not_annotated": ["y"]}}
    return RunOptions.model_validate(
        {
            "method": method,
            "data": {"sites": sites, "classes": {"x": [1], "y": [2]}},
            "model": {"unet": {"channels": [4, 8], **own}, "image_size": 32},
        }
    )


@pytest.mark.parametrize("method", ["unet-fedavg", "unet-fedbn"])
def test_a_class_of_a_unet_is_averaged_over_the_sites_that_annotate_it(method: str) -> None:
    options = unet(method)
    built = build_model(options)
    manifest = build_manifest(options, built, "0" * 16, {})
    last = "unet.model.2.1.conv.unit0.conv"
    assert manifest.class_tensors == {f"{last}.weight": ("x", "y"), f"{last}.bias": ("x", "y")}
    state = build_method(options).server.init(built.start("shared"))
    a, b = ({name: value + torch.randn(value.shape) for name, value in state.shared.items()} for _ in range(2))
    after, _ = aggregate(
        state,
        [Update("a", 0, a, 3), Update("b", 0, b, 1)],
        manifest.spec,
        {"a": 3, "b": 1},
        build_method(options).server,
        annotations=Annotations(manifest.class_tensors, {"b": ("y",)}),
    )
    for name in manifest.class_tensors:
        assert torch.equal(after.shared[name][1], a[name][1])  # y: the values of a alone
        assert torch.allclose(after.shared[name][0], (3 * a[name][0] + b[name][0]) / 4)  # x: the mean of both


def test_a_unet_whose_classes_have_no_rows_is_refused_where_a_site_does_not_annotate_all(
    toy_options: RunOptions, tmp_path: Path
) -> None:
    first, second, third = toy_options.data.sites
    folder = renumbered(toy_options.data.folder(first), tmp_path / "data" / first, {2: 1})
    others = {name: str(toy_options.data.folder(name)) for name in (second, third)}
    partial = of(toy_options, sites={first: {"folder": str(folder), "not_annotated": ["lesion"]}, **others})
    model = unet("unet-fedavg", residual_units=0).model
    with pytest.raises(OptionError, match=f"site '{first}' does not annotate all classes.*residual_units to 1 or more"):
        run(partial.model_copy(update={"method": "unet-fedavg", "model": model}), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    alone = unet("unet-local", residual_units=0)
    assert build_manifest(alone, build_model(alone), "0" * 16, {}).class_tensors == {}


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
