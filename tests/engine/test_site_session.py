"""A site with volumes: it is trained on slices, scored in 3-D, and drawn with the neighbours of the slice with the largest error."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from pfedsam.core.errors import DataError
from pfedsam.engine.model_selection import Parameters
from pfedsam.engine.run import run
from pfedsam.engine.site_session import SiteScorer
from pfedsam.experiment.build import build_model, read_one_site
from pfedsam.experiment.options import RunOptions
from pfedsam.report.overlays import read_overlays

AFFINE = np.diag([1.0, 1.0, 5.0, 1.0])


@pytest.fixture
def options(toy_options: RunOptions, tmp_path: Path) -> RunOptions:
    drawn = np.random.default_rng(0)
    for site in ("north", "south"):
        for number in range(4):
            truth = np.zeros((40, 32, 4), np.uint8)
            truth[8 + number : 28, 10:22, 1:3] = 1
            values = drawn.normal(100, 10, truth.shape) + 400.0 * truth
            for part, data in (("images", values.astype(np.int16)), ("masks", truth)):
                path = tmp_path / site / part / f"p{number}.nii.gz"
                path.parent.mkdir(parents=True, exist_ok=True)
                nib.save(nib.Nifti1Image(data, AFFINE), path)
    content = toy_options.model_dump()
    content["data"] |= {
        "sites": {site: str(tmp_path / site) for site in ("north", "south")},
        "classes": {"organ": [1]},
        "patient_pattern": None,
    }
    content["training"] |= {"rounds": 1, "shared_warmup_rounds": 0}
    return RunOptions.model_validate(content)


def test_volumes_are_scored_in_three_dimensions_and_drawn_with_their_neighbours(
    options: RunOptions, tmp_path: Path
) -> None:
    summary = run(options, tmp_path / "run")
    assert {entry.personal.unit for entry in summary.sites.values()} == {"mm"}
    for site in options.data.sites:
        folder = tmp_path / "run" / "sites" / site
        cases = json.loads((folder / "scores.json").read_text())["models"]["personal"]
        assert {case["volume_unit"] for case in cases} == {"ml"}
        places = [overlay.place for overlay in read_overlays(folder / "overlays")]
        assert places
        for place in places:
            assert place.startswith("axial slice ")
            assert place.endswith(" of 4 between its neighbours, pixels of 1 x 1 mm, slices 5 mm apart")


def test_a_test_volume_that_does_not_fit_the_model_is_refused_before_anything_is_trained(
    options: RunOptions, tmp_path: Path
) -> None:
    wide = tmp_path / "south" / "images" / "p3.nii.gz"
    for path in (wide, tmp_path / "south" / "masks" / "p3.nii.gz"):
        voxels = np.asarray(nib.load(path).dataobj)
        nib.save(nib.Nifti1Image(voxels, np.diag([4.0, 1.0, 5.0, 1.0])), path)
    rows = [
        f"images/p{n}.nii.gz,masks/p{n}.nii.gz,p{n},{part}" for n, part in enumerate(("train", "train", "val", "test"))
    ]
    (tmp_path / "south" / "manifest.csv").write_text("\n".join(["image,mask,patient,split", *rows]))
    content = options.model_dump()
    content["data"]["volume"] |= {"spacing": 1.0}
    with pytest.raises(DataError, match=r"site 'south', case 'p3'.*at 1 mm its slices have 160 x 32 pixels"):
        run(RunOptions.model_validate(content), tmp_path / "run")
    assert not list((tmp_path / "run").rglob("state/*"))


@pytest.mark.parametrize("tiling", [None, {"side": 16}])
def test_a_mask_of_another_size_than_its_image_is_refused_where_a_case_is_scored(
    toy_options: RunOptions, tmp_path: Path, tiling: dict[str, int] | None
) -> None:
    content = toy_options.model_dump()
    content["data"]["tiling"] = tiling
    options = RunOptions.model_validate(content)
    built = build_model(options)
    site = read_one_site(options, next(iter(options.data.sites)))
    case = replace(site.cases[0], mask=tmp_path / "mask.png")
    Image.fromarray(np.zeros((5, 7), np.uint8)).save(tmp_path / "mask.png")
    scorer = SiteScorer(options, site.name, built)
    with pytest.raises(DataError, match=f"case {case.id!r}: the image has .* pixels, its mask 7 x 5"):
        scorer._score((case,), "personal", Parameters(built.start("shared"), built.start("local")), distances=False)


@pytest.mark.parametrize("single", [False, True])
def test_predictions_keep_the_largest_region_of_an_organ(toy_options: RunOptions, single: bool) -> None:
    content = toy_options.model_dump()
    name = next(iter(content["data"]["classes"]))
    content["evaluation"]["single_region"] = [name] if single else []
    options = RunOptions.model_validate(content)
    built = build_model(options)
    scorer = SiteScorer(options, next(iter(options.data.sites)), built)
    two = np.zeros((6, 9), np.uint8)
    two[:2, :2], two[4:, 5:] = 1, 1
    scorer._predict = lambda _, examples: ((example, two) for example in examples)
    picture = SimpleNamespace(slice=None)
    found = scorer.predict([picture], "personal", Parameters(built.start("shared"), built.start("local")))[0]
    assert (found > 0).sum() == (8 if single else 12)


def test_with_flips_a_mirror_image_gets_the_mirrored_logits(toy_options: RunOptions) -> None:
    content = toy_options.model_dump()
    content["evaluation"]["flips"] = True
    options = RunOptions.model_validate(content)
    built = build_model(options)
    scorer = SiteScorer(options, next(iter(options.data.sites)), built)
    forward = scorer.forward("personal", Parameters(built.start("shared"), built.start("local")))
    pixels = torch.rand(1, 3, built.model.image_size, built.model.image_size)
    with torch.inference_mode():
        torch.testing.assert_close(forward(pixels.flip(-1)), forward(pixels).flip(-1), atol=1e-5, rtol=1e-5)
