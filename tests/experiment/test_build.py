"""Options are turned into objects; options that do not fit together are refused with their names."""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from volume_files import write_nifti

from pfedsam.core.errors import DataError, OptionError, PfedsamError
from pfedsam.core.tensors import digest
from pfedsam.data.manifest import Case, Site
from pfedsam.data.manifest_lines import Split
from pfedsam.data.tiling import TilingOptions
from pfedsam.data.volume_case import open_case
from pfedsam.experiment.build import (
    build_images,
    build_label_form,
    build_model,
    build_sites,
    check_flips,
    check_kinds,
    divide_site,
    read_sites,
    refuse_too_few_sites,
    single_regions,
    with_pool,
    with_site_spacing,
)
from pfedsam.experiment.options import RunOptions
from pfedsam.model.build import build_segmenter


def method(options: RunOptions, name: str) -> RunOptions:
    return options.model_copy(update={"method": name})


def test_several_threads_build_their_models_one_after_the_other(
    toy_options: RunOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The initial weights of the small U-Net come from torch's generator of the process, which is seeded for them."""
    alone, inside, most = digest(build_model(toy_options).initial), [], []

    def watched(*args: Any, **options: Any) -> Any:
        inside.append(args)
        most.append(len(inside))
        time.sleep(0.02)
        found = build_segmenter(*args, **options)
        inside.pop()
        return found

    monkeypatch.setattr("pfedsam.experiment.build.build_segmenter", watched)
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(build_model, 2 * [toy_options]))
    assert most == [1, 1]
    assert [digest(one.initial) for one in together] == [alone, alone]


def test_every_process_of_a_run_starts_with_the_same_model(toy_options: RunOptions) -> None:
    one, other = build_model(toy_options), build_model(toy_options)
    assert one.backbone == other.backbone
    assert all(torch.equal(one.initial[name], other.initial[name]) for name in one.initial)
    assert set(one.initial) == {*one.partition.shared, *one.partition.local}
    start = one.start("shared")
    next(iter(start.values())).add_(1)
    assert all(torch.equal(one.initial[name], other.initial[name]) for name in one.initial)


def test_a_site_needs_training_and_test_cases(toy_options: RunOptions) -> None:
    cases = tuple(Case("a", f"c{i}", Path(f"c{i}.png"), None, "one patient") for i in range(4))
    with pytest.raises(
        DataError, match=r"site 'a' has no test case: its 4 case\(s\) belong to one patient, 'one patient'"
    ):
        divide_site(toy_options, Site("a", Path(), cases))


@pytest.mark.parametrize("length", [1, 5000])
def test_a_missing_folder_of_splits_is_named(toy_options: RunOptions, tmp_path: Path, length: int) -> None:
    data = toy_options.data.model_copy(update={"split_folder": tmp_path / ("nope" * length)})
    with pytest.raises(
        DataError, match=r"data.split_folder: there is no folder '.*nope'; write it by `pfedsam data split`"
    ):
        build_sites(toy_options.model_copy(update={"data": data}))


def test_the_split_covers_every_case_once(toy_options: RunOptions) -> None:
    whole, split = read_sites(toy_options), build_sites(toy_options)
    for name, site in split.items():
        parts = [{case.id for case in site.of(part)} for part in ("train", "val", "test")]
        assert set().union(*parts) == {case.id for case in whole[name].cases}
        assert sum(map(len, parts)) == len(whole[name].cases)


def test_a_pooled_site_has_the_training_cases_of_all_and_a_name_of_its_own(toy_options: RunOptions) -> None:
    sites = build_sites(toy_options)
    assert with_pool(method(toy_options, "pfedsam"), sites) == sites
    pooled = with_pool(method(toy_options, "centralized"), sites)
    (pool,) = pooled.keys() - sites.keys()
    assert next(iter(pooled)) == pool
    assert len(pooled[pool].cases) == sum(len(site.of("train")) for site in sites.values())
    assert with_pool(method(toy_options, "centralized"), dict(reversed(sites.items())))[pool] == pooled[pool]
    taken = {pool: replace(next(iter(sites.values())), name=pool)}
    with pytest.raises(OptionError, match="Rename the site"):
        with_pool(method(toy_options, "centralized"), taken)


def test_a_server_step_that_needs_more_sites(toy_options: RunOptions) -> None:
    one = dict(list(toy_options.data.sites.items())[:1])
    few = toy_options.model_copy(update={"data": toy_options.data.model_copy(update={"sites": one})})
    refuse_too_few_sites(method(few, "fedavg"))
    with pytest.raises(OptionError, match=r"trimmed-mean needs updates of at least \d sites.*there are 1"):
        refuse_too_few_sites(method(few, "trimmed-mean"))


def test_where_all_classes_are_annotated_the_label_form_names_none(toy_options: RunOptions) -> None:
    cases = next(iter(read_sites(toy_options).values())).cases
    assert build_label_form(toy_options, cases).annotated is None


