import logging
import stat

import pytest

from pfedsam.core import log


@pytest.fixture(autouse=True)
def _restore():
    root = logging.getLogger("pfedsam")
    kept, level, propagate = list(root.handlers), root.level, root.propagate
    yield
    for handler in root.handlers:
        if handler not in kept:
            handler.close()
    root.handlers, root.level, root.propagate = kept, level, propagate


def test_loggers_stand_under_one_root():
    assert log.get_logger("pfedsam.data.images").name == "pfedsam.data.images"
    assert log.get_logger("plugin").name == "pfedsam.plugin"


def test_configure_twice_writes_each_line_once_and_privately(tmp_path):
    file = tmp_path / "run.log"
    log.configure("INFO", file)
    log.configure("INFO", file)
    log.get_logger("x").info("once")
    log.get_logger("x").debug("never")
    assert [line.split(": ")[1] for line in file.read_text().splitlines()] == ["once"]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
