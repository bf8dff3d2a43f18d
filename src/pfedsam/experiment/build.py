"""From options to objects: the only place where the configuration is read and things are made of it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias, TypedDict

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pfedsam.core import rng
from pfedsam.core.errors import DataError, OptionError
from pfedsam.core.tensors import NamedTensors
from pfedsam.data.examples import Example, VolumeExamples
from pfedsam.data.labels import LabelMap
from pfedsam.data.loader import load_examples
from pfedsam.data.manifest import Case, Site, read_site
from pfedsam.data.split import read_split, split_site
from pfedsam.data.suspicions import Study
from pfedsam.data.tiling import load_pictures, load_tiles
from pfedsam.evaluation.predict import Forward, predict, predict_tiled
from pfedsam.experiment.options import RunOptions
from pfedsam.federation.codec import Codec
from pfedsam.federation.methods import configured
from pfedsam.federation.methods.base import Method
from pfedsam.federation.roster import Roster
from pfedsam.model.backbones.checkpoint import load_backbone
from pfedsam.model.build import build_personal
from pfedsam.model.numerics import CPU
from pfedsam.model.partition import Kind, Partition
from pfedsam.model.personal import PersonalSam
from pfedsam.model.prefix import PrefixCache, PrefixOptions
from pfedsam.training.site_data import SiteData

Predict: TypeAlias = Callable[[Forward, Sequence[Example]], Iterator[tuple[Example, npt.NDArray[np.uint8]]]]
"""A forward function and what `build_images` gives, to each image with its class map at native size."""


class VolumeReading(TypedDict):
    """Arguments of `read_site`."""

    channels: tuple[str, ...]
    spacing_lost: bool


@dataclass(frozen=True)
class BuiltModel:
    """The model of a run before any training, and what becomes of its parameters."""

    model: PersonalSam
    partition: Partition
    backbone: str
    """SHA-256 of the frozen backbone's weights."""
    initial: NamedTensors
    """The trained parameters at the start, the same for every site; the model's own change as sites train in it."""

    @property
    def has_shared_model(self) -> bool:
        """Whether the model without its local part is one for the whole federation: all that is local can be switched off."""
        local = set(self.partition.local)
        switched = self.model.groups(lambda part: part.local_only)
        fixed = [c for c, names in self.partition.components.items() if c not in switched and local & set(names)]
        return bool(self.partition.shared) and not fixed

    def start(self, kind: Kind) -> dict[str, Tensor]:
        """Copies of the initial parameters of one kind."""
        return {name: self.initial[name].clone() for name in self.partition.names(kind)}


def build_method(options: RunOptions) -> Method:
    """The run's method, with its own options."""
    return configured(options.method, options.method_options)


def refuse_too_few_sites(options: RunOptions) -> None:
    """Refuse a federation whose server step cannot work with its sites.

    Raises:
        OptionError: it needs more sites than there are.
    """
    least, sites = build_method(options).server.least_updates, len(options.data.sites)
    if sites < least:
        raise OptionError(
            f"The method {options.method} needs updates of at least {least} sites with these options (method_options.{options.method}); "
            f"there are {sites}. Add sites, change the option, or choose another method, such as fedavg."
        )


def build_codec(options: RunOptions) -> Codec:
    """How the run's updates are written."""
    return Codec(options.communication.codec, options.communication.block)


def build_labels(options: RunOptions) -> LabelMap:
    """The run's classes.

    Raises:
        OptionError: the ids contradict each other.
    """
    return LabelMap(options.data.classes)


def build_study(options: RunOptions) -> Study:
    """What the checks of the data know of the run beside its files.

    Raises:
        OptionError: the ids contradict each other.
    """
    data, evaluation = options.data, options.evaluation
    validation = data.split.val > 0 and evaluation.validate_every > 0
    return Study(build_labels(options), data.image, data.patient_pattern, validation, data.volume)


