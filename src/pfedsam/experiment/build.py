"""Builds objects from options: the only place where the configuration is turned into models, data and methods."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pfedsam.core import rng
from pfedsam.core.errors import DataError, OptionError
from pfedsam.core.tensors import NamedTensors
from pfedsam.data.about import about
from pfedsam.data.examples import Example, VolumeExamples, classes_in
from pfedsam.data.labels import LabelMap
from pfedsam.data.loader import load_examples
from pfedsam.data.manifest import Case, Site, read_site
from pfedsam.data.split import USED, split_site, stored_split
from pfedsam.data.suspicions import Study
from pfedsam.data.tiling import load_pictures, load_tiles
from pfedsam.data.transforms import FOR_PICTURES, FOR_SLICES, Moves
from pfedsam.data.volume_case import open_case
from pfedsam.evaluation.predict import Forward, predict, predict_tiled
from pfedsam.experiment.options import RunOptions
from pfedsam.federation.methods import configured
from pfedsam.federation.methods.base import Method
from pfedsam.model.build import build_segmenter
from pfedsam.model.numerics import COMPUTING, CPU
from pfedsam.model.partition import Kind, Partition
from pfedsam.model.prefix import PrefixCache, PrefixOptions
from pfedsam.model.segmenter import Segmenter
from pfedsam.training.losses import LabelForm
from pfedsam.training.site_data import SiteData

Predict: TypeAlias = Callable[[Forward, Sequence[Example]], Iterator[tuple[Example, npt.NDArray[np.uint8]]]]
"""A function from a forward function and the result of `build_images` to each image with its class map [H, W] at native size."""


@dataclass(frozen=True)
class BuiltModel:
    """The model of a run before training, and the partition of its parameters."""

    model: Segmenter
    partition: Partition
    backbone: str
    """The hash of the backbone; for a U-Net, SHA-256 of its random initial weights."""
    initial: NamedTensors
    """Initial values of the trained parameters, the same for every site; the values in the model itself change while sites train it."""

    @property
    def has_shared_model(self) -> bool:
        """Whether there is a shared model for the whole federation, because all local parameters can be switched off."""
        local = set(self.partition.local)
        switched = self.model.groups(lambda part: part.local_only)
        fixed = [c for c, names in self.partition.components.items() if c not in switched and local & set(names)]
        return bool(self.partition.shared) and not fixed

    def start(self, kind: Kind) -> dict[str, Tensor]:
        """Copies of the initial parameters of one kind, in their shapes."""
        return {name: self.initial[name].clone() for name in self.partition.names(kind)}


def build_method(options: RunOptions) -> Method:
    """The run's method, with its own options.

    Raises:
        OptionError: there is no such method, or its phases cannot be run (`Method.check_phases`).
    """
    method = configured(options.method, options.method_options)
    method.check_phases(options.training)
    return method


def refuse_too_few_sites(options: RunOptions) -> None:
    """Refuse a federation with fewer sites than the method's server step needs, also for a class that not all sites annotate.

    Raises:
        OptionError: there are too few sites.
    """
    least, sites = build_method(options).server.least_updates, list(options.data.sites)
    remedy = "Add sites, change the option, or choose another method, such as fedavg."
    needs = f"The method {options.method} needs updates of at least {least} sites with these options (method_options.{options.method})"
    if len(sites) < least:
        raise OptionError(f"{needs}; there are {len(sites)}. {remedy}")
    for name in options.data.classes:
        there = [site for site in sites if name not in options.data.label_map(site).not_annotated]
        if len(there) < least:
            raise OptionError(f"{needs}; {len(there)} of them annotate {name!r}. {remedy}")


def build_label_form(options: RunOptions, cases: tuple[Case, ...]) -> LabelForm:
    """The meaning of the labels of these cases.

    Raises:
        OptionError: the cases are from several sites that do not annotate the same classes.
    """
    sites = dict.fromkeys(case.site for case in cases)
    annotated = {options.data.label_map(site).annotated for site in sites}
    if len(annotated) > 1:
        raise OptionError(
            f"method {options.method} trains on the images of all sites together, but the sites do not annotate the same classes "
            "(data.sites.<name>.not_annotated); choose a method that trains at each site, such as pfedsam or fedavg."
        )
    known = annotated.pop() if annotated else (True,)
    return LabelForm(None if all(known) else known, options.data.overlap, bool(options.data.ignore))


def build_study(options: RunOptions) -> Study:
    """The settings of the run that the checks of the data need in addition to the files.

    Raises:
        OptionError: the ids contradict each other.
    """
    data, evaluation = options.data, options.evaluation
    validation = data.split.val > 0 and evaluation.validate_every > 0
    return Study(
        options.data.label_map(),
        data.image,
        data.patient_pattern,
        validation,
        data.volume,
        site_labels={site: options.data.label_map(site) for site in data.sites},
        site_patterns={site: data.pattern(site) for site in data.sites},
        sparse_loss=options.training.loss == "focal_tversky",
        foreground_share=data.foreground_share,
    )


def read_sites(options: RunOptions, *, masks_required: bool = True) -> dict[str, Site]:
    """Every site as stored on disk, without a split, in the order of the configuration.

    Raises:
        DataError: a site is missing or empty.
    """
    return {name: read_one_site(options, name, masks_required=masks_required) for name in options.data.sites}


def read_one_site(options: RunOptions, name: str, *, masks_required: bool = True) -> Site:
    """A site as stored on disk, without a split; cases whose files have no spacing get the one in the configuration.

    Raises:
        DataError: the site is missing or empty.
    """
    data = options.data
    site = read_site(
        name,
        data.folder(name),
        patient_pattern=data.pattern(name),
        masks_required=masks_required,
        channels=data.volume.channels,
    )
    return replace(site, cases=tuple(with_site_spacing(options, case) for case in site.cases))


def with_site_spacing(options: RunOptions, case: Case) -> Case:
    """The case with the settings of its site for the spacing, which apply in training and in prediction alike.

    The spacing in the files of a site in `data.volume.spacing_unknown` is not used, and the site's own `spacing` replaces a missing one.
    """
    said = options.data.site(case.site)
    if case.volume and case.site in options.data.volume.spacing_unknown:
        case = replace(case, spacing_lost=True)
    if said is None or said.spacing is None or case.spacing_mm is not None:
        return case
    if case.volume:
        return replace(case, spacing_else=tuple(said.spacing))
    return replace(case, spacing_mm=tuple(said.spacing))


def build_sites(options: RunOptions) -> dict[str, Site]:
    """Every site, split by patient, in the order of the configuration.

    Raises:
        DataError: a site is missing, is empty, cannot be split, or has a patient in two parts.
    """
    return {name: divide_site(options, site) for name, site in read_sites(options).items()}


def divide_site(options: RunOptions, site: Site) -> Site:
    """The site with its cases assigned to training, validation and test, by `data.split` or by the split's file.

    Raises:
        DataError: the site cannot be split, has a patient in two parts, or has no training or no test case.
    """
    data, free = options.data, all(case.split is None for case in site.cases)
    if data.split_folder and not os.path.isdir(data.split_folder):
        raise DataError(
            f"data.split_folder: there is no folder {str(data.split_folder)!r}; write it by `pfedsam data split`, or correct its path "
            "(relative to the configuration)"
        )
    file = data.split_folder / f"{site.name}.json" if data.split_folder else None
    divided = stored_split(file, site, data.split, options.seed) if file else split_site(site, data.split, options.seed)
    for part in ("train", "test"):
        if not divided.of(part):
            raise DataError(_why_empty(divided, part, free=free))
    return divided


def _why_empty(site: Site, part: str, *, free: bool) -> str:
    """Why a part of a site's split has no case, and what to do; `free` means that the manifest assigns no case to a part."""
    patients = site.patients()
    if not free or len(patients) != 1:
        return f"site {site.name!r} has no {part} case: it needs at least one; add cases or change data.split."
    return (
        f"site {site.name!r} has no {part} case: its {len(site.cases)} case(s) belong to one patient, "
        f"{next(iter(patients))!r}, and all cases of a patient are in the same part of the split. At least two patients are "
        "needed, three with a validation part. Add patients; or, if the cases are of several patients, name them in the "
        "manifest or correct data.patient_pattern"
    )


