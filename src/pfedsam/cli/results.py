"""`pfedsam evaluate`, `predict`, `report`: use finished runs."""

from pathlib import Path
from typing import Annotated

import typer

from pfedsam.cli.console import OUT, event_bars

Folder = Annotated[Path, typer.Argument(help="Folder of a run (the --out of `pfedsam run`).")]


def evaluate_command(run: Folder) -> None:
    """Score the test part of a run again and rewrite its scores, summary and report."""
    from pfedsam.report.tables import run_table
    from pfedsam.runtime.run_folder import open_run

    with event_bars() as tell:
        summary = open_run(run).evaluate(tell)
    OUT.print(run_table(summary))


def predict_command(
    run: Folder,
    images: Annotated[list[Path], typer.Argument(help="Images to segment (PNG, JPEG, TIFF).")],
    site: Annotated[str, typer.Option(help="Whose model to use; a site of the run.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the masks.")],
) -> None:
    """Segment images with a site's model: one PNG of class ids per image, at the image's own size.

    Example: pfedsam predict runs/nuclei/pfedsam new/*.png --site histo --out masks
    """  # noqa: DOC501 - shown as help
    from PIL import Image

    from pfedsam.core.errors import OptionError
    from pfedsam.runtime.run_folder import open_run

    stems = [image.stem for image in images]
    if len(set(stems)) < len(stems):
        raise OptionError(
            "Two images have the same name without its ending; their masks would overwrite one another. Rename one."
        )
    opened = open_run(run)
    out.mkdir(parents=True, exist_ok=True)
    for image in images:
        Image.fromarray(opened.predict(site, image)).save(out / f"{image.stem}.png")
        OUT.print(f"{image.name} -> {out / (image.stem + '.png')}")


def report_command(
    run: Folder,
    baseline: Annotated[Path | None, typer.Option(help="Folder of a local-only run, for the gain over it.")] = None,
) -> None:
    """Write the report of a run again, with the gain over local-only where a baseline is given."""
    from pfedsam.report.page import write_page

    OUT.print(f"Report: {write_page(run, baseline=baseline)}")