def read_sites(options: RunOptions, *, masks_required: bool = True) -> dict[str, Site]:
    """Every site as it lies on disk, not split, in the configuration's order.

    Raises:
        DataError: a site is missing or empty.
    """
    pattern = options.data.patient_pattern
    return {
        name: read_site(
            name, folder, patient_pattern=pattern, masks_required=masks_required, **volume_reading(options, name)
        )
        for name, folder in options.data.sites.items()
    }


def build_sites(options: RunOptions) -> dict[str, Site]:
    """Every site, split by patient, in the configuration's order.

    Raises:
        DataError: a site is missing, empty, cannot be split, or has a patient on two sides.
    """
    return {name: divide_site(options, site) for name, site in read_sites(options).items()}


def divide_site(options: RunOptions, site: Site) -> Site:
    """The site with its cases in parts, as `data.split` or the split's file says.

    Raises:
        DataError: it cannot be split, has a patient on two sides, or no case to train on or to test.
    """
    data, name, given = options.data, site.name, all(case.split is None for case in site.cases)
    file = data.split_folder / f"{name}.json" if data.split_folder else None
    site = read_split(file, site) if file else split_site(site, data.split, options.seed)
    for part in ("train", "test"):
        if not site.of(part):
            patients = site.patients()
            if given and len(patients) == 1:
                raise DataError(
                    f"site {name!r} has no {part} case: its {len(site.cases)} case(s) are of one patient, {next(iter(patients))!r}, and a "
                    "patient lies on one side of the split. Two patients are needed at least, three for a validation part: add some, "
                    "or, if these are several, give them in the manifest or correct data.patient_pattern"
                )
            raise DataError(f"site {name!r} has no {part} case: it needs at least one; add cases or change data.split.")
    return site


def volume_reading(options: RunOptions, site: str) -> VolumeReading:
    """What `read_site` has to know of a site's volumes."""
    volume = options.data.volume
    return {"channels": tuple(volume.channels), "spacing_lost": site in volume.spacing_unknown}


def build_model(options: RunOptions, device: torch.device = CPU, *, may_download: bool = True) -> BuiltModel:
    """The model as every process of the run starts with it: the same weights everywhere, on the device that it is to compute on.

    Args:
        options: of the run.
        device: that it computes on.
        may_download: a backbone by a hub name that is not on this machine is downloaded; False refuses it.

    Raises:
        CheckpointError: the backbone cannot be loaded.
        OptionError: the options do not fit the backbone, or switch on what the method does not train.
    """
    method = build_method(options)
    model_options = method.adapt(options.model)
    backbone = load_backbone(model_options.backbone, image_size=model_options.image_size, may_download=may_download)
    digest = backbone.hash
    classes = len(build_labels(options).names)
    model = build_personal(backbone, model_options, classes, rng.generator(options.seed, "model"), device)
    placement = method.placement(model_options)
    idle = sorted(model.groups(lambda part: part.addition) - set(placement))
    if idle:
        raise OptionError(f"The method {method.name} does not train {', '.join(idle)}: leave out what switches it on.")
    partition = Partition.of(model, model.components(), placement)
    for phase in (*method.round_phases(options.training), *method.final(options.training)):
        empty = [kind for kind in phase.trains if not partition.names(kind)]
        if empty:
            raise OptionError(
                f"The {phase.name} phase of {method.name} has nothing to train: every {' or '.join(empty)} part is "
                "switched off. Switch one on, or choose a method without that phase, such as fedavg or local-only."
            )
    model.requires_grad_(False).eval()
    return BuiltModel(model, partition, digest, partition.select(model, "shared", "local"))


def build_roster(options: RunOptions) -> Roster:
    """Which sites of the run do what."""
    return build_method(options).roster


def with_pool(options: RunOptions, sites: Mapping[str, Site]) -> dict[str, Site]:
    """All sites of the run: those of the configuration, and before them the one with everybody's training images where there is one.

    Raises:
        OptionError: a site of the configuration has the pooled one's name.
    """
    pool = build_roster(options).pool
    if pool is None:
        return dict(sites)
    if pool in sites:
        raise OptionError(
            f"With method {options.method} no site can be called {pool!r}, as the place of all images is. Rename the site."
        )
    cases = tuple(case for site in sites.values() for case in site.of("train"))
    return {pool: Site(pool, Path(), cases), **sites}