def build_model(options: RunOptions, device: torch.device = CPU, *, may_download: bool = True) -> BuiltModel:
    """The model with which every process of the run starts: the same weights everywhere, on the device of this process.

    Args:
        options: the options of the run.
        device: the device of the model.
        may_download: whether to download a backbone with a hub name that is not on this machine; otherwise it is refused.

    Raises:
        CheckpointError: the backbone cannot be loaded.
        OptionError: the options do not fit the backbone, or switch on a component that the method does not train.
    """
    method = build_method(options)
    model_options = method.adapt(options.model)
    classes = len(options.data.label_map().names)
    generator = rng.generator(options.seed, "model")
    with COMPUTING:  # MONAI's U-Net draws its weights from the generator of the process
        built = build_segmenter(model_options, classes, generator, device, may_download=may_download)
    model = built.model
    placement = method.placement(model_options)
    idle = sorted(model.groups(lambda part: part.addition) - set(placement))
    if idle:
        raise OptionError(
            f"The method {method.name} does not train {', '.join(idle)}: remove the options that switch it on."
        )
    partition = Partition.of(model, model.components(), placement)
    for phase in (*method.round_phases(options.training), *method.final(options.training)):
        empty = [kind for kind in phase.trains if not partition.names(kind)]
        if empty:
            raise OptionError(
                f"The {phase.name} phase of {method.name} has nothing to train: every {' or '.join(empty)} part is "
                "switched off. Switch one on, or choose a method without that phase, such as fedavg or local-only."
            )
    model.requires_grad_(False).eval()
    return BuiltModel(model, partition, built.start, partition.select(model, "shared", "local"))


