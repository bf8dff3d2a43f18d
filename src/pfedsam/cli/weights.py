"""`pfedsam weights`: list, fetch and verify weights."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from pfedsam.cli.console import OUT
from pfedsam.core.errors import CheckpointError, OptionError
from pfedsam.model import weights

app = typer.Typer(
    no_args_is_help=True,
    help=(
        "List, download and verify weights of Segment Anything. "
        "The weights that ship with pFedSAM need no download; `list` shows their names."
    ),
)


@app.command("list")
def list_weights() -> None:
    """Show the available backbones: shipped ones, models on the hub, and the official files with their SHA-256."""
    from pfedsam.model.backbones.checkpoint import shipped_names

    OUT.print(f"Shipped, to be used by name: {', '.join(shipped_names()) or 'none is installed'}")
    table = Table("name", "on the hub", "official file", "MB", title="Known weights")
    for file in weights.KNOWN_FILES.values():
        table.add_row(file.name, file.hub, file.file_name, f"{file.bytes / 1e6:.0f}")
    OUT.print(table)
    for file in weights.KNOWN_FILES.values():
        where = f" from {file.url}" if file.url else ""
        OUT.print(f"{file.name}: {file.about}. {file.file_name}{where} has SHA-256 {file.sha256}", soft_wrap=True)
    OUT.print(
        "`pfedsam weights fetch NAME` downloads a model from the hub. An official file that is on this machine is used by its path.",
        soft_wrap=True,
    )


@app.command()
def fetch(
    name: Annotated[
        str,
        typer.Argument(
            help="A name from `pfedsam weights list`, such as sam-vit-b, or any name of a model on the hub."
        ),
    ],
) -> None:
    """Download a SAM or SAM-HQ from the hub into the hub's cache on this machine.

    After an interruption, the same command continues the download. The environment variable HF_HOME is the folder of the cache,
    HF_ENDPOINT the address of a mirror, and with HF_HUB_OFFLINE=1 nothing is downloaded.
    """
    from pfedsam.model.backbones.checkpoint import describe
    from pfedsam.model.hub import find_on_hub

    hub_name = _hub_name(name)
    find_on_hub(hub_name, may_download=True)
    OUT.print(
        f"{hub_name} is {describe(hub_name)}. It is in the hub's cache: use {hub_name} as the backbone.", soft_wrap=True
    )


def _hub_name(name: str) -> str:
    """The hub name for a name in `pfedsam weights list`; a hub name is returned unchanged.

    Raises:
        OptionError: the name is neither.
    """
    if name in weights.KNOWN_FILES:
        return weights.KNOWN_FILES[name].hub
    if "/" not in name:
        raise OptionError(
            f"There are no known weights called {name!r}. Allowed are {', '.join(weights.KNOWN_FILES)}, and the names of models "
            "on the hub, such as facebook/sam-vit-base."
        )
    return name


@app.command()
def verify(
    files: Annotated[list[Path], typer.Argument(help="Weight files or transformers folders, with any names.")],
) -> None:
    """Show for each file whether it is an official file, another readable file, or unusable; fails if a file is unusable."""
    _refuse_unusable([path for path in files if not _verify(path)], len(files))


def _refuse_unusable(unusable: list[Path], count: int) -> None:
    """Raise an error if a file is unusable.

    Raises:
        CheckpointError: a file is unusable.
    """
    if unusable:
        raise CheckpointError(f"{len(unusable)} of {count} cannot be used: {', '.join(map(str, unusable))}.")


def _verify(path: Path) -> bool:
    """Print the kind of a file, and return whether it can be used as a backbone."""
    from pfedsam.model.backbones.checkpoint import describe

    if not path.exists():
        OUT.print(f"{path}: MISSING. There is no such file or folder.", soft_wrap=True)
        return False
    try:
        known, digest = (None, "") if path.is_dir() else weights.identify(path)
        weights.check_official_name(path)
        if known is not None:
            OUT.print(f"{path}: OFFICIAL. It is {known.file_name} ({known.about}).", soft_wrap=True)
            return True
        read = describe(path)
    except CheckpointError as error:
        OUT.print(f"{path}: UNUSABLE. {error}", soft_wrap=True)
        return False
    other = f"; it is none of the official files, SHA-256 {digest}" if digest else ""
    OUT.print(f"{path}: READABLE. It is {read}{other}.", soft_wrap=True)
    return True
