"""Logging: one tree of loggers under `pfedsam`, which writes nothing until a program configures it."""

import logging
import os
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Final

_ROOT = "pfedsam"
_MAX_BYTES: Final = 20 * 2**20
_KEPT: Final = 3
_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"

logging.getLogger(_ROOT).addHandler(logging.NullHandler())


class _PrivateFile(RotatingFileHandler):
    """A log that only its owner can read and that does not grow without end: the last ones stay as `<name>.1` and so on."""

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
    handlers: list[logging.Handler] = [logging.StreamHandler()]
    if file is not None:
        handlers.append(_PrivateFile(file, maxBytes=_MAX_BYTES, backupCount=_KEPT, encoding="utf-8"))
    for handler in handlers:
        handler.setFormatter(logging.Formatter(_FORMAT))
        root.addHandler(handler)
    root.setLevel(level)
    root.propagate = False
