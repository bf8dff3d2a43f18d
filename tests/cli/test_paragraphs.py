"""The help of the commands has no line breaks within its paragraphs."""

from collections.abc import Iterator

import typer

from pfedsam.cli.main import app
from pfedsam.cli.paragraphs import join_lines


def _helps(group: typer.Typer) -> Iterator[str]:
    for command in group.registered_commands:
        yield command.help or ""
    for inner in group.registered_groups:
        if inner.typer_instance is not None:
            yield from _helps(inner.typer_instance)


def test_lines_are_joined_and_paragraphs_and_the_example_are_kept() -> None:
    text = "First line.\n\nA second\nparagraph. For\nExample, this.\nExample: a b\n\nThird."
    assert join_lines(text) == "First line.\n\nA second paragraph. For Example, this.\n\nExample: a b\n\nThird."


def test_the_help_of_every_command_is_joined() -> None:
    helps = list(_helps(app))
    assert len(helps) > 20
    for text in helps:
        assert text
        assert "\n" not in text.replace("\n\n", "")
