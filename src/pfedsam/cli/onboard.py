"""`pfedsam onboard`: a new site joins a finished federation with a few labelled cases."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from pfedsam.cli.console import ERR, OUT

if TYPE_CHECKING:
    from pfedsam.engine.onboarding import Onboarded


def onboard_command(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run (the --out of `pfedsam run`).")],
    site_folder: Annotated[
        Path, typer.Option("--site-folder", help="The new site: images/ and masks/, or a manifest.")
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="New folder for the site's models; `predict` works with it.")
    ],
    labels: Annotated[int, typer.Option(min=1, help="Labelled cases to train on.")] = 10,
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps of each way that trains.")] = 120,
    name: Annotated[str | None, typer.Option(help="Of the site; empty = its folder's name.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Decides which cases are trained on and which are tested.")] = 0,
) -> None:
    """Give a new site a model of its own, from a few labelled cases and the shared part of a federation.

    The shared part stays as it is and nothing is sent. The folder holds the model with the site's own local part; the table compares it
    with the shared model alone, with fine-tuning everything, and with training alone, on cases that none of them was trained on.
    Example: pfedsam onboard runs/nuclei/pfedsam --site-folder data/new --labels 10 --out runs/new
    """
    from pfedsam.engine.onboarding import Newcomer, onboard
    from pfedsam.engine.opened import open_run

    new = Newcomer(name or site_folder.resolve().name, site_folder, labels, steps, seed)
    with ERR.status("loading the federation's model") as status:
        found = onboard(open_run(run), new, out, tell=lambda way: status.update(f"{new.name}: {way}"))
    OUT.print(onboarding_table(new.name, found))
    if found.trained_on < labels:
        OUT.print(
            f"{labels} cases were asked for; the training part of this site, whole patients, has {found.trained_on} within that."
        )
    advice = shared_is_better(found)
    if advice:
        OUT.print(advice)
    OUT.print(f"Model: pfedsam predict {out} IMAGES --site {new.name} --out masks")


def shared_is_better(found: "Onboarded") -> str:
    """What to do where the shared model alone did better than the one that the folder holds; empty where it did not."""
    from pfedsam.engine.onboarding import NOTHING
    from pfedsam.report.format import format_value

    alone, used = (found.ways.get(way, {}).get("dice") for way in (NOTHING, found.in_use))
    if found.in_use == NOTHING or alone is None or used is None or alone <= used:
        return ""
    return (
        f"The shared model as it is did better here (Dice {format_value(alone)}, with the local part {format_value(used)}): predict with "
        f"--model shared, or give more labels or steps. Few cases were scored ({found.tested_on})."
    )


def onboarding_table(name: str, found: "Onboarded") -> Table:
    """The ways side by side; the one that the folder holds is bold."""
    from pfedsam.engine.onboarding import WAYS
    from pfedsam.report.format import format_value

    table = Table(
        title=f"{name}: trained on {found.trained_on} cases, scored on {found.tested_on}", title_justify="left"
    )
    for heading in ("way", "Dice", "IoU", "HD95", "ASSD", "what it is"):
        table.add_column(heading)
    for way, row in found.ways.items():
        values = [
            format_value(row["dice"]),
            format_value(row["iou"]),
            *(format_value(row[m], 2) for m in ("hd95", "assd")),
        ]
        table.add_row(way, *values, WAYS[way], style="bold" if way == found.in_use else "")
    return table
