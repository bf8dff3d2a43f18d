import numpy as np
import pytest
from scipy import stats

from pfedsam.core import rng
from pfedsam.core.errors import DataError
from pfedsam.evaluation.statistics import (
    bootstrap_interval,
    clearly_positive,
    cluster_means,
    holm,
    mean_and_spread,
    paired_difference,
    percentile_interval,
    resampled_means,
    stratified_mean,
    wilcoxon_p,
)


def test_mean_and_spread_by_hand():
    assert mean_and_spread([1.0, 3.0]) == (2.0, pytest.approx(2**0.5))
    assert mean_and_spread([4.0]) == (4.0, None)
    assert mean_and_spread([]) == (None, None)


def test_sites_weigh_the_same_and_a_case_counts_once_a_seed():
    # a: (1 + 2 + 3) / 3 = 2; b: 6; mean 4.
    assert stratified_mean({"a": [[1.0, 2.0], [3.0]], "b": [[6.0]]}) == 4.0


def test_interval_agrees_with_scipy():
    values = np.random.default_rng(1).normal(0.3, 1.0, 40)
    expected = stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=20_000, rng=np.random.default_rng(2)
    ).confidence_interval
    found = bootstrap_interval({"a": [[v] for v in values]}, generator=rng.numpy_generator(0), resamples=20_000)
    assert found == pytest.approx((expected.low, expected.high), abs=0.02)


def test_interval_of_two_sites_is_that_of_their_mean():
    # Normal theory: the mean over two sites of means of n values has the variance (s1^2 / n1 + s2^2 / n2) / 4.
    generator = np.random.default_rng(3)
    a, b = generator.normal(0, 2, 400), generator.normal(1, 1, 100)
    low, high = bootstrap_interval({"a": [[v] for v in a], "b": [[v] for v in b]}, generator=rng.numpy_generator(0))
    half = 1.96 * (a.var() / 400 + b.var() / 100) ** 0.5 / 2
    assert (high - low) / 2 == pytest.approx(half, rel=0.05)
    assert (high + low) / 2 == pytest.approx((a.mean() + b.mean()) / 2, abs=0.02)


def test_the_seeds_of_one_case_are_no_new_evidence():
    generator = np.random.default_rng(4)
    values = generator.normal(0, 1, 50)
    once = bootstrap_interval({"a": [[v] for v in values]}, generator=rng.numpy_generator(0))
    thrice = bootstrap_interval({"a": [[v] * 3 for v in values]}, generator=rng.numpy_generator(0))
    assert thrice == pytest.approx(once)


def test_equal_differences_have_no_width():
    assert bootstrap_interval({"a": [[2.0], [2.0]]}, generator=rng.numpy_generator(0)) == (2.0, 2.0)


def test_a_site_with_one_patient_leaves_the_mean_without_an_interval():
    differences = {"a": [[1.0], [2.0]], "b": [[3.0, 4.0]]}
    assert bootstrap_interval(differences, generator=rng.numpy_generator(0)) is None


def test_nothing_to_compare_is_an_error():
    with pytest.raises(DataError, match="site 'b' has no case"):
        stratified_mean({"a": [[1.0]], "b": [[]]})
    with pytest.raises(DataError, match="site 'b' has no case"):
        bootstrap_interval({"a": [[1.0]], "b": []}, generator=rng.numpy_generator(0))


def test_wilcoxon_by_hand():
    # Six positive differences of different size: 1 of 2^6 sign patterns is as extreme on each side, p = 2 / 64.
    assert wilcoxon_p([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]) == pytest.approx(2 / 64)
    assert wilcoxon_p([0.0, 0.0]) == 1.0
    assert wilcoxon_p([]) is None


def test_wilcoxon_agrees_with_scipys_paired_form():
    generator = np.random.default_rng(5)
    x, y = generator.random(30), generator.random(30)
    assert wilcoxon_p(list(x - y)) == pytest.approx(stats.wilcoxon(x, y).pvalue)


def test_cluster_means():
    assert cluster_means({"a": [[1.0, 3.0], []], "b": [[5.0]]}) == [2.0, 5.0]


def test_holm_by_hand():
    # Sorted .01, .02, .04 times 3, 2, 1 -> .03, .04, .04; never decreasing.
    assert holm({"x": 0.04, "y": 0.01, "z": 0.02}) == pytest.approx({"x": 0.04, "y": 0.03, "z": 0.04})
    assert holm({"x": 0.9, "y": 0.8}) == {"x": 1.0, "y": 1.0}


def test_resampled_means_are_over_cases_then_classes():
    # Class 1 has the values 0.2 and 0.4, class 2 only 1.0: the mean of the classes' means is 0.65, with both patients in the draw.
    patients = [np.array([[0.2, 1.0]]), np.array([[0.4, np.nan]])]
    found = resampled_means(patients, generator=rng.numpy_generator(0), resamples=400)
    assert sorted(set(found.round(9))) == [0.4, 0.6, 0.65]  # the second twice, the first twice, both


def test_resampled_means_without_a_defined_value_are_no_numbers():
    assert np.isnan(resampled_means([np.array([[np.nan]])], generator=rng.numpy_generator(0))).all()
    assert np.isnan(resampled_means([], generator=rng.numpy_generator(0))).all()


def test_percentile_interval_by_hand():
    assert percentile_interval(np.arange(101.0), level=0.9) == pytest.approx((5.0, 95.0))
    assert percentile_interval(np.array([np.nan, 1.0])) == (1.0, 1.0)
    assert percentile_interval(np.array([np.nan])) is None


def test_clearly_positive_means_by_two_standard_errors() -> None:
    """Differences 0.1 and 0.3: mean 0.2, deviation 0.1414, standard error 0.1, so exactly two; 0.12 and 0.28 give 0.2 and 0.08."""
    assert not clearly_positive([0.09, 0.31])
    assert clearly_positive([0.12, 0.28])
    assert not clearly_positive([-0.12, -0.28])
    assert clearly_positive([0.1, 0.1])
    assert not clearly_positive([0.0, 0.0])


@pytest.mark.parametrize("differences", [[], [0.8]])
def test_one_pair_is_no_evidence(differences: list[float]) -> None:
    assert not clearly_positive(differences)


def test_a_false_region_counts_in_a_difference_and_a_class_that_nobody_has_does_not() -> None:
    """Truth without b and c; the second model has a false b: (0.9 - 0.7 + 1 - 0) / 2."""
    one, other = {"a": 0.9, "b": None, "c": None}, {"a": 0.7, "b": 0.0, "c": None}
    assert paired_difference(one, other) == pytest.approx(0.6)
    assert paired_difference(other, one) == pytest.approx(-0.6)
    assert paired_difference({"b": None}, {"b": None}) is None
    assert paired_difference({"b": None}, {"b": 0.0}, correct=100.0) == 100.0
