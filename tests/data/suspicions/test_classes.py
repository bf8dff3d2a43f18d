from pathlib import Path

import faulty_sites as faulty
import numpy as np
import pytest

from pfedsam.data.facts import CaseFacts, MaskFacts, SiteFacts
from pfedsam.data.images import ImageOptions
from pfedsam.data.manifest import Case, Site
from pfedsam.data.suspicions.classes import sparse_class


def test_a_site_of_background_alone_is_one_warning(tmp_path):
    faulty.clean_study(tmp_path)
    faulty._change_masks(tmp_path / "b", np.zeros_like)
    (warning,) = faulty.read_and_check(tmp_path).warnings
    assert warning.startswith("site 'b': its masks hold background alone")
    assert "data.classes" in warning


@pytest.mark.parametrize(
    ("more", "warned"), [({}, True), ({"sparse_loss": True}, False), ({"foreground_share": 0.5}, False)]
)
def test_a_class_of_a_thousandth_is_a_warning_unless_something_is_done_about_it(more, warned):
    case = Case("a", "one", Path("one.png"), Path("one.png"), "one")
    facts = SiteFacts(
        Site("a", Path(), (case,)),
        (CaseFacts(case, mask=MaskFacts((100, 100), pixels={0: 9990, 1: 10})),),
        False,
        (),
        (),
        (),
    )
    study = faulty.Study(faulty.LabelMap({"lesion": [1]}), ImageOptions(), **more)
    found = [str(one) for one in sparse_class(facts, study)]
    assert bool(found) == warned
    assert all("'lesion' fills 0.1 %" in one and "training.loss: focal_tversky" in one for one in found)
