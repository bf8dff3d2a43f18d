"""`pfedsam evaluate`, `predict` and `report`: commands that use finished runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from pfedsam.cli.console import OUT, event_bars
from pfedsam.cli.predicting import (
    Backbone,
    DicomSeg,
    Flips,
    Images,
    Largest,
    Model,
    Overrides,
    Probabilities,
    Resume,
    Smallest,
    Wanted,
    predict_all,
    with_backbone,
    with_flags,
)

Folder = Annotated[Path, typer.Argument(help="Folder of a run (the --out of `pfedsam run`).")]


def evaluate_command(
    run: Folder,
    moved: Annotated[
        list[str] | None,
        typer.Option(
            "--site-folder", help="NAME=FOLDER: the present folder of a site whose data were moved; may be repeated."
        ),
    ] = None,
    backbone: Backbone = None,
) -> None:
    """Score the test part of all sites of a run again, and rewrite the scores, the summary and the report."""
    from pfedsam.engine.opened import open_run
    from pfedsam.report.tables import run_tables

    folders = _folders(moved or [])
    with event_bars() as tell:
        summary = open_run(run, with_backbone(backbone)).evaluate(tell, folders)
    for table in run_tables(summary):
        OUT.print(table)


def _folders(texts: Sequence[str]) -> dict[str, Path]:
    """The folders of sites in texts of the form NAME=FOLDER.

    Raises:
        OptionError: a text has another form.
    """
    from pfedsam.core.errors import OptionError

    parts = [text.partition("=") for text in texts]
    if wrong := [text for text, (name, _, folder) in zip(texts, parts, strict=True) if not name or not folder]:
        raise OptionError(f"--site-folder {wrong[0]!r} is not of the form NAME=FOLDER, such as north=/data/north.")
    return {name: Path(folder) for name, _, folder in parts}


def predict_command(
    run: Folder,
    images: Images,
    site: Annotated[str, typer.Option(help="Name of the site of the run whose model is used.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the masks.")],
    model: Model = Wanted.IN_USE,
    overrides: Overrides = None,
    dicom_seg: DicomSeg = False,
    probabilities: Probabilities = False,
    tta: Flips = False,
    smallest: Smallest = 0,
    largest: Largest = False,
    resume: Resume = False,
    backbone: Backbone = None,
) -> None:
    """Segment images with a site's model, and write one mask with the ids of the classes per image, on the image's own grid.

    Pictures get PNGs. NIfTI files and DICOM series get NIfTI files with the
    position of their source (or DICOM-SEG files), and volumes.csv and
    areas.csv contain the size of each structure. A folder of DICOM files
    gives one volume for each of its series, and series.csv names a file of
    each; of any other folder, all files are predicted.

    An image with an EXIF orientation is rotated first: its mask has the
    size of the picture as viewers show it, not of the stored pixels.

    A class is written with its first id in data.classes, the background with
    0 or its own first id, so that a site without labels of its own
    (data.sites.<name>.labels) can read the masks. Masks have 8 bits, or 16 if
    an id is above 255.
    An existing file is never overwritten; only --resume replaces the files
    of an image that an interrupted call had begun. If classes overlap, each class
    has its own folder with its masks.

    Example: pfedsam predict runs/nuclei/pfedsam new/*.png --site histo --out masks
    """
    from pfedsam.engine.opened import OpenSite, open_run
    from pfedsam.engine.predict_volume import PredictOptions

    def opened() -> OpenSite:
        changes = [*with_flags(overrides, tta=tta, largest=largest), *with_backbone(backbone)]
        return open_run(run, changes).site(site, model.value)

    predict_options = PredictOptions(probabilities, smallest)
    predict_all(images, out, opened, model, predict_options, dicom_seg=dicom_seg, resume=resume)


def report_command(
    run: Folder,
    baseline: Annotated[
        Path | None, typer.Option(help="Folder of a run with method local-only, to show the gain over it.")
    ] = None,
) -> None:
    """Write the report of a run again; with a baseline, the report also shows the gain over training without a federation."""
    from pfedsam.engine.server_files import check_records
    from pfedsam.report.page import write_page

    check_records(run)
    OUT.print(f"Report: {write_page(run, baseline=baseline)}")
