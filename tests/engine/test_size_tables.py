"""The tables of sizes are unchanged if a mask cannot be written; whole predictions are in tests/cli/test_predict_volumes.py."""

from pathlib import Path

import pytest

from pfedsam.core.errors import DataError
from pfedsam.engine.size_tables import AREAS, SIZES, refuse_other_tables, tables_restored


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


def test_a_table_of_another_program_is_refused_by_name(tmp_path: Path) -> None:
    refuse_other_tables([tmp_path])
    (tmp_path / AREAS).write_text("image;structure\n")
    with pytest.raises(DataError, match=r"'areas\.csv' in the output folder is another table"):
        refuse_other_tables([tmp_path])
