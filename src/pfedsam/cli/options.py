"""`pfedsam options`: lists every key of a configuration."""

from typing import Annotated

import typer
from rich.table import Table

from pfedsam.cli.console import OUT


def options_command(
    part: Annotated[
        str, typer.Argument(help="Show only keys whose path contains this text, such as training or augment.")
    ] = "",
) -> None:
    """Show every key of a configuration file, with its default and its meaning.

    In a description, "empty" means null, or an empty list or mapping: --set training.patience=null.
    The file config.yaml in the folder of a run lists all keys that have an effect in the run, with their values.
    Example: pfedsam options optimizer
    """  # noqa: DOC501 - shown as help
    from pfedsam.core.errors import OptionError
    from pfedsam.experiment.load import all_keys

    found = [key for key in all_keys() if part in key.path]
    if not found:
        raise OptionError(f"No key has {part!r} in its path. `pfedsam options` shows all of them.")
    table = Table("key", "default", "description", box=None, pad_edge=False)
    for key in found:
        table.add_row(key.path, key.default or "(give one)", key.description)
    OUT.print(table)