@pytest.mark.parametrize(
    ("said", "header", "expected"),
    [
        ({}, [1, 1, 1], None),
        ({}, [2, 2, 5], (5, 2, 2)),
        ({"spacing": [4, 3, 3]}, [1, 1, 1], (4, 3, 3)),
        ({"spacing": [4, 3, 3]}, [2, 2, 5], (5, 2, 2)),
        ({"lost": True}, [2, 2, 5], None),
        ({"lost": True, "spacing": [4, 3, 3]}, [2, 2, 5], (4, 3, 3)),
    ],
)
def test_volumes_have_the_spacing_of_their_site_in_training_and_in_prediction(
    said: dict[str, object], header: list[float], expected: tuple[float, ...] | None, tmp_path: Path
) -> None:
    def without_codes(fields: Any) -> None:
        fields["sform_code"] = fields["qform_code"] = 0
        fields["pixdim"][1:4] = header

    for name in ("images", "masks"):
        write_nifti(tmp_path / "north" / name / "a.nii", np.zeros((6, 5, 4), np.uint8), change=without_codes)
    site = {"folder": str(tmp_path / "north"), **({"spacing": said["spacing"]} if "spacing" in said else {})}
    data = {"sites": {"north": site}, "classes": {"liver": [1]}}
    options = RunOptions.model_validate(
        {"data": {**data, "volume": {"spacing_unknown": ["north"] if "lost" in said else []}}}
    )
    (case,) = read_sites(options)["north"].cases
    new = with_site_spacing(options, Case("north", "new", case.image, None, "new", volume=True))
    for one in (case, new):
        assert open_case(one, options.data.image, options.data.volume).spacing_mm == expected


@pytest.mark.parametrize(
    ("flips", "volumes", "refused"),
    [(None, False, False), (None, True, True), (True, True, False), (False, False, True)],
)
def test_mirror_images_are_averaged_only_by_models_that_were_trained_with_them(
    flips: bool | None, volumes: bool, refused: bool, toy_options: RunOptions
) -> None:
    content = toy_options.model_dump()
    content["evaluation"]["flips"], content["data"]["augment"]["flips"] = True, flips
    options = RunOptions.model_validate(content)
    if not refused:
        check_flips(options, volumes=volumes)
        return
    with pytest.raises(OptionError, match=r"data\.augment\.flips"):
        check_flips(options, volumes=volumes)


@pytest.mark.parametrize(
    ("parts", "tiling", "refused"),
    [
        ({"a.png": "train", "b.png": "test"}, True, None),
        ({"a.png": "train", "b.nii.gz": "test"}, False, None),
        ({"a.png": "train", "b.nii.gz": "unused", "c.png": "test"}, True, None),
        ({"a.png": "train", "b.nii.gz": "test"}, True, "case 'b' is a volume, and data.tiling"),
        ({"a.png": "val", "b.nii.gz": "val"}, False, "case 'b' is a volume, but site 'x', case 'a' is a picture"),
    ],
)
def test_volumes_pictures_and_tiles_are_told_apart_in_every_part(
    parts: dict[str, Split], tiling: bool, refused: str | None, toy_options: RunOptions
) -> None:
    data = toy_options.data.model_copy(update={"tiling": TilingOptions(side=32) if tiling else None})
    cases = tuple(
        Case("x", file[0], Path(file), None, file, part, volume=file.endswith(".nii.gz"))
        for file, part in parts.items()
    )
    options, site = toy_options.model_copy(update={"data": data}), Site("x", Path(), cases)
    if refused is None:
        check_kinds(options, site)
        return
    with pytest.raises(PfedsamError, match=refused):
        check_kinds(options, site)


def test_a_prediction_with_unlearnt_mirror_images_is_refused_before_an_image_is_read(toy_options: RunOptions) -> None:
    content = toy_options.model_dump()
    content["evaluation"]["flips"], content["data"]["augment"]["flips"] = True, False
    missing = Case("north", "new", Path("missing.png"), None, "new")
    with pytest.raises(OptionError, match=r"evaluation\.flips"):
        build_images(RunOptions.model_validate(content), (missing,), 32)


@pytest.mark.parametrize(
    ("single", "numbers"),
    [(["organ"], {1}), (["lesion"], {2}), (["lesion", "organ"], {1, 2}), ("all", {1, 2}), ([], set())],
)
@pytest.mark.parametrize("place", [0, 1, 2, None])
def test_single_regions_have_the_numbers_of_their_labels_wherever_the_background_is_listed(
    toy_options: RunOptions, single: list[str] | str, numbers: set[int], place: int | None
) -> None:
    classes = [("organ", [1]), ("lesion", [2])]
    if place is not None:
        classes.insert(place, ("background", [0]))
    data = toy_options.data.model_copy(update={"classes": dict(classes)})
    evaluation = toy_options.evaluation.model_copy(update={"single_region": single})
    options = toy_options.model_copy(update={"data": data, "evaluation": evaluation})
    assert single_regions(options) == numbers
    names = options.data.label_map().names
    assert {names[number - 1] for number in numbers} == (set(names) if single == "all" else set(single))
