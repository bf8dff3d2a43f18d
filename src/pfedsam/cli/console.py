"""Functions that all commands share: consoles, warnings, and progress bars with the remaining time."""

import errno
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from pfedsam.core.log import get_logger

if TYPE_CHECKING:
    from pfedsam.engine.progress import Event

_DESCRIPTION = 38
"""Least length of a progress bar's text in characters, so that with bar, count and time it fits a line of about 80 columns."""
_BESIDE = 46
"""Columns for the bar, the count and the time beside the text."""


class PlainConsole(Console):
    """Prints text from any source literally and whole.

    Markup and emoji codes are not interpreted, and control characters are shown as "?". A word that is longer than its column of a table,
    such as a hash or a path, continues in the next line; rich would cut it off.

    If the terminal is closed, or nobody reads standard error any more, nothing more is printed and the command goes on. If nobody reads
    standard output any more, the command ends, as other programs do.
    """

    def on_broken_pipe(self) -> None:
        """Called by rich when nobody reads the output any more."""
        if self.stderr:
            self._discard_output()
        else:
            super().on_broken_pipe()

    def _check_buffer(self) -> None:
        try:
            super()._check_buffer()
        except OSError as error:
            if error.errno != errno.EIO:  # the error of a terminal that was closed
                raise
            self._discard_output()

    def _discard_output(self) -> None:
        """Print nothing more; what the file still has in its buffer goes to the null device."""
        self.quiet = True
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.file.fileno())
        os.close(nowhere)

    def print(self, *objects: Any, **settings: Any) -> None:  # noqa: ANN401 - rich's own parameters
        """Print as rich does, with all letters of the cells of tables."""
        for table in objects:
            for column in table.columns if isinstance(table, Table) else ():
                column.overflow = column.overflow if column.no_wrap else "fold"
        super().print(*objects, **settings)

    def render_str(self, text: str, **settings: Any) -> Text:  # noqa: ANN401 - rich's own settings
        """Render text as rich does, but without markup and control characters."""
        shown = "".join(c if c.isprintable() or c in "\n\t" else "?" for c in text)
        return super().render_str(shown, **{**settings, "markup": False, "emoji": False})


OUT = PlainConsole()
ERR = PlainConsole(stderr=True)


class _Warnings(logging.Handler):
    """Prints each warning of the package once, as `Warning: ...`; if a progress bar is shown, above the bar."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if text not in self._said:
            self._said.add(text)
            warn(text)


def warn(text: str) -> None:
    """Print a warning to standard error; its lines are not wrapped if that is not a terminal."""
    ERR.print(f"Warning: {text}", markup=False, highlight=False, soft_wrap=not ERR.is_terminal)


def show_warnings() -> None:
    """From now on, print the warnings that the package logs."""
    logger = get_logger("pfedsam")
    for handler in [one for one in logger.handlers if isinstance(one, _Warnings)]:
        logger.removeHandler(handler)
    logger.addHandler(_Warnings())


def print_in_any_encoding() -> None:
    """From now on, write letters that the encoding of the output lacks by their numbers in Unicode, instead of ending with an error.

    Terminals and files of output need not be UTF-8: other encodings are those of a locale such as de_DE.ISO-8859-1, of files that Windows
    writes, and of PYTHONIOENCODING. Names of sites, classes and files may have any letter.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def print_error(text: str, kind: str = "") -> None:
    """Print an error after its kind to standard error; its lines are not wrapped if that is not a terminal."""
    if kind:
        ERR.print(f"{kind}: ", style="red", end="")
    ERR.print(text, markup=False, highlight=False, soft_wrap=not ERR.is_terminal)


def confirmed(question: str, *, yes: bool) -> bool:
    """Whether the user answers a question with yes, or has done so already by the option --yes.

    Raises:
        OptionError: the input ended without an answer.
        RuntimeError: the user pressed Ctrl-C (typer.Abort).
    """
    try:
        agreed = yes or typer.confirm(question)
    except RuntimeError as stopped:
        # It is the Abort of typer, whose context is the reason, or an error of Python, if the standard input is closed.
        if isinstance(stopped.__context__, KeyboardInterrupt):
            raise
        from pfedsam.core.errors import OptionError

        OUT.print()  # ends the line of the question
        raise OptionError(
            f"Nothing was done: the question {question!r} was not answered. Answer it in a terminal, or give --yes."
        ) from None
    if not agreed:
        OUT.print("Nothing was done.")
    return agreed


def shorten(text: str, width: int) -> str:
    """The text; if it is longer than `width`, its end is replaced by an ellipsis."""
    return text if len(text) <= width else text[: width - 1] + "\N{HORIZONTAL ELLIPSIS}"


def fitted(text: str, *, beside: int, least: int = 34) -> str:
    """The text, shortened to the columns of the terminal that are free beside `beside` others, but never to fewer than `least`."""
    return shorten(text, max(least, ERR.width - beside))


def needs_linux() -> None:
    """Refuse to run a command that starts NVFlare's processes, or works on their folders, on a system other than Linux.

    Raises:
        RunError: the system is not Linux.
    """
    if sys.platform != "linux":
        from pfedsam.core.errors import RunError

        raise RunError(
            "`pfedsam coordinator` and `pfedsam site` need Linux, because NVFlare's processes are ended safely only there. "
            "All other commands work here too."
        )


@contextmanager
def event_bars() -> Iterator["Callable[..., None]"]:
    """Show a progress bar for each stage of a run; yields the callback that updates them, which also gets the title of the run."""
    columns = (
        TextColumn("{task.description:<34}", markup=False),
        BarColumn(bar_width=10),
        TextColumn("{task.fields[count]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=ERR) as bars:
        tasks: dict[str, TaskID] = {}

        def tell(event: "Event", title: str = "") -> None:
            name = f"{title} {event.stage}".strip()
            if name not in tasks:
                tasks[name] = bars.add_task(name, total=event.total, count="")
            description = fitted(f"{name}: {event.detail}", beside=_BESIDE, least=_DESCRIPTION)
            bars.update(
                tasks[name], total=event.total, completed=event.done, description=description, count=_count(event)
            )

        yield tell


def _count(event: "Event") -> str:
    """How far a stage is: in training the images that each site has drawn, else the steps of the stage."""
    if event.images is None:
        return f"{event.done}/{event.total}"
    return f"{event.images[0]:,}/{event.images[1]:,} images a site"
