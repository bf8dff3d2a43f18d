"""The number of sequences is stored for volumes, and a case with another number is refused."""

from pathlib import Path

import pytest

from pfedsam.core.errors import DataError, StoreError
from pfedsam.data.manifest import Case, Site
from pfedsam.data.sequences import SEQUENCES, read_sequences, refuse_other_number, write_sequences


def _site(*numbers: int, volume: bool = True) -> Site:
    cases = [
        Case("s", f"c{k}", Path("a"), None, f"c{k}", "train", volume=volume, sequences=(Path("b"),) * (number - 1))
        for k, number in enumerate(numbers)
    ]
    return Site("s", Path(), tuple(cases))


@pytest.mark.parametrize(
    ("site", "found"),
    [(_site(1, 1), 1), (_site(3), 3), (_site(1, volume=False), None), (_site(1, 2), None)],
    ids=["one", "three", "pictures", "mixed"],
)
def test_the_number_of_training_volumes_is_read_back(site: Site, found: int | None, tmp_path: Path) -> None:
    write_sequences(tmp_path, site)
    assert read_sequences(tmp_path) == found


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"sequences": "x"}'])
def test_a_damaged_file_is_told(content: str, tmp_path: Path) -> None:
    (tmp_path / SEQUENCES).write_text(content)
    with pytest.raises(StoreError, match=r"sequences\.json of the site is damaged"):
        read_sequences(tmp_path)


def test_another_number_is_refused_with_what_to_do() -> None:
    for number, trained in ((1, None), (3, None), (1, 1), (2, 2)):
        refuse_other_number(number, trained)
    with pytest.raises(DataError, match=r"trained on 2 sequences .* one of 1; .*channels=\['_t1', '_t2'\]"):
        refuse_other_number(1, 2)
    with pytest.raises(DataError, match=r"trained on one sequence .* one of 2; leave data\.volume\.channels empty"):
        refuse_other_number(2, 1)
