"""The paragraphs of the commands' help: their lines are joined, so that the terminal breaks them at its own width."""

import inspect
import re

import typer

_EXAMPLE = "Example: "


def join_help(app: typer.Typer) -> None:
    """Give every command of an app and of its groups the docstring of its function as help, with the lines of each paragraph joined."""
    for command in app.registered_commands:
        if command.help is None and command.callback is not None:
            command.help = join_lines(inspect.getdoc(command.callback) or "")
    for group in app.registered_groups:
        if group.typer_instance is not None:
            join_help(group.typer_instance)


def join_lines(text: str) -> str:
    """The text with the lines of each paragraph joined; a line that starts with `Example:` begins a paragraph."""
    parted = text.replace(f"\n{_EXAMPLE}", f"\n\n{_EXAMPLE}")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", parted))
