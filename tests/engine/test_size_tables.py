"""The tables of sizes are unchanged if a mask cannot be written; whole predictions are in tests/cli/test_predict_volumes.py."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pfedsam.core.errors import DataError
from pfedsam.engine.size_tables import AREAS, SIZES, read_rows, refuse_other_tables, replace_rows, tables_restored


def test_tables_have_their_earlier_content_after_a_failure(tmp_path: Path) -> None:
    def interrupted() -> None:
        with tables_restored(tmp_path):
            (tmp_path / SIZES).write_text("after")
            (tmp_path / AREAS).write_text("new")
            raise KeyboardInterrupt

    (tmp_path / SIZES).write_text("before")
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (tmp_path / SIZES).read_text() == "before"
    assert not (tmp_path / AREAS).exists()


def test_a_failure_takes_no_line_of_another_process_away(tmp_path: Path) -> None:
    columns, failing, waiting = ("image", "voxels"), threading.Event(), threading.Event()

    def finish() -> None:
        failing.wait(10)
        waiting.set()
        with tables_restored(tmp_path):
            replace_rows(tmp_path / SIZES, columns, "b", [("b", 2)])

    def fail() -> None:
        with tables_restored(tmp_path):
            replace_rows(tmp_path / SIZES, columns, "a", [("a", 1)])
            failing.set()
            waiting.wait(10)
            other.join(0.2)  # it must not get further than to the lock
            raise KeyboardInterrupt

    other = threading.Thread(target=finish)
    other.start()
    with pytest.raises(KeyboardInterrupt):
        fail()
    other.join(10)
    assert read_rows(tmp_path / SIZES, columns) == [["b", "2"]]


def test_no_line_is_lost_if_several_write(tmp_path: Path) -> None:
    columns = ("image", "voxels")

    def write(name: str) -> None:
        with tables_restored(tmp_path):
            replace_rows(tmp_path / SIZES, columns, name, [(name, 1)])

    names = [f"case{number}" for number in range(12)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, names))
    assert sorted(row[0] for row in read_rows(tmp_path / SIZES, columns)) == sorted(names)


def test_names_that_a_spreadsheet_takes_for_formulas_are_quoted_and_replaced(tmp_path: Path) -> None:
    path, name = tmp_path / SIZES, '=HYPERLINK("http://x","y")'
    for voxels in (1, 2):
        replace_rows(path, ("image", "structure", "voxels"), name, [(name, "organ", voxels)])
    assert path.read_text() == 'image,structure,voxels\n"\'=HYPERLINK(""http://x"",""y"")",organ,2\n'


def test_a_table_of_another_program_is_refused_by_name(tmp_path: Path) -> None:
    refuse_other_tables([tmp_path])
    (tmp_path / AREAS).write_text("image;structure\n")
    with pytest.raises(DataError, match=r"'areas\.csv' in the output folder is another table"):
        refuse_other_tables([tmp_path])
