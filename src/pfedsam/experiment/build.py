"""From options to objects: the only place where the configuration is read and things are made of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pfedsam.core import rng
from pfedsam.core.errors import DataError
from pfedsam.core.tensors import NamedTensors
from pfedsam.data.labels import LabelMap
from pfedsam.data.loader import Example, load_examples
from pfedsam.data.manifest import Case, Site, read_site
from pfedsam.data.split import check_no_leak, read_split, split_site
from pfedsam.experiment.options import RunOptions
from pfedsam.federation.methods import find_method
from pfedsam.federation.methods.base import Method
from pfedsam.model.backbone import backbone_digest
from pfedsam.model.checkpoint import load_backbone
from pfedsam.model.partition import Kind, Partition
from pfedsam.model.personal import PersonalSam
from pfedsam.model.prefix import PrefixCache
from pfedsam.training.site_data import SiteData

POOLED = "pooled"
"""The one training site of a pooled method."""


@dataclass(frozen=True)
class BuiltModel:
    """The model of a run before any training, and what becomes of its parameters."""

    model: PersonalSam
    partition: Partition
    backbone: str
    """SHA-256 of the frozen backbone's weights."""
    initial: NamedTensors
    """The trained parameters at the start, the same for every site; the model's own change as sites train in it."""

    def start(self, kind: Kind) -> dict[str, Tensor]:
        """Copies of the initial parameters of one kind."""
        return {name: self.initial[name].clone() for name in self.partition.names(kind)}


def build_method(options: RunOptions) -> Method:
    """The run's method."""
    return find_method(options.method)


def build_labels(options: RunOptions) -> LabelMap:
    """The run's classes.

    Raises:
        OptionError: the ids contradict each other.
    """
    return LabelMap(options.data.classes)


def build_sites(options: RunOptions) -> dict[str, Site]:
    """Every site, split by patient, in the configuration's order.

    Raises:
        DataError: a site is missing, empty, cannot be split, or has a patient on two sides.
    """
    sites = {}
    for name, folder in options.data.sites.items():
        site = read_site(name, folder, patient_pattern=options.data.patient_pattern)
        if options.data.split_folder is None:
            site = split_site(site, options.data.split, options.seed)
        else:
            site = read_split(options.data.split_folder / f"{name}.json", site)
        check_no_leak(site)
        for part in ("train", "test"):
            if not site.of(part):
                raise DataError(
                    f"site {name!r} has no {part} case: it needs at least one; add cases or change data.split."
                )
        sites[name] = site
    return sites


def build_model(options: RunOptions) -> BuiltModel:
    """The model as every process of the run starts with it: the same weights everywhere.

    Raises:
        CheckpointError: the backbone cannot be loaded.
        OptionError: the options do not fit the backbone.
    """
    method = build_method(options)
    model_options = method.adapt(options.model)
    sam = load_backbone(model_options.backbone, image_size=model_options.image_size)
    digest = backbone_digest(sam)
    classes = len(build_labels(options).names)
    model = PersonalSam(sam, model_options, classes, rng.generator(options.seed, "model"))
    partition = Partition.of(model, model.components(), method.placement(model_options))
    model.requires_grad_(False).eval()
    return BuiltModel(model, partition, digest, partition.select(model, "shared", "local"))


def training_cases(options: RunOptions, sites: Mapping[str, Site]) -> dict[str, tuple[Case, ...]]:
    """The training cases of each site that trains: the sites themselves, or one pooled site."""
    if build_method(options).pooled:
        return {POOLED: tuple(case for site in sites.values() for case in site.of("train"))}
    return {name: site.of("train") for name, site in sites.items()}


def build_examples(options: RunOptions, cases: tuple[Case, ...], side: int) -> list[Example]:
    """Cases in the model's frame, with labels.

    Raises:
        DataError: a file cannot be read, or a mask does not fit its image or the label map.
    """
    return load_examples(cases, labels=build_labels(options), image=options.data.image, side=side)


def build_site_data(
    options: RunOptions, name: str, cases: tuple[Case, ...], built: BuiltModel, cache_folder: Path
) -> SiteData:
    """The training part of a site."""
    model = built.model
    precision = "" if model.frozen_dtype == torch.float32 else "-bfloat16"
    key = f"{built.backbone[:16]}-block{model.first_adapted}{precision}"
    return SiteData(
        name=name,
        examples=build_examples(options, cases, model.image_size),
        cache=PrefixCache(cache_folder, key, model.prefix_shape, options.prefix),
        augment=options.data.augment,
        seed=options.seed,
    )
