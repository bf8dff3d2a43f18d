"""Logging: one tree of loggers under `pfedsam`, which writes nothing until a program configures it."""

import logging
import os
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Final

from pfedsam.core.files import is_at

_ROOT = "pfedsam"
MAX_BYTES: Final = 10 * 2**20
"""The largest size of a log; one earlier log of this size stays beside it, so that both have at most 20 MiB."""
_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"

logging.getLogger(_ROOT).addHandler(logging.NullHandler())


class _PrivateFile(RotatingFileHandler):
    """A log that only its owner can read and that does not grow without end: the one before it stays as `<name>.1`.

    Several processes may append to one log. If another one has renamed it, this one continues in the new file.
    """

    def shouldRollover(self, record: logging.LogRecord) -> bool:  # noqa: N802 - the name in `logging`
        """Whether the log is full; before that, open it again if another process has renamed it."""
        if self.stream is not None and not is_at(self.stream, self.baseFilename):
            self.stream.close()
            self.stream = self._open()
        return bool(super().shouldRollover(record))

    def _open(self) -> TextIOWrapper:
        file = os.fdopen(os.open(self.baseFilename, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600), "ab")
        return TextIOWrapper(file, encoding=self.encoding)


def get_logger(name: str) -> logging.Logger:
    """The logger of a module, below the logger `pfedsam`; pass `__name__`."""
    return logging.getLogger(name if name == _ROOT or name.startswith(f"{_ROOT}.") else f"{_ROOT}.{name}")


def configure(level: int | str, file: Path | None = None) -> None:
    """Send the log to standard error and, if a file is given, to that file; earlier settings are replaced.

    Args:
        level: the lowest level that is shown, as in `logging`.
        file: the log is appended to this file, which only its owner can read.
    """
    root = logging.getLogger(_ROOT)
    for handler in list(root.handlers):
        root.removeHandler(handler)
        handler.close()
    _add(logging.StreamHandler())
    if file is not None:
        add_file(file)
    root.setLevel(level)
    root.propagate = False


def add_file(file: Path) -> None:
    """Append the log to this file too, which only its owner can read; all other settings, such as the level, stay as they are.

    The file is opened with the first record; if it cannot be written, a message goes to standard error, and the program continues. If the
    log is appended to the file already, nothing changes.
    """
    files = [one for one in logging.getLogger(_ROOT).handlers if isinstance(one, _PrivateFile)]
    if not any(one.baseFilename == str(file.absolute()) for one in files):
        _add(_PrivateFile(file, maxBytes=MAX_BYTES, backupCount=1, encoding="utf-8", delay=True))


def _add(handler: logging.Handler) -> None:
    handler.setFormatter(logging.Formatter(_FORMAT))
    logging.getLogger(_ROOT).addHandler(handler)
