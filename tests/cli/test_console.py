"""Texts are printed literally, warnings are printed once, and names are shortened to the width of the terminal."""

import logging
import os
import sys
from io import StringIO

import pytest
import typer
from rich.console import Console
from rich.table import Table

from pfedsam.cli import console
from pfedsam.cli.console import OUT, PlainConsole, confirmed, event_bars, needs_linux, shorten, show_warnings
from pfedsam.core.errors import OptionError, RunError
from pfedsam.engine.progress import Event


def test_markup_and_control_characters_are_not_obeyed(capsys: pytest.CaptureFixture[str]) -> None:
    OUT.print("[red]x[/red] :smile: \x1b[31m", soft_wrap=True)
    assert capsys.readouterr().out == "[red]x[/red] :smile: ?[31m\n"


def test_a_long_word_in_a_table_is_not_cut_off() -> None:
    digest, whole = "0123456789abcdef" * 4, PlainConsole(width=40, file=StringIO())
    table = Table("name", "value")
    table.add_row("its SHA-256", digest)
    whole.print(table)
    assert "".join(character for character in whole.file.getvalue() if character in digest).endswith(digest)


def test_a_warning_is_printed_once(capsys: pytest.CaptureFixture[str]) -> None:
    show_warnings()
    show_warnings()  # as when a program calls the command line twice
    for _ in range(2):
        logging.getLogger("pfedsam.somewhere").warning("site %s: %s", "north", "dark")
    assert capsys.readouterr().err == "Warning: site north: dark\n"


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such terminals")
@pytest.mark.parametrize(
    ("what", "stderr"), [("closed terminal", False), ("closed terminal", True), ("closed pipe", True)]
)
def test_what_nobody_can_read_any_more_does_not_end_the_command(what: str, stderr: bool) -> None:
    reading, writing = os.openpty() if what == "closed terminal" else os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as file:  # closing it would fail if it still had something to write there
        lost = PlainConsole(file=file, stderr=stderr)
        lost.print("of round 3")
        lost.print("of round 4")
        with console.Progress(console=lost) as bars:
            bars.add_task("round 5")


@pytest.mark.parametrize(
    ("text", "expected"), [("abc", "abc"), ("abcd", "abcd"), ("abcde", "abc\N{HORIZONTAL ELLIPSIS}")]
)
def test_shortened_text_has_the_width(text: str, expected: str) -> None:
    assert shorten(text, 4) == expected


def test_commands_of_nvflare_need_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    needs_linux()
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(RunError, match=r"need Linux.*All other commands work here too"):
        needs_linux()


def test_each_stage_has_a_bar_with_what_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    bars: dict[str, tuple[int, int]] = {}

    class Bars(console.Progress):
        def __exit__(self, *error: object) -> None:
            bars.update({task.description: (int(task.completed), int(task.total or 0)) for task in self.tasks})
            super().__exit__(*error)  # type: ignore[arg-type]

    monkeypatch.setattr(console, "Progress", Bars)
    with event_bars() as tell:
        tell(Event("train", 1, 4, "north"))
        tell(Event("train", 3, 4, "south"))
        tell(Event("test", 1, 2, "north"), "fedavg")
    assert bars == {"train: south": (3, 4), "fedavg test: north": (1, 2)}


def test_a_bar_of_training_counts_the_images_of_a_site(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = Console(file=StringIO(), width=100)
    monkeypatch.setattr(console, "ERR", shown)
    with event_bars() as tell:
        tell(Event("train", 30, 400, "round 10 of at most 100, north", (320, 3200)))
        tell(Event("test", 1, 2, "north"))
    text = shown.file.getvalue()  # type: ignore[attr-defined]
    assert "320/3,200 images a site" in text
    assert "1/2" in text


@pytest.mark.parametrize(("width", "shown"), [(80, "fedavg train: round 4 of at most 6, n…"), (120, "north-hospital")])
def test_the_text_of_a_bar_uses_the_width_of_the_terminal(
    monkeypatch: pytest.MonkeyPatch, width: int, shown: str
) -> None:
    terminal = Console(file=StringIO(), width=width)
    monkeypatch.setattr(console, "ERR", terminal)
    with event_bars() as tell:
        tell(Event("train", 30, 400, "round 4 of at most 6, north-hospital", (1600, 3200)), "fedavg")
    text = terminal.file.getvalue()  # type: ignore[attr-defined]
    assert shown in text
    assert "1,600/3,200 images a site" in text


@pytest.mark.parametrize(("typed", "agreed"), [("y\n", True), ("yes\n", True), ("n\n", False), ("\n", False)])
def test_a_question_is_answered_by_what_is_typed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], typed: str, agreed: bool
) -> None:
    monkeypatch.setattr(sys, "stdin", StringIO(typed))
    assert confirmed("Agreed?", yes=False) is agreed
    assert ("Nothing was done." in capsys.readouterr().out) is not agreed


@pytest.mark.parametrize("source", [StringIO(""), StringIO("perhaps"), None])
def test_a_question_without_an_answer_is_an_error_that_names_the_option(
    monkeypatch: pytest.MonkeyPatch, source: StringIO | None
) -> None:
    monkeypatch.setattr(sys, "stdin", source)
    said = r"Nothing was done: the question 'Agreed\?' was not answered\. Answer it in a terminal, or give --yes\."
    with pytest.raises(OptionError, match=said):
        confirmed("Agreed?", yes=False)
    assert confirmed("Agreed?", yes=True)


def test_ctrl_c_at_a_question_is_an_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted(StringIO):
        def readline(self, *_: object) -> str:
            raise KeyboardInterrupt

    monkeypatch.setattr(sys, "stdin", Interrupted())
    with pytest.raises(typer.Abort):
        confirmed("Agreed?", yes=False)
