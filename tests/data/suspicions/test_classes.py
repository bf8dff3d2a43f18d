from pathlib import Path

import faulty_sites as faulty
import numpy as np
import pytest

from pfedsam.data.facts import CaseFacts, MaskFacts, SiteFacts
from pfedsam.data.images import ImageOptions, Stored
from pfedsam.data.manifest import Case, Site
from pfedsam.data.manifest_lines import Split
from pfedsam.data.suspicions.classes import (
    absent_from_training,
    colours_of_other_classes,
    partly_inverted,
    sparse_class,
)


def test_a_site_of_background_alone_is_one_warning(tmp_path):
    faulty.clean_study(tmp_path)
    faulty._change_masks(tmp_path / "b", np.zeros_like)
    (warning,) = faulty.read_and_check(tmp_path).warnings
    assert warning.startswith("site 'b': its masks hold background alone")
    assert "data.classes" in warning


@pytest.mark.parametrize(
    ("ids", "not_annotated", "text"),
    [
        ({"train": [0, 1, 2], "val": [0], "test": [0]}, [], None),
        ({"train": [0, 1], "val": [0, 2], "test": [0, 2]}, [], "the class 'lesion' (only in val, test), so"),
        (
            {"train": [0], "val": [0, 1], "unused": [2]},
            [],
            "the class 'organ' (only in val), 'lesion' (only in unused), so",
        ),
        ({"train": [0, 1], "val": [0], "test": [0]}, [], None),  # in no case at all: another finding
        ({"train": [0, 1], "test": [0, 2]}, ["lesion"], None),
        ({"test": [0, 1, 2]}, [], None),  # a site for testing only
        ({"train": [], "test": [0, 1, 2]}, [], None),  # no mask of the training part could be read
        ({None: [0, 1, 2]}, [], None),  # not split yet
    ],
)
def test_a_class_that_no_training_case_has_is_a_warning(
    ids: dict[Split | None, list[int]], not_annotated: list[str], text: str | None
) -> None:
    labels = faulty.LabelMap(
        {"organ": [1], "lesion": [] if not_annotated else [2]}, not_annotated=frozenset(not_annotated)
    )
    cases = [
        CaseFacts(
            Case("a", str(part), Path("x.png"), None, "p", split=part), mask=MaskFacts(pixels=dict.fromkeys(found, 9))
        )
        for part, found in ids.items()
    ]
    site = Site("a", Path(), tuple(one.case for one in cases))
    facts = SiteFacts(site, tuple(cases), False, (), (), ())
    found = [str(one) for one in absent_from_training(facts, faulty.Study(labels, ImageOptions()))]
    assert len(found) == (text is not None)
    assert all(one.startswith(f"site 'a': no training case has {text}") for one in found)


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


@pytest.mark.parametrize(
    ("shares", "edges", "inverted"),
    [
        ([5, 10, 8, 92, 94], [0, 0, 0, 100, 100], ["3", "4"]),  # 8 and 6 % of the complement are between 5 and 10 %
        ([5, 10, 8, 7, 9], [0, 0, 0, 0, 0], []),
        ([5, 10, 60, 92], [0, 0, 20, 100], []),  # structures of every size, such as tumours on tiles
        ([5, 10, 100], [0, 0, 100], []),  # its complement is no structure: a picture filled by the class
        ([5, 10, 92], [0, 0, 50], []),  # a large structure that ends inside the picture
        ([92, 94], [100, 100], []),  # all of the site: another finding
    ],
)
def test_inverted_masks_among_others_are_a_warning(shares: list[int], edges: list[int], inverted: list[str]) -> None:
    cases = tuple(
        CaseFacts(
            Case("a", str(number), Path("x.png"), None, str(number)),
            mask=MaskFacts(pixels={0: 100 - share, 1: share}, edge={0: 100 - edge, 1: edge}),
        )
        for number, (share, edge) in enumerate(zip(shares, edges, strict=True))
    )
    facts = SiteFacts(Site("a", Path(), tuple(one.case for one in cases)), cases, False, (), (), ())
    found = list(partly_inverted(facts, faulty.Study(faulty.LabelMap({"lesion": [1]}), ImageOptions())))
    assert [case for one in found for case in one.cases] == inverted
    assert all("'lesion' fills more than half" in one.text and "invert these masks" in one.text for one in found)


RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


@pytest.mark.parametrize(
    ("palette", "ids", "warned"),
    [
        ([RED, GREEN], {}, False),
        ([GREEN, RED], {}, True),
        ([GREEN, RED], {"organ": [2], "lesion": [1]}, False),  # the site gives its own ids
        ([RED, GREEN], {"organ": [2], "lesion": [1]}, False),  # the colours only repeat the ids
        ([BLUE, (9, 8, 7)], {}, False),
    ],
)
def test_a_colour_that_means_different_classes_at_two_sites_is_a_warning(
    palette: list[tuple[int, int, int]], ids: dict[str, list[int]], warned: bool
) -> None:
    labels = faulty.LabelMap({"organ": [1], "lesion": [2]})
    study = faulty.Study(labels, ImageOptions(), site_labels={"b": faulty.LabelMap(ids)} if ids else {})
    sites = []
    for name, colours in (("a", [RED, GREEN]), ("b", palette)):
        stored = Stored((4, 4), 3, 8, 1, ((0, 0, 0), *colours))
        case = Case(name, "p", Path("x.png"), None, "p")
        facts = CaseFacts(case, mask=MaskFacts(stored=stored, pixels={0: 9, 1: 4, 2: 3}))
        sites.append(SiteFacts(Site(name, Path(), (case,)), (facts,), False, (), (), ()))
    found = [str(one) for one in colours_of_other_classes(sites, study)]
    assert len(found) == warned
    assert all("(0, 255, 0) means 'lesion' in the palettes of its masks (id 2) and 'organ' in" in one for one in found)
