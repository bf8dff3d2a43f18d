"""The results of every finished run: `summary.json`, and the report `report.html`."""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, TypeVar

from pfedsam.data.manifest import Site
from pfedsam.engine.server_files import RECORDS
from pfedsam.evaluation.scores import CaseScores
from pfedsam.evaluation.summary import SiteSummary, summarize_site
from pfedsam.experiment.build import build_method
from pfedsam.experiment.options import RunOptions
from pfedsam.experiment.suite import local_steps
from pfedsam.model.backbones.checkpoint import backbone_file
from pfedsam.report.page import write_page
from pfedsam.report.records import read_records, sites_with_the_shared_model
from pfedsam.report.summary_file import (
    Communication,
    PartSizes,
    SiteEntry,
    Summary,
    build_summary,
    collect_versions,
    with_earlier_sites,
    write_summary,
)

T = TypeVar("T")
SUMMARY: Final = "summary.json"
"""A file that a run's folder gets at its end."""


def by_model(sites: Mapping[str, Mapping[str, T]]) -> dict[str, dict[str, T]]:
    """Regroup values by site and reported model to values by model and site; a site may lack a model."""
    turned: dict[str, dict[str, T]] = {}
    for site, models in sites.items():
        for model, value in models.items():
            turned.setdefault(model, {})[site] = value
    return turned


def summarize_models(scores: Mapping[str, Mapping[str, list[CaseScores]]]) -> dict[str, dict[str, SiteSummary]]:
    """The sites' summaries by reported model, from the scores of each site's models."""
    return by_model(
        {site: {m: summarize_site(cases) for m, cases in models.items()} for site, models in scores.items()}
    )


def part_sizes(sites: Mapping[str, Site]) -> dict[str, PartSizes]:
    """The number of training and validation cases of each site."""
    return {name: PartSizes(len(site.of("train")), len(site.of("val"))) for name, site in sites.items()}


def write_end(
    folder: Path,
    options: RunOptions,
    models: Mapping[str, Mapping[str, SiteSummary]],
    sizes: Mapping[str, PartSizes],
    communication: Communication,
    seconds: Mapping[str, float],
    *,
    rounds: int | None = None,
    steps: int | None = None,
    earlier: Mapping[str, SiteEntry] | None = None,
) -> Summary:
    """Write summary and report into a run's folder.

    Args:
        folder: the folder of the run; the report also reads its records, configuration and overlays.
        options: the options of the run.
        models: the scores of each site, by model (`personal`, `shared` or both).
        sizes: the sizes of the sites' parts, where they are known.
        communication: the bytes of a round.
        seconds: the measured times by name.
        rounds: the number of rounds that were trained; None for `training.rounds`.
        steps: the optimiser steps of one training site; None for those of the method in these rounds.
        earlier: the results of further sites from an earlier test of the same models.

    Raises:
        RunError: there is no model, or the two models were not scored at the same sites.
        StoreError: a file could not be written, or a file that the report needs is damaged.
    """
    records = folder / RECORDS
    summary = build_summary(
        date=datetime.now(UTC).date().isoformat(),
        method=options.method,
        backbone=_backbone_name(options),
        seed=options.seed,
        rounds=options.training.rounds if rounds is None else rounds,
        steps=local_steps(options, rounds) if steps is None else steps,
        min_cases=options.communication.least_cases,
        personal=models.get("personal"),
        shared=models.get("shared"),
        sizes=sizes,
        communication=communication,
        seconds=seconds,
        versions=collect_versions(),
        use_shared=sites_with_the_shared_model(read_records(records)) if records.exists() else (),
    )
    summary = with_earlier_sites(summary, earlier or {})
    write_summary(folder / SUMMARY, summary)
    write_page(folder)
    return summary


def _backbone_name(options: RunOptions) -> str:
    """The name of the trained network; for a backbone in a file, only the name of the file, because its path describes this machine."""
    model = build_method(options).adapt(options.model)
    if model.unet:
        return "U-Net, random weights"
    file = backbone_file(model.backbone)
    return file.name if file else model.backbone
