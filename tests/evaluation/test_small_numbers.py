"""What may leave a site of few cases; every expected value is counted by hand."""

from dataclasses import replace

from pfedsam.evaluation.scores import MEASURES, ClassScores
from pfedsam.evaluation.small_numbers import publishable_losses, withhold
from pfedsam.evaluation.summary import ClassSummary, Occurrence, SiteSummary, Units, sum_counts

FULL = ClassScores(0.8, 0.7, 2.0, 1.0, 0.9, 0.1, 0.5)


def site(cases: int, **absent: int) -> SiteSummary:
    """A site of so many cases, in which each class is absent in so many, and found in all others."""
    classes = {
        name: ClassSummary(FULL, dict.fromkeys(MEASURES, few), Occurrence(cases - few, 0, 0, few))
        for name, few in absent.items()
    }
    return SiteSummary(
        cases, cases, Units("mm", "ml"), FULL, classes, sum_counts(c.undefined for c in classes.values())
    )


def test_nothing_of_a_site_with_too_few_test_cases_is_told() -> None:
    found = withhold(site(9, organ=0, lesion=2), 10)
    nothing = ClassScores(None, None)
    assert (found.cases, found.patients, found.mean) == (None, None, nothing)
    assert {one.mean for one in found.classes.values()} == {nothing}
    assert set(found.undefined.values()) == {None}


def test_a_class_of_few_cases_is_withheld_and_so_is_the_mean_that_would_tell_it() -> None:
    found = withhold(site(30, organ=0, lesion=25), 10)
    assert (found.cases, found.classes["organ"].mean) == (30, FULL)
    assert found.classes["organ"].occurrence == Occurrence(30, None, None, None, None)
    assert found.classes["lesion"].mean.dice is None  # defined in five cases
    assert found.classes["lesion"].occurrence == Occurrence(None, None, None, None, None)
    assert found.mean.dice is None  # twice the mean less the organ's is the lesion's


def test_no_withheld_count_follows_from_the_undefined_cases() -> None:
    """Of 55 cases 38 were found, 2 missed, 3 extra and 12 absent: 12 + 17 undefined cases would tell the 2 and the 3."""
    undefined = {**dict.fromkeys(MEASURES, 12), "hd95": 17, "assd": 17, "lesion_recall": 15}
    organ = ClassSummary(FULL, undefined, Occurrence(40, 2, 3, 12))
    whole = SiteSummary(55, 55, Units("mm", "ml"), FULL, {"organ": organ}, sum_counts([undefined]))
    found = withhold(whole, 10)
    assert found.classes["organ"].occurrence == Occurrence(40, None, None, None, None)
    assert set(found.classes["organ"].undefined.values()) == {None}
    assert set(found.undefined.values()) == {None}


def test_undefined_cases_are_told_where_all_their_kinds_are() -> None:
    undefined = {**dict.fromkeys(MEASURES, 12), "hd95": 12, "assd": 12, "lesion_recall": 12}
    organ = ClassSummary(FULL, undefined, Occurrence(40, 0, 0, 12))
    whole = SiteSummary(52, 52, Units("mm", "ml"), FULL, {"organ": organ}, sum_counts([undefined]))
    told = withhold(whole, 10).classes["organ"]
    assert told.occurrence == Occurrence(40, None, None, 12, None)
    assert (told.undefined["dice"], told.undefined["hd95"]) == (
        12,
        None,
    )  # 12 undefined distances would tell that none was missed


def test_everything_is_told_of_a_large_site_and_where_nothing_is_withheld() -> None:
    large = site(40, organ=0, lesion=15)
    found = withhold(large, 10)
    assert (found.cases, found.mean) == (40, FULL)
    assert found.classes["lesion"].occurrence == Occurrence(25, None, None, 15, None)
    assert withhold(large, 1) is large
    assert withhold(replace(large, cases=None), 10).cases is None


def test_a_loss_over_few_cases_is_withheld_and_so_is_the_total_that_would_tell_it() -> None:
    losses = {"total": 1.0, "segmentation": 0.6, "distillation": 0.3, "proximal": 0.1}
    cases = {"total": 16, "segmentation": 16, "distillation": 2}  # the proximal term is a distance between parameters
    assert publishable_losses(losses, cases, 10) == {"segmentation": 0.6, "proximal": 0.1}
    assert publishable_losses(losses, {**cases, "distillation": 10}, 10) == losses
    assert publishable_losses(losses, cases, 1) == losses
