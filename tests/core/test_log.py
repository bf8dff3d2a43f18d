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


def test_a_file_is_added_once_and_changes_nothing_else(tmp_path, capsys):
    log.configure("WARNING")
    for _ in range(2):
        log.add_file(tmp_path / "site.log")
    log.get_logger("x").info("never")
    assert not (tmp_path / "site.log").exists()
    log.get_logger("x").warning("once")
    assert (tmp_path / "site.log").read_text().count("once") == capsys.readouterr().err.count("once") == 1
    assert stat.S_IMODE((tmp_path / "site.log").stat().st_mode) == 0o600


def test_a_log_that_another_process_renamed_is_continued_in_the_new_file(tmp_path):
    file = tmp_path / "site.log"
    log.add_file(file)
    log.get_logger("x").warning("first")
    file.rename(tmp_path / "site.log.1")  # as a process does that finds the log full
    log.get_logger("x").warning("second")
    assert "second" not in (tmp_path / "site.log.1").read_text()
    assert "second" in file.read_text()


def test_a_log_and_its_earlier_part_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(log, "MAX_BYTES", 1000)
    log.add_file(tmp_path / "site.log")
    for count in range(200):
        log.get_logger("x").warning("line %d", count)
    sizes = [path.stat().st_size for path in tmp_path.iterdir()]
    assert len(sizes) == 2
    assert max(sizes) <= 1000
    assert "line 199" in (tmp_path / "site.log").read_text()
    assert stat.S_IMODE((tmp_path / "site.log.1").stat().st_mode) == 0o600
