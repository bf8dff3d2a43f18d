"""`pfedsam evaluate`, `predict` and `report`: commands that use finished runs."""

from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pfedsam.cli.console import OUT, event_bars

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from pfedsam.data.labels import LabelMap


class Wanted(StrEnum):
    """The model of a site that is used for prediction."""

    IN_USE = "in-use"
    PERSONAL = "personal"
    SHARED = "shared"


Folder = Annotated[Path, typer.Argument(help="Folder of a run (the --out of `pfedsam run`).")]


def evaluate_command(run: Folder) -> None:
    """Score the test part of all sites of a run again, and rewrite the scores, the summary and the report."""
    from pfedsam.engine.opened import open_run
    from pfedsam.report.tables import run_tables

    with event_bars() as tell:
        summary = open_run(run).evaluate(tell)
    for table in run_tables(summary):
        OUT.print(table)


def predict_command(
    run: Folder,
    images: Annotated[list[Path], typer.Argument(help="Images to segment (PNG, JPEG, TIFF), or folders of them.")],
    site: Annotated[str, typer.Option(help="Name of the site of the run whose model is used.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the masks.")],
    model: Annotated[
        Wanted,
        typer.Option(
            help="personal, shared, or in-use: the one of the two that was better on the site's validation part."
        ),
    ] = Wanted.IN_USE,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="Override a key of the configuration, such as data.image.max_megapixels=150; may be repeated."
        ),
    ] = None,
) -> None:
    """Segment images with a site's model: one PNG of ids per image, at the image's own size.

    An image that an EXIF orientation turns is turned first: its mask has the
    size of the picture as viewers show it, not of the stored pixels.

    A class is written as its first id in data.classes, the background as 0
    unless it has another: the run's configuration reads the masks back.
    They are grey PNGs of 8 bits, or of 16 where an id is above 255.
    A file that is there already is never overwritten. Where classes overlap,
    every class has a folder of its own with its masks.

    Example: pfedsam predict runs/nuclei/pfedsam new/*.png --site histo --out masks
    """
    from pfedsam.engine.opened import open_run
    from pfedsam.experiment.build import build_labels

    targets = mask_files(images, out)
    opened = open_run(run, overrides or [])
    used = opened.site(site, model.value)
    OUT.print(
        f"Model: the {used.uses} one of site {site}{' (in use there)' if model is Wanted.IN_USE else ''}", markup=False
    )
    write_masks(targets, used.predict, build_labels(opened.options))


def write_masks(
    targets: Mapping[Path, Path], predict: "Callable[[Path], npt.NDArray[np.uint8]]", labels: "LabelMap"
) -> None:
    """Write the mask of each image, or one for each class where classes overlap; `predict` returns its labels [H, W].

    Raises:
        DataError: some images cannot be read; the masks of all others are written.
        OptionError: the mask of a class exists already.
    """
    from io import BytesIO

    import numpy as np
    from PIL import Image

    from pfedsam.core import atomic
    from pfedsam.core.errors import DataError

    unread: list[str] = []
    labels.to_ids(np.zeros((1, 1), np.uint8))  # refuses ids that cannot be written before any image is predicted
    if labels.overlap:
        _refuse_existing(target.parent / name / target.name for target in targets for name in labels.names)
    for target, image in targets.items():
        try:
            masks = labels.to_ids(predict(image))
        except DataError as error:
            unread.append(str(error))
            continue
        for name, ids in masks.items():
            path = target.parent / name / target.name
            path.parent.mkdir(parents=True, exist_ok=True)
            png = BytesIO()
            Image.fromarray(ids).save(png, format="PNG")
            atomic.write_bytes(path, png.getvalue(), mode=atomic.usual_mode())
            OUT.print(f"{image.name} -> {path}")
    if unread:
        raise DataError(
            f"{len(targets) - len(unread)} mask(s) written; {len(unread)} image(s) got none:\n" + "\n".join(unread)
        )


def _refuse_existing(paths: Iterable[Path]) -> None:
    """Let only new files be written.

    Raises:
        OptionError: one exists already.
    """
    from pfedsam.core.errors import OptionError

    for path in paths:
        if path.exists():
            raise OptionError(
                f"{str(path)!r} is there already. Nothing was written: give another --out, or take it away."
            )


def mask_files(images: list[Path], out: Path) -> dict[Path, Path]:
    """The image of each mask, by the path of the mask's new file.

    Raises:
        OptionError: two masks would have the same file, a file exists already, or a folder has no images.
    """
    from pfedsam.core.errors import OptionError

    images = [image for given in images for image in _images_in(given)]
    inputs = {image.resolve() for image in images}
    targets: dict[Path, Path] = {}
    for image in images:
        target = out / f"{image.stem}.png"
        if target in targets:
            raise OptionError(
                f"The images {str(targets[target])!r} and {str(image)!r} have the same name without its ending: both masks "
                f"would be {str(target)!r}. Nothing was written; rename one, or give them in two calls with different --out."
            )
        if target.exists():
            what = "is one of the images" if target.resolve() in inputs else "exists already"
            raise OptionError(
                f"The mask of {str(image)!r} would overwrite {str(target)!r}, which {what}. Nothing was written; "
                "give another --out, such as a new folder."
            )
        targets[target] = image
    return targets


def _images_in(given: Path) -> "Iterable[Path]":
    """The path of an image, or the images in a folder in the order of their names.

    Raises:
        OptionError: the folder has no images.
    """
    if not given.is_dir():
        return [given]
    from pfedsam.core.errors import OptionError
    from pfedsam.data.manifest import READABLE, SUFFIXES

    found = sorted(p for p in given.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
    if not found:
        raise OptionError(f"The folder {str(given)!r} holds no image ({READABLE}). Nothing was written.")
    return found


def report_command(
    run: Folder,
    baseline: Annotated[
        Path | None, typer.Option(help="Folder of a run with method local-only, to show the gain over it.")
    ] = None,
) -> None:
    """Write the report of a run again; with a baseline, the report also shows the gain over training without a federation."""
    from pfedsam.report.page import write_page

    OUT.print(f"Report: {write_page(run, baseline=baseline)}")