def with_pool(options: RunOptions, sites: Mapping[str, Site]) -> dict[str, Site]:
    """All sites of the run: for a pooled method the site with the training images of all sites, then those of the configuration.

    The pooled images have the order of the sites' names, so that the batches do not depend on the order in a configuration.

    Raises:
        OptionError: a site of the configuration has the name of the pooled site.
    """
    pool = build_method(options).roster.pool
    if pool is None:
        return dict(sites)
    if pool in sites:
        raise OptionError(
            f"With method {options.method} no site can have the name {pool!r}, which is used for the pooled images. Rename the site."
        )
    cases = tuple(case for name in sorted(sites) for case in sites[name].of("train"))
    return {pool: Site(pool, Path(), cases), **sites}


def check_kinds(options: RunOptions, site: Site) -> None:
    """Refuse a part of the split with both volumes and pictures, and options that do not fit their kind.

    Raises:
        DataError: only some of the cases of a part are volumes.
        OptionError: there are volumes, and the options cut pictures into tiles; or as for `check_flips`.
    """
    kinds = [_are_volumes(options, site.of(part)) for part in USED]
    check_flips(options, volumes=any(kinds))


def check_cases(options: RunOptions, site: Site, side: int) -> None:
    """Refuse options that do not fit the images of a site, and images that do not fit together.

    For validation and test cases this would otherwise be found only after training, and it is the configuration that has to change.

    Args:
        options: the options of the run.
        site: the site, with every case in a part of the split.
        side: the side of the model's square.

    Raises:
        DataError: volumes have slices that do not fit the square at the requested pixel size, their spacing is not known, or a header
            cannot be read; or as for `check_kinds`.
        OptionError: as for `check_kinds`.
    """
    check_kinds(options, site)
    if options.data.volume.spacing is None:
        return
    for case in site.cases:
        if not case.volume:
            continue
        volume = open_case(case, options.data.image, options.data.volume)
        with about(case):
            volume.frame(side)


def check_flips(options: RunOptions, *, volumes: bool) -> None:
    """Refuse the mean over mirror images for a model whose training images are not mirrored: it has not learnt to segment them.

    Args:
        options: the options of the run, with `evaluation.flips`.
        volumes: whether the images are volumes, whose slices are by default not mirrored for training.

    Raises:
        OptionError: the mean is requested, and training images are not mirrored.
    """
    if options.evaluation.flips and not Moves.of(options.data.augment, FOR_SLICES if volumes else FOR_PICTURES).flips:
        raise OptionError(
            "evaluation.flips (--tta) averages predictions over mirror images, but the training images are not mirrored "
            "(data.augment.flips; by default pictures are, and slices of volumes are not). Leave evaluation.flips out, or train with "
            "data.augment.flips: true."
        )


def build_examples(options: RunOptions, cases: tuple[Case, ...], side: int) -> Sequence[Example]:
    """Training examples at the model's input size, with labels: pictures, the tiles of pictures, or the slices of volumes.

    Pictures are read on access, which raises `DataError` too; tiles and the masks of volumes are read at once.

    Raises:
        DataError: a file cannot be read, or a mask does not fit its image or the label map.
    """
    image, tiling = options.data.image, options.data.tiling
    if _are_volumes(options, cases):
        labels = _common_labels(options, cases)
        return VolumeExamples(cases, labels=labels, image=image, side=side, options=options.data.volume)
    if tiling is None:
        return load_examples(cases, labels=_labels_of(options, cases), image=image, side=side)
    return load_tiles(cases, labels=_labels_of(options, cases), image=image, side=side, tiling=tiling)


def _labels_of(options: RunOptions, cases: tuple[Case, ...]) -> dict[str, LabelMap]:
    """The label map of each site of these cases; a pooled site has cases of several sites."""
    return {site: options.data.label_map(site) for site in dict.fromkeys(case.site for case in cases)}


