"""What the commands share: consoles, warnings, and progress bars with the time that is left."""

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from pfedsam.core.log import get_logger

if TYPE_CHECKING:
    from pfedsam.engine.progress import Event

_DESCRIPTION = 44
"""Characters of a bar's text: with bar, count and time it fits a line of 80 columns or a little more."""


class PlainConsole(Console):
    """Prints text as it stands, wherever it came from: no markup, no emoji codes, and "?" for what would steer the terminal."""

    def render_str(self, text: str, **settings: Any) -> Text:  # noqa: ANN401 - rich's own settings
        """As rich's, without markup and control characters."""
        shown = "".join(c if c.isprintable() or c in "\n\t" else "?" for c in text)
        return super().render_str(shown, **{**settings, "markup": False, "emoji": False})


OUT = PlainConsole()
ERR = PlainConsole(stderr=True)


class _Warnings(logging.Handler):
    """Prints each warning of the package once, as `Warning: ...`; above a progress bar where there is one."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if text not in self._said:
            self._said.add(text)
            warn(text)


def warn(text: str) -> None:
    """Print a warning to standard error, whole and unwrapped where it is no terminal."""
    ERR.print(f"Warning: {text}", markup=False, highlight=False, soft_wrap=not ERR.is_terminal)


def show_warnings() -> None:
    """Print what the package warns of from now on."""
    logger = get_logger("pfedsam")
    for handler in [one for one in logger.handlers if isinstance(one, _Warnings)]:
        logger.removeHandler(handler)
    logger.addHandler(_Warnings())


def print_error(text: str, kind: str = "") -> None:
    """Print an error to standard error, lines whole where it is no terminal, after the kind of error."""
    if kind:
        ERR.print(f"{kind}: ", style="red", end="")
    ERR.print(text, markup=False, highlight=False, soft_wrap=not ERR.is_terminal)


def shorten(text: str, width: int) -> str:
    """The text, its end replaced by an ellipsis where it is longer than `width`."""
    return text if len(text) <= width else text[: width - 1] + "\N{HORIZONTAL ELLIPSIS}"


def needs_linux() -> None:
    """Before the commands that start NVFlare's processes, or work on their folders.

    Raises:
        RunError: this is another system.
    """
    if sys.platform != "linux":
        from pfedsam.core.errors import RunError

        raise RunError(
            "`pfedsam coordinator` and `pfedsam site` need Linux, because NVFlare's processes are ended safely only there. "
            "All other commands work here too."
        )


@contextmanager
def event_bars() -> Iterator["Callable[..., None]"]:
    """A bar per stage of a run; yields the callback that moves them, with the title of a run where there are several."""
    columns = (
        TextColumn("{task.description:<34}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=ERR) as bars:
        tasks: dict[str, TaskID] = {}

        def tell(event: "Event", title: str = "") -> None:
            name = f"{title} {event.stage}".strip()
            if name not in tasks:
                tasks[name] = bars.add_task(name, total=event.total)
            bars.update(tasks[name], completed=event.done, description=shorten(f"{name}: {event.detail}", _DESCRIPTION))

        yield tell
