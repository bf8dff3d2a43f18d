from pathlib import Path

import pytest

from pfedsam.core.errors import StoreError
from pfedsam.data.of_training import common, read_of_training


def test_a_file_that_is_not_there_is_none_and_a_damaged_one_says_what_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "n.json"
    assert read_of_training(path, int, lost="counts less") is None
    path.write_text("7")
    assert read_of_training(path, int, lost="counts less") == 7
    for damaged in ("", "{", "null", '"x"'):
        path.write_text(damaged)
        with pytest.raises(
            StoreError, match=r"^n\.json of the site is damaged\. .* `predict` works, but counts less\.$"
        ):
            read_of_training(path, int, lost="counts less")


@pytest.mark.parametrize(
    ("values", "found"), [([], None), ([2, 2], 2), ([2, 3], None), ([None, 2], None), ([None], None)]
)
def test_a_common_value_is_one_that_all_have(values: list[int | None], found: int | None) -> None:
    assert common(iter(values)) == found
