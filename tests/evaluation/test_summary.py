import pytest

from pfedsam.core.errors import DataError
from pfedsam.evaluation.scores import CaseScores, ClassScores
from pfedsam.evaluation.summary import summarize_site, summarize_sites, worst_site


def case(*, unit="px", **dice: float | None) -> CaseScores:
    """A case whose IoU is half its Dice; its distances are ten times it, undefined where Dice is 0 or None."""
    classes = {
        name: ClassScores(
            dice=value,
            iou=None if value is None else value / 2,
            hd95=10 * value if value else None,
            assd=10 * value if value else None,
        )
        for name, value in dice.items()
    }
    return CaseScores(case="a", classes=classes, unit=unit)


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
    assert site.classes["lesion"].undefined == {"dice": 1, "iou": 1, "hd95": 2, "assd": 2}
    assert site.undefined == {"dice": 1, "iou": 1, "hd95": 2, "assd": 2}
    assert site.mean.hd95 == pytest.approx(7.0)


def test_a_class_that_no_case_has_is_none():
    site = summarize_site([case(organ=0.8, lesion=None)])
    assert site.classes["lesion"].mean.dice is None
    assert site.mean.dice == pytest.approx(0.8)


def test_millimetres_and_pixels_are_never_averaged_together():
    site = summarize_site([case(organ=0.8, unit="mm"), case(organ=0.6, unit="px")])
    assert site.unit == "mixed"
    assert site.mean.hd95 is None
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
    assert federation.mean.unit == "mixed"
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