def _common_labels(options: RunOptions, cases: tuple[Case, ...]) -> LabelMap:
    """The label map of all these cases.

    Raises:
        OptionError: their sites have different label maps.
    """
    maps = list(_labels_of(options, cases).values())
    if any(dict(one.ids) != dict(maps[0].ids) for one in maps):
        raise OptionError(
            f"method {options.method} trains on the volumes of all sites together, but the sites have different ids for the classes "
            "(data.sites.<name>.labels); choose a method that trains at each site, or renumber the masks."
        )
    return maps[0]


def _are_volumes(options: RunOptions, cases: tuple[Case, ...]) -> bool:
    """Whether the cases are volumes.

    Raises:
        DataError: only some of the cases are volumes.
        OptionError: the cases are volumes, but the options cut pictures into tiles.
    """
    volume = next((case for case in cases if case.volume), None)
    picture = next((case for case in cases if not case.volume), None)
    if volume is None:
        return False
    if picture is not None:
        raise DataError(
            f"site {volume.site!r}, case {volume.id!r} is a volume, but site {picture.site!r}, case {picture.id!r} is a picture; "
            "the cases of a part of the split must all be volumes, or all be pictures; take the others out"
        )
    if options.data.tiling:
        raise OptionError(
            f"site {volume.site!r}, case {volume.id!r} is a volume, and data.tiling cuts pictures into tiles: leave the volumes out, or "
            "train without data.tiling."
        )
    return True


def build_images(options: RunOptions, cases: tuple[Case, ...], side: int) -> Sequence[Example]:
    """The images to predict, as input of `build_predict`; a volume is given as its slices in order.

    No mask is read. Pictures and slices are read on access, which raises `DataError` too.

    Raises:
        DataError: the header of a volume cannot be read, or only some of the cases are volumes.
        OptionError: the mean over mirror images is requested, and the model was trained without them.
    """
    volumes = _are_volumes(options, cases)
    check_flips(options, volumes=volumes)
    if volumes:
        return VolumeExamples(cases, labels=None, image=options.data.image, side=side, options=options.data.volume)
    if options.data.tiling:
        return load_pictures(cases, image=options.data.image, side=side)
    return load_examples(cases, labels=None, image=options.data.image, side=side, most=1)


def build_predict(options: RunOptions, side: int) -> Predict:
    """The function that computes class maps with a model, from whole pictures or tile by tile."""
    size, overlap = options.evaluation.batch_size, options.data.overlap
    if options.data.tiling:
        return partial(predict_tiled, side=side, tiling=options.data.tiling, batch_size=size, overlap=overlap)
    return partial(predict, batch_size=size, overlap=overlap)


def single_regions(options: RunOptions) -> frozenset[int]:
    """The numbers 1..C of the classes that are one connected structure, so that predictions keep only their largest component."""
    single = options.evaluation.single_region
    names = options.data.label_map().names  # without the background, which `data.classes` may list too
    return frozenset(n for n, name in enumerate(names, 1) if single == "all" or name in single)


def build_site_data(
    options: RunOptions, name: str, cases: tuple[Case, ...], built: BuiltModel, cache_folder: Path
) -> SiteData:
    """The training data of a site."""
    examples = build_examples(options, cases, built.model.image_size)
    foreground, share = _foreground(options, examples)
    return SiteData(
        name=name,
        examples=examples,
        foreground=foreground,
        foreground_share=share,
        cache=build_cache(options, built, cache_folder),
        augment=options.data.augment,
        seed=options.seed,
        form=build_label_form(options, cases),
    )


def _foreground(options: RunOptions, examples: Sequence[Example]) -> tuple[Sequence[tuple[int, ...]], float]:
    """For each example the classes that it contains, and the smallest share of examples with a class in a batch; empty and 0 if unused."""
    if isinstance(examples, VolumeExamples):
        return examples.foreground, options.data.volume.foreground_share
    share, overlap = options.data.foreground_share, options.data.overlap
    if not share:
        return (), 0.0
    return [() if one.labels is None else classes_in(one.labels.numpy(), overlap=overlap) for one in examples], share


def build_cache(options: RunOptions, built: BuiltModel, folder: Path | None) -> PrefixCache:
    """The cache of a site's frozen features in `folder`; with None, nothing is stored, and the features are computed each time."""
    model = built.model
    precision = "" if model.frozen_dtype == torch.float32 else "-bfloat16"
    where = "" if model.device.type == "cpu" else f"-{model.device.type}"  # rounding differs between devices
    key = f"{built.backbone[:16]}-block{model.first_adapted}{precision}{where}"
    # Where the whole encoder is trained, there are no frozen features to cache.
    kept = PrefixOptions(max_gigabytes=0) if model.from_pixels else options.prefix
    return PrefixCache(folder, key, model.prefix_shape, kept)
