"""Fixtures that call the command line as users do."""

import sys
from collections.abc import Callable

import pytest

from pfedsam.cli.main import main


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Runs `pfedsam` with these words and gives its exit code."""

    def _call(*words: object) -> int:
        monkeypatch.setattr(sys, "argv", ["pfedsam", *map(str, words)])
        try:
            main()
        except SystemExit as stop:
            return int(stop.code or 0)
        return 0

    return _call
