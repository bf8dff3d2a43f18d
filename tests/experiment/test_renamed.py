"""Old names of keys are refused with the new ones."""

from pathlib import Path

import pytest

from pfedsam.core.errors import OptionError
from pfedsam.experiment.load import all_keys, read_options
from pfedsam.experiment.renamed import RENAMED

STUDY = "data: {sites: {a: here}, classes: {n: [1]}}\n"
KEYS = {key.path for key in all_keys()}


@pytest.mark.parametrize("old", RENAMED)
def test_an_old_name_is_refused_with_the_new_one_which_exists(old: str, tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(STUDY)
    assert old not in KEYS
    assert RENAMED[old].path in KEYS
    with pytest.raises(OptionError, match=f"{old}: this option is now called {RENAMED[old].path}"):
        read_options(tmp_path / "study.yaml", [f"{old}=0.5"])


def test_a_value_that_has_another_meaning_is_told(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(STUDY + "training: {opening: 0.5}\n")
    with pytest.raises(
        OptionError, match=r"training\.shared_warmup_rounds; give a number of rounds, not a part of them"
    ):
        read_options(tmp_path / "study.yaml")
