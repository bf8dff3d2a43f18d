"""The bounds on one site in one round: each by hand, and as a property for any update and any declared number of cases."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pfedsam.core.errors import UpdateError
from pfedsam.federation.bounds import Limits, bound_updates, cap_shares, change_norm, scale_factors
from pfedsam.federation.codec import Codec
from pfedsam.federation.update import Update, UpdateSpec, decode, encode

START = {"w": torch.zeros(3), "v": torch.zeros(1)}


def moved(site: str, norm: float, cases: int = 10) -> Update:
    return Update(site, 0, {"w": torch.tensor([norm, 0.0, 0.0]), "v": torch.zeros(1)}, cases)


def test_the_norm_by_hand() -> None:
    assert change_norm(START, {"w": torch.tensor([3.0, 0.0, 0.0]), "v": torch.tensor([4.0])}) == 5.0


def test_an_update_beyond_the_manifests_bound_is_refused_by_name_and_the_others_are_untouched() -> None:
    updates = [moved("a", 1.0), moved("b", 1.0), moved("evil", 2.5)]
    found = bound_updates(updates, START, Limits(max_change=2.0))
    assert found.updates == tuple(updates[:2])
    assert list(found.rejected) == ["evil"]
    assert "2.5" in found.rejected["evil"]


def test_an_update_above_three_medians_is_scaled_down_to_that() -> None:
    """Norms 1, 1, 1 and 10 with equal counts: the median is 1, so 10 becomes 3."""
    found = bound_updates([*(moved(s, 1.0) for s in "abc"), moved("d", 10.0)], START, Limits(median_factor=3.0))
    assert found.scaled == {"d": pytest.approx(0.3)}
    assert [change_norm(START, one.tensors) for one in found.updates] == pytest.approx([1.0, 1.0, 1.0, 3.0])


@pytest.mark.parametrize("honest", [1, 2, 3])
def test_a_hostile_norm_is_not_its_own_yardstick(honest: int) -> None:
    """Honest norms of 1 and a hostile one of 1599, which is scaled to 3 also where it is one of two."""
    updates = [Update(f"h{i}", 0, {"w": torch.zeros(3), "v": torch.ones(1)}, 10) for i in range(honest)]
    found = bound_updates([*updates, moved("z", 1599.0)], START, Limits(1600.0, 3.0, 0.5))
    assert found.scaled == {"z": pytest.approx(3 / 1599)}
    assert change_norm(START, found.updates[-1].tensors) == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("cases", "share"),
    [
        ({"a": 2, "b": 68, "c": 27}, 1 / 3),
        ({"a": 10, "b": 13, "c": 11}, 1 / 3),
        ({"a": 30, "b": 13, "c": 10**6, "d": 12}, 0.3),
    ],
)
def test_rounding_weights_does_not_exceed_the_largest_share(cases: dict[str, int], share: float) -> None:
    found = bound_updates([moved(site, 1.0, n) for site, n in cases.items()], START, Limits(10.0, 3.0, share))
    weights = [one.cases for one in found.updates]
    assert max(weights) / sum(weights) <= share * (1 + 1e-5)


def test_a_site_that_weighs_twice_an_even_share_is_held_to_half_of_that() -> None:
    """One of four with half of the weight: its limit is 3 x 1 x (1/4) / (1/2)."""
    norms, weights = dict.fromkeys("abcd", 1.0) | {"d": 10.0}, {"a": 1, "b": 1, "c": 1, "d": 3}
    assert scale_factors(norms, weights, 3.0) == {"d": pytest.approx(0.15)}


def test_without_the_option_nothing_is_scaled() -> None:
    assert scale_factors({"a": 1.0, "b": 99.0, "c": 1.0}, {"a": 1, "b": 1, "c": 1}, None) == {}


@pytest.mark.parametrize(
    ("cases", "max_share", "weights"),
    [
        ({"a": 10, "b": 20, "c": 30}, 0.5, {"a": 10, "b": 20, "c": 30}),  # 30 of 60 is half
        ({"a": 10, "b": 20, "c": 1_000_000}, 0.5, {"a": 10, "b": 20, "c": 30}),
        ({"a": 1, "b": 999}, 0.5, {"a": 1.0, "b": 1.0}),
        ({"a": 1, "b": 999}, 1.0, {"a": 1, "b": 999}),
        ({"a": 7}, 0.5, {"a": 7}),
        ({"a": 10, "b": 10, "c": 100, "d": 100}, 0.3, {"a": 10, "b": 10, "c": 15, "d": 15}),  # 15 of 50
        ({"a": 5, "b": 9}, 0.1, {"a": 5, "b": 5}),
    ],
)
def test_shares_by_hand(cases: dict[str, int], max_share: float, weights: dict[str, float]) -> None:
    assert cap_shares(cases, max_share) == pytest.approx(weights)


@given(
    st.lists(st.integers(1, 10**6), min_size=1, max_size=8), st.floats(0.01, 1.0, exclude_min=True)
)  # fmt: skip
def test_no_share_is_above_the_cap_and_no_order_changes(cases: list[int], max_share: float) -> None:
    named = {f"s{i}": n for i, n in enumerate(cases)}
    weights = cap_shares(named, max_share)
    largest = max(weights.values()) / sum(weights.values())
    assert largest <= max(max_share, 1 / len(cases)) * (1 + 1e-9)
    for one, other in itertools.pairwise(sorted(named, key=lambda site: named[site])):
        assert weights[one] <= weights[other] * (1 + 1e-9)


@settings(deadline=None)
@given(
    st.lists(st.floats(-1e6, 1e6, width=32), min_size=4, max_size=4),
    st.integers(1, 10**6),
    st.integers(0, 2**32 - 1),
)
def test_one_of_four_moves_the_mean_by_at_most_three_times_an_honest_round(
    values: list[float], cases: int, seed: int
) -> None:
    """Honest updates of equal norm in random directions: this is the hardest case, because their mean is the shortest."""
    generator = torch.Generator().manual_seed(seed)
    basis, _ = torch.linalg.qr(torch.randn(4, 4, generator=generator))
    honest = [Update(s, 0, {"w": basis[i][:3].clone(), "v": basis[i][3:].clone()}, 10) for i, s in enumerate("abcd")]
    evil = Update("d", 0, {"w": torch.tensor(values[:3]), "v": torch.tensor(values[3:])}, cases)

    def shift(updates: list[Update]) -> float:
        found = bound_updates(updates, START, Limits(median_factor=3.0, max_share=0.5))
        total = sum(update.cases for update in found.updates)
        mean = {n: sum(u.tensors[n].double() * u.cases for u in found.updates) / total for n in START}
        return change_norm(START, mean)

    assert shift([*honest[:3], evil]) <= 3 * shift(honest)


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_scales_tell_the_least_norm_of_what_an_encoder_wrote(name: str) -> None:
    """The bound is never above the norm, so that no honest message is refused; hostile scales are refused before they are decoded."""
    generator = torch.Generator().manual_seed(0)
    codec, received = Codec(name, 8), {"w": torch.zeros(1000)}
    spec = UpdateSpec.of(received, codec)
    for size in (1e-6, 1e-3, 1.0, 100.0):
        change = {"w": size * torch.randn(1000, generator=generator)}
        values = spec.pack(change, received)
        norm = change_norm(received, spec.unpack(values, received))
        assert spec.least_norm(values) <= norm * 1.001
        message = encode(Update("a", 0, change, 3), codec, received)
        assert decode(message, spec, received, max_change=norm).cases == 3
        if size >= 1.0:  # the scales of smaller changes are no normal half floats, and leave nothing to fear
            assert spec.least_norm(values) > 0.5 * norm
            with pytest.raises(UpdateError, match="scales"):
                decode(message, spec, received, max_change=norm / 4)
    huge = torch.full((spec.payload_bytes,), 0x7B, dtype=torch.uint8)
    assert spec.least_norm(huge) > 1e5
    assert math.isfinite(spec.least_norm(torch.full((spec.payload_bytes,), 0xFF, dtype=torch.uint8)))
