from types import SimpleNamespace

import pytest

from pfedsam.core.errors import OptionError
from pfedsam.core.registry import by_name


def test_parts_are_found_by_their_names_in_their_order() -> None:
    parts = [SimpleNamespace(name="b"), SimpleNamespace(name="a")]
    assert list(by_name("method", parts)) == ["b", "a"]
    assert by_name("method", parts)["a"] is parts[1]


def test_a_copy_that_kept_the_name_of_its_original_is_refused() -> None:
    parts = [SimpleNamespace(name="fedavgm"), SimpleNamespace(name="fedavg"), SimpleNamespace(name="fedavgm")]
    with pytest.raises(OptionError, match="Two files define the method 'fedavgm': give each method a name of its own"):
        by_name("method", parts)
