from pathlib import Path

import numpy as np
import pytest

from pfedsam.core.errors import StoreError
from pfedsam.data.facts import CaseFacts, SiteFacts
from pfedsam.data.intensity import RANGE, IntensityRange, far_from_training, read_range, training_range, write_range
from pfedsam.data.manifest import Case, Site


def _facts(*cases: tuple[str, float | None]) -> SiteFacts:
    made = [Case("a", str(n), Path(), None, str(n), split=split) for n, (split, _) in enumerate(cases)]
    facts = tuple(CaseFacts(case, high=high) for case, (_, high) in zip(made, cases, strict=True))
    return SiteFacts(Site("a", Path(), tuple(made)), facts, False, (), (), ())


def test_the_range_is_that_of_the_training_images_that_could_be_read():
    facts = _facts(("train", 0.5), ("train", 0.25), ("test", 1.0), ("train", None), ("val", 0.01))
    assert training_range(facts) == IntensityRange(0.25, 0.5)
    assert training_range(_facts(("test", 0.5), ("train", None))) is None


def test_a_range_is_read_as_it_was_written_and_a_damaged_one_is_told(tmp_path):
    assert read_range(tmp_path) is None
    write_range(tmp_path, IntensityRange(0.1, 0.7))
    assert read_range(tmp_path) == IntensityRange(0.1, 0.7)
    for content in ("{", "[]", '{"darkest": "x", "brightest": 1}', '{"darkest": 0.1}'):
        (tmp_path / RANGE).write_text(content)
        with pytest.raises(StoreError, match="of the site is damaged"):
            read_range(tmp_path)


@pytest.mark.parametrize(("value", "how"), [(0.4, None), (0.05, None), (0.04, "darker"), (0.0, "darker"), (1.0, None)])
def test_an_image_is_far_where_it_is_four_times_darker_than_every_training_image(value, how):
    said = far_from_training(np.full((8, 8, 3), value, np.float32), IntensityRange(0.2, 0.5))
    assert (said is None) == (how is None)
    assert how is None or f"much {how} than the images that the site trained on" in str(said)


def test_an_image_may_be_too_bright_and_black_ones_are_alike():
    bright = np.ones((8, 8, 3), np.float32)
    assert "much brighter" in str(far_from_training(bright, IntensityRange(0.1, 0.2)))
    black = np.zeros((8, 8, 3), np.float32)
    assert far_from_training(black, IntensityRange(0.0, 0.0)) is None
