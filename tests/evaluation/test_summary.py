from dataclasses import replace

import pytest

from pfedsam.core.errors import DataError
from pfedsam.evaluation.scores import CaseScores, ClassScores
from pfedsam.evaluation.summary import Occurrence, Units, summarize_site, summarize_sites, worst_site


def case(*, unit="px", volume_unit="px", patient="p", extra=(), **dice: float | None) -> CaseScores:
    """A case whose IoU is half its Dice; its distances are ten times it, undefined where Dice is 0 or None.

    A class without Dice is absent, one of Dice 0 is missed, or found where there is none if it is named in `extra`.
    """
    classes = {
        name: ClassScores(
            dice=value,
            iou=None if value is None else value / 2,
            hd95=10 * value if value else None,
            assd=10 * value if value else None,
            nsd=value,
            volume_difference=None if value is None else 100 * value,
        )
        for name, value in dice.items()
    }
    presence = {
        name: "absent" if value is None else "both" if value else "extra" if name in extra else "missed"
        for name, value in dice.items()
    }
    return CaseScores("a", patient, classes, presence, unit, volume_unit)


def test_mean_over_cases_then_over_classes():
    # organ: (.8 + .6) / 2 = .7; lesion: the one defined case, .3; classes: .5. Pooling the three would give .567.
    site = summarize_site([case(organ=0.8, lesion=0.3), case(organ=0.6, lesion=None)])
    assert site.cases == 2
    assert site.classes["organ"].mean.dice == pytest.approx(0.7)
    assert site.classes["lesion"].mean.dice == pytest.approx(0.3)
    assert site.mean.dice == pytest.approx(0.5)
    assert site.mean.iou == pytest.approx(0.25)


def test_undefined_measures_are_counted_not_averaged():
    site = summarize_site([case(organ=0.8, lesion=0.0), case(organ=0.6, lesion=None)])
    assert site.classes["lesion"].mean.dice == 0.0  # the missed lesion counts, the absent one does not
    assert site.classes["lesion"].mean.hd95 is None
    undefined = {"dice": 1, "iou": 1, "hd95": 2, "assd": 2, "nsd": 1, "volume_difference": 1}
    assert site.classes["lesion"].undefined == {**undefined, "lesion_recall": 2}
    assert site.undefined == {**undefined, "lesion_recall": 4}
    assert site.mean.hd95 == pytest.approx(7.0)


def test_missed_extra_and_absent_are_counted_apart():
    site = summarize_site(
        [case(lesion=0.8), case(lesion=0.0), case(lesion=0.0), case(lesion=0.0, extra=("lesion",)), case(lesion=None)]
    )
    assert site.classes["lesion"].occurrence == Occurrence(present=3, missed=2, extra=1, absent=1)
    assert site.classes["lesion"].mean.hd95 == pytest.approx(8.0)  # of the one case in which it was found


def test_occurrences_are_added_over_sites():
    a, b = summarize_site([case(lesion=0.0), case(lesion=0.5)]), summarize_site([case(lesion=0.0)])
    found = summarize_sites({"a": a, "b": b}).mean.classes["lesion"].occurrence
    assert found == Occurrence(present=3, missed=2, extra=0, absent=0)


def test_what_one_site_did_not_count_is_not_known_of_all():
    old = summarize_site([case(lesion=0.5)])
    classes = {name: replace(one, occurrence=None) for name, one in old.classes.items()}
    old = replace(old, patients=None, classes=classes)
    mean = summarize_sites({"a": old, "b": summarize_site([case(lesion=0.5)])}).mean
    assert (mean.patients, mean.classes["lesion"].occurrence) == (None, None)


def test_patients_are_counted_once():
    site = summarize_site([case(organ=0.9), case(organ=0.8), case(organ=0.7, patient="q")])
    assert (site.cases, site.patients) == (3, 2)
    assert summarize_sites({"a": site, "b": site}).mean.patients == 4  # each site has patients of its own


def test_volumes_in_different_units_have_no_mean():
    volumes, images = (case(organ=0.5, unit="mm", volume_unit=unit) for unit in ("ml", "mm2"))
    site = summarize_site([volumes, images])
    assert site.units == Units("mm", "mixed")
    assert (site.mean.volume_difference, site.mean.hd95) == (None, pytest.approx(5.0))


def test_a_class_that_no_case_has_is_none():
    site = summarize_site([case(organ=0.8, lesion=None)])
    assert site.classes["lesion"].mean.dice is None
    assert site.mean.dice == pytest.approx(0.8)


def test_millimetres_and_pixels_are_never_averaged_together():
    site = summarize_site([case(organ=0.8, unit="mm"), case(organ=0.6, unit="px")])
    assert site.units == Units("mixed", "px")
    assert (site.mean.hd95, site.mean.assd) == (None, None)
    assert site.mean.nsd is None  # its tolerance is 2 mm in one case and 2 pixels in the other
    assert site.mean.dice == pytest.approx(0.7)


def test_sites_weigh_the_same_and_the_worst_is_named():
    big = summarize_site([case(organ=0.9)] * 9)
    small = summarize_site([case(organ=0.5)])
    federation = summarize_sites({"big": big, "small": small})
    assert federation.mean.mean.dice == pytest.approx(0.7)
    assert federation.mean.classes["organ"].mean.dice == pytest.approx(0.7)
    assert federation.mean.cases == 10
    assert federation.worst_site == "small"
    assert federation.spread.dice == pytest.approx(0.2 * 2**0.5)  # two values d apart: d / sqrt(2)


def test_sites_in_different_units_have_no_mean_distance():
    federation = summarize_sites(
        {"a": summarize_site([case(organ=0.9, unit="mm")]), "b": summarize_site([case(organ=0.9)])}
    )
    assert federation.mean.units.distance == "mixed"
    assert federation.mean.mean.hd95 is None


def test_one_site_has_no_spread():
    assert summarize_sites({"a": summarize_site([case(organ=0.9)])}).spread.dice is None


@pytest.mark.parametrize(
    ("dice", "worst"),
    [({"b": 0.5, "a": 0.5}, "a"), ({"a": None, "b": 0.9}, "b"), ({"a": None}, None), ({"a": 0.9, "b": 0.0}, "b")],
)
def test_worst_site(dice, worst):
    assert worst_site(dice) == worst


def test_the_order_of_cases_changes_no_bit():
    cases = [case(organ=value) for value in (0.1, 0.2, 0.3, 1e-17, 0.7)]
    assert summarize_site(cases) == summarize_site(cases[::-1])


def test_nothing_to_summarise_is_an_error():
    with pytest.raises(DataError, match="no case was scored"):
        summarize_site([])
    with pytest.raises(DataError, match="no site"):
        summarize_sites({})


def test_cases_of_different_classes_are_an_error():
    with pytest.raises(DataError, match="different classes"):
        summarize_site([case(organ=0.5), case(lesion=0.5)])
    with pytest.raises(DataError, match="different classes"):
        summarize_sites({"a": summarize_site([case(organ=0.5)]), "b": summarize_site([case(lesion=0.5)])})