def build_examples(options: RunOptions, cases: tuple[Case, ...], side: int) -> Sequence[Example]:
    """Cases to train on in the model's frame, with labels; the slices of volumes, or tiles of pictures where there is tiling.

    Raises:
        DataError: a file cannot be read, or a mask does not fit its image or the label map.
    """
    labels, image, tiling = build_labels(options), options.data.image, options.data.tiling
    if _are_volumes(options, cases):
        return VolumeExamples(cases, labels=labels, image=image, side=side, options=options.data.volume)
    if tiling:
        return load_tiles(cases, labels=labels, image=image, side=side, tiling=tiling)
    return load_examples(cases, labels=labels, image=image, side=side)


def _are_volumes(options: RunOptions, cases: tuple[Case, ...]) -> bool:
    """Whether cases are volumes.

    Raises:
        DataError: Only some of them are.
        OptionError: They are, and are to be cut into tiles.
    """
    volumes = [case for case in cases if case.volume]
    if volumes and len(volumes) < len(cases):
        pictures = next(case for case in cases if not case.volume)
        raise DataError(
            f"site {volumes[0].site!r}, case {volumes[0].id!r} is a volume, site {pictures.site!r}, case {pictures.id!r} a picture; what "
            "is trained or scored together must be all volumes, or all pictures"
        )
    if volumes and options.data.tiling:
        raise OptionError("data.tiling cuts pictures into tiles, and the sites hold volumes: leave it out.")
    return bool(volumes)


def build_images(options: RunOptions, cases: tuple[Case, ...], side: int) -> Sequence[Example]:
    """Cases to predict, for `build_predict`; volumes as their slices in order.

    Raises:
        DataError: a file cannot be read, or a mask does not fit its image or the label map.
    """
    if _are_volumes(options, cases):
        return VolumeExamples(cases, labels=None, image=options.data.image, side=side, options=options.data.volume)
    if options.data.tiling:
        return load_pictures(cases, image=options.data.image, side=side)
    return load_examples(cases, labels=build_labels(options), image=options.data.image, side=side)


def build_predict(options: RunOptions, side: int) -> Predict:
    """How a model's answers become class maps: from whole pictures, or tile by tile."""
    size = options.evaluation.batch_size
    if options.data.tiling:
        return partial(predict_tiled, side=side, tiling=options.data.tiling, batch_size=size)
    return partial(predict, batch_size=size)


def build_site_data(
    options: RunOptions, name: str, cases: tuple[Case, ...], built: BuiltModel, cache_folder: Path
) -> SiteData:
    """The training part of a site."""
    examples = build_examples(options, cases, built.model.image_size)
    return SiteData(
        name=name,
        examples=examples,
        foreground=examples.foreground if isinstance(examples, VolumeExamples) else (),
        foreground_share=options.data.volume.foreground_share,
        cache=build_cache(options, built, cache_folder),
        augment=options.data.augment,
        seed=options.seed,
    )


def build_cache(options: RunOptions, built: BuiltModel, folder: Path | None) -> PrefixCache:
    """What gives the frozen blocks' output for images of a site, kept in `folder`; None: computed each time, to the same bits."""
    model = built.model
    precision = "" if model.frozen_dtype == torch.float32 else "-bfloat16"
    where = "" if model.device.type == "cpu" else f"-{model.device.type}"  # whose sums round otherwise
    key = f"{built.backbone[:16]}-block{model.first_adapted}{precision}{where}"
    # Where the encoder is trained there are no frozen blocks whose output could be kept, or rounded.
    kept = PrefixOptions(max_gigabytes=0) if model.from_pixels else options.prefix
    return PrefixCache(folder, key, model.prefix_shape, kept)
