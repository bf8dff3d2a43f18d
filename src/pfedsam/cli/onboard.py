"""`pfedsam onboard`: a new site joins a finished federation with a few labelled cases."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from pfedsam.cli.console import ERR, OUT
from pfedsam.cli.predicting import Backbone, with_backbone

if TYPE_CHECKING:
    from pfedsam.data.split import SplitOptions
    from pfedsam.report.onboarded import Onboarded


def onboard_command(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run (the --out of `pfedsam run`).")],
    site_folder: Annotated[
        Path, typer.Option("--site-folder", help="Folder of the new site, with images/ and masks/, or a manifest.csv.")
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", help="New folder for the models of the site; it can be given to `pfedsam predict`."
        ),
    ],
    labels: Annotated[
        int,
        typer.Option(
            min=1,
            help="Number of labelled cases to train on, from the site's training part. The site's cases are split by patient in the "
            "proportions of the federation (by default 60 % training, 10 % validation, 30 % test), unless its manifest.csv names the part "
            "of each case; so 10 training cases need about 17 labelled ones.",
        ),
    ] = 10,
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps of each option that trains.")] = 120,
    name: Annotated[str | None, typer.Option(help="Name of the site; default: the name of its folder.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the choice of training and test cases.")] = 0,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Override a key of the federation's configuration for this site, such as data.classes={nucleus: [255]} for other ids in "
            "its masks, or data.patient_pattern; may be repeated.",
        ),
    ] = None,
    backbone: Backbone = None,
) -> None:
    """Train a personal model for a new site from a few labelled cases and the shared parameters of a finished federation.

    The shared parameters do not change, and no data are sent. The folder --out contains the shared parameters with the site's own local
    parameters, or the shared model alone if the method has no local parameters. The table compares it with the unchanged shared model,
    if the method has one, with fine-tuning of all parameters, and with training without the federation; all are scored on cases that none
    of them was trained on.
    If the masks of the site have other ids for the classes, give them by --set, with all classes in the order of the federation.
    Example: pfedsam onboard runs/nuclei/pfedsam --site-folder data/new --labels 10 --out runs/new
    """
    from pfedsam.engine.onboarding import Newcomer, onboard
    from pfedsam.engine.opened import open_run
    from pfedsam.report.page import REPORT

    new = Newcomer(name or site_folder.resolve().name, site_folder, labels, steps, seed)
    with ERR.status("loading the federation's model") as status:
        opened = open_run(run, [*(overrides or ()), *with_backbone(backbone)])
        found = onboard(opened, new, out, tell=lambda way: status.update(f"{new.name}: {way}"))
    OUT.print(onboarding_table(new.name, found))
    if found.trained_on < labels:
        OUT.print(too_few(labels, found, opened.options.data.split))
    advice = shared_is_better(found)
    if advice:
        OUT.print(advice)
    OUT.print(
        f"Saved in {out}: the model of {found.in_use!r}. The others are for comparison and are not kept. All were scored on "
        f"{found.tested_on} case(s), so that small differences may be chance.",
        soft_wrap=True,
    )
    OUT.print(f"Model: pfedsam predict {out} IMAGES --site {new.name} --out masks", soft_wrap=True)
    OUT.print(f"Report: {out / REPORT}", soft_wrap=True)


def too_few(labels: int, found: "Onboarded", split: "SplitOptions") -> str:
    """The reason why fewer cases than requested were used for training, and what to do.

    Args:
        labels: the requested number of training cases.
        found: the result of the onboarding.
        split: the proportions of the federation, in which the site's cases were split.
    """
    from pfedsam.data.split import cases_for_training

    parts = [f"{found.trained_on} for training"]
    if found.validated_on is not None:
        parts.append(f"{found.validated_on} for validation")
    every = found.trained_on + found.tested_on + (found.validated_on or 0)
    # The second number is larger if patients have so many cases that the parts could not be divided in the requested proportions.
    needed = max(cases_for_training(labels, split), every + labels - found.trained_on)
    return (
        f"{labels} training cases were requested, and {found.trained_on} used, because the site's {every} cases are split by patient: "
        f"{', '.join(parts)}, and {found.tested_on} for the test, on which the options are compared. For {labels} training cases, label "
        f"about {needed} cases in all, or name the part of each case in the column split of a manifest.csv."
    )


def shared_is_better(found: "Onboarded") -> str:
    """Advice if the unchanged shared model has a higher Dice than the model in the folder, else an empty text."""
    from pfedsam.report.format import format_value
    from pfedsam.report.onboarded import NOTHING

    alone, used = (found.ways.get(way, {}).get("dice") for way in (NOTHING, found.in_use))
    if found.in_use == NOTHING or alone is None or used is None or alone <= used:
        return ""
    return (
        f"The unchanged shared model has the higher Dice here ({format_value(alone)}, with local parameters {format_value(used)}): predict "
        f"with --model shared, or give more labels or steps. The number of scored cases is {found.tested_on}."
    )


def onboarding_table(name: str, found: "Onboarded") -> Table:
    """A table of the onboarding options; the one whose model is in the folder is marked."""
    from pfedsam.report.onboarded import way_rows

    table = Table(
        title=f"{name}: trained on {found.trained_on} cases, scored on {found.tested_on}", title_justify="left"
    )
    for heading in ("option", "Dice", "IoU", "HD95", "ASSD", "description"):
        table.add_column(heading)
    for row in way_rows(found):
        option = f"{row.way} (saved)" if row.saved else row.way
        table.add_row(option, *row.values, row.description, style="bold" if row.saved else "")
    return table
