"""`pfedsam weights`: list, fetch and verify official weight files."""

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table

from pfedsam.cli.console import OUT
from pfedsam.model import weights

app = typer.Typer(
    no_args_is_help=True,
    help=(
        "Official Segment Anything weights: list them, fetch them, verify them. "
        "Nothing needs to be fetched for the SAMs that ship with pFedSAM; `list` names them."
    ),
)


@app.command("list")
def list_weights() -> None:
    """List the backbones that ship with pFedSAM, and the official weight files with their SHA-256."""
    from pfedsam.model.backbones.checkpoint import shipped_names

    OUT.print(f"Shipped, to be used by name: {', '.join(shipped_names()) or 'none is installed'}")
    table = Table("name", "file", "MB", "fetch", title="Official files")
    for file in weights.KNOWN_FILES.values():
        table.add_row(file.name, file.file_name, f"{file.bytes / 1e6:.0f}", "yes" if file.url else "no: by hand")
    OUT.print(table)
    for file in weights.KNOWN_FILES.values():
        OUT.print(f"{file.name}: {file.about}. SHA-256 {file.sha256}", soft_wrap=True)
    OUT.print(
        "Names of models on the hub, such as facebook/sam-vit-base, can be used directly if the hub can be reached."
    )


@app.command()
def fetch(
    name: Annotated[
        str,
        typer.Argument(
            help="A name from `pfedsam weights list`, such as sam-vit-b, or the name of a model on the hub."
        ),
    ],
    folder: Annotated[Path, typer.Option(help="Folder for the file; it is created if it does not exist.")] = Path(
        "weights"
    ),
    base_url: Annotated[
        str | None,
        typer.Option(
            help="URL of a mirror that holds the files under their official names; files from there are verified, too."
        ),
    ] = None,
) -> None:
    """Download an official weight file, and verify its size and SHA-256.

    After an interruption, the same command continues the download. A file that exists already is verified and not downloaded again.
    """
    if "/" in name:
        from pfedsam.model.backbones.checkpoint import find_on_hub

        find_on_hub(name, may_download=True)
        OUT.print(f"{name} is in the hub's cache on this machine. Use its name as the backbone.", soft_wrap=True)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), transient=True) as progress:
        task = progress.add_task(name, total=None)
        path = weights.fetch(
            name,
            folder,
            base_url=base_url,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    OUT.print(f"{path} is complete and verified. Use its path as the backbone of a run.", soft_wrap=True)


@app.command()
def verify(files: Annotated[list[Path], typer.Argument(help="Weight files, whatever they are called.")]) -> None:
    """Identify official weight files by their content; fails if a file is not an official one or has the wrong name."""
    for path in files:
        file = weights.verify(path)
        weights.check_official_name(path)
        OUT.print(f"{path} is {file.file_name} ({file.about}).", soft_wrap=True)
