import hashlib

import torch
from hypothesis import given
from hypothesis import strategies as st

from pfedsam.core import rng

purposes = st.lists(st.one_of(st.text("ab1:", max_size=4), st.integers(-20, 20)), max_size=4)


def test_derive_is_the_first_63_bits_of_the_hash_of_tagged_parts():
    by_hand = hashlib.sha256(b"i1:7s5:northi2:12").hexdigest()
    assert rng.derive(7, "north", 12) == int(by_hand[:16], 16) // 2


@given(purposes, purposes)
def test_different_purposes_have_different_seeds(one, other):
    same = [(type(part), part) for part in one] == [(type(part), part) for part in other]
    assert (rng.derive(0, *one) == rng.derive(0, *other)) == same
    assert 0 <= rng.derive(0, *one) < 2**63


def test_generators_repeat_and_leave_the_global_ones_alone():
    before = torch.get_rng_state()
    first = torch.rand(4, generator=rng.generator(3, "a", 1))
    assert torch.equal(first, torch.rand(4, generator=rng.generator(3, "a", 1)))
    assert not torch.equal(first, torch.rand(4, generator=rng.generator(3, "a", 2)))
    assert rng.numpy_generator(3, "a").random() == rng.numpy_generator(3, "a").random()
    assert torch.equal(before, torch.get_rng_state())
