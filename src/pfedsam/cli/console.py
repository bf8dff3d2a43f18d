"""What the commands share: consoles, and progress bars with the time that is left."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

if TYPE_CHECKING:
    from pfedsam.engine.in_process import Event


class PlainConsole(Console):
    """Prints text as it stands, wherever it came from: no markup, no emoji codes, and "?" for what would steer the terminal."""

    def render_str(self, text: str, **settings: Any) -> Text:  # noqa: ANN401 - rich's own settings
        """As rich's, without markup and control characters."""
        shown = "".join(c if c.isprintable() or c in "\n\t" else "?" for c in text)
        return super().render_str(shown, **{**settings, "markup": False, "emoji": False})


OUT = PlainConsole()
ERR = PlainConsole(stderr=True)


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
def event_bars(title: str = "") -> Iterator["Callable[[Event], None]"]:
    """A bar per stage of a run; yields the callback that moves them."""
    columns = (
        TextColumn("{task.description:<34}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=ERR) as bars:
        tasks: dict[str, TaskID] = {}

        def tell(event: "Event") -> None:
            name = f"{title} {event.stage}".strip()
            if name not in tasks:
                tasks[name] = bars.add_task(name, total=event.total)
            bars.update(tasks[name], completed=event.done, description=f"{name}: {event.detail}"[:60])

        yield tell
