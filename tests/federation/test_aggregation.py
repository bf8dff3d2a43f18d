import itertools
import re
from dataclasses import replace

import pytest
import torch

from pfedsam.core.errors import RunError, UpdateError
from pfedsam.core.tensors import digest
from pfedsam.federation.aggregation import (
    Annotations,
    TooFewUpdatesError,
    accept,
    check_registration,
    combine_by_class,
    open_messages,
    weighted_mean,
)
from pfedsam.federation.codec import Codec
from pfedsam.federation.update import Update, UpdateSpec, encode


def one(site, value, cases, dtype=torch.float32):
    return Update(site, 0, {"w": torch.tensor(value, dtype=dtype)}, cases)


def test_weighted_mean_by_hand():
    mean = weighted_mean([one("a", [1.0, 0.0], 2), one("b", [4.0, 3.0], 1)])
    assert mean["w"].tolist() == [2.0, 1.0]  # (2*1 + 1*4) / 3, (2*0 + 1*3) / 3
    assert mean["w"].dtype == torch.float32


def test_the_mean_of_half_floats_is_summed_in_double():
    mean = weighted_mean([one(f"s{i}", [60000.0], 1, torch.float16) for i in range(5)])  # the sum overflows float16
    assert mean["w"].tolist() == [60000.0]
    assert mean["w"].dtype == torch.float16


def test_no_update_has_no_mean():
    with pytest.raises(UpdateError, match="no update to average"):
        weighted_mean([])


def test_24_orders_of_arrival_give_one_hash(updates, spec, registered):
    results = [accept(order, spec, round=3, registered=registered) for order in itertools.permutations(updates)]
    assert len(results) == 24
    assert len({digest(weighted_mean(result.updates)) for result in results}) == 1
    assert {result.accepted for result in results} == {("east", "north", "south", "west")}


def test_the_mean_itself_does_not_depend_on_the_order():
    """In float64, 1e16 + 1 - 1e16 is 0 or 1, depending on the order; in the sites' order a, b, c it is 0."""
    updates = [
        one("a", [1e16], 1, torch.float64),
        one("b", [1.0], 1, torch.float64),
        one("c", [-1e16], 1, torch.float64),
    ]
    assert {weighted_mean(order)["w"].item() for order in itertools.permutations(updates)} == {0.0}


def test_float32_in_the_order_of_arrival_would_not(updates):
    """The property above is not an accident of these numbers: the plain sum depends on the order."""
    sums = {
        digest({"w": sum(update.tensors["lora.a"] * update.cases for update in order)})
        for order in itertools.permutations(updates)
    }
    assert len(sums) > 1


@pytest.mark.parametrize("name", ["lora.a", "lora.b", "token"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 3e38])
@pytest.mark.parametrize("place", range(4))
def test_one_poisoned_site_changes_no_bit_of_the_others_mean(updates, spec, registered, name, value, place):
    poisoned = updates[place].tensors[name].clone()
    poisoned.view(-1)[0] = value
    sent = list(updates)
    sent[place] = replace(updates[place], tensors={**updates[place].tensors, name: poisoned})
    honest = updates[:place] + updates[place + 1 :]

    result = accept(sent, spec, round=3, registered=registered)
    without = accept(honest, spec, round=3, registered=registered)

    assert digest(weighted_mean(result.updates)) == digest(weighted_mean(without.updates))
    assert set(result.accepted) == {update.site for update in honest}
    assert list(result.rejected) == [updates[place].site]
    assert name in result.rejected[updates[place].site]


def test_a_replayed_update_counts_once(updates, spec, registered):
    again = [*updates, updates[1], replace(updates[1]), updates[1]]
    result = accept(again, spec, round=3, registered=registered)
    assert digest(weighted_mean(result.updates)) == digest(weighted_mean(updates))
    assert result.rejected == {}


def test_a_stale_update_beside_the_right_one_is_named_and_not_counted(updates, spec, registered):
    stale = replace(updates[1], round=2)
    result = accept([stale, *updates], spec, round=3, registered=registered)
    assert digest(weighted_mean(result.updates)) == digest(weighted_mean(updates))
    assert "round 3" in result.rejected["north"]


def test_two_different_updates_of_one_site_count_not_at_all_in_either_order(updates, spec, registered):
    other = replace(updates[2], tensors={**updates[2].tensors, "lora.b": torch.ones(3, 4)})
    for sent in ([*updates, other], [other, *updates]):
        result = accept(sent, spec, round=3, registered=registered)
        assert result.accepted == ("east", "north", "west")
        assert "2 different updates" in result.rejected["south"]
        assert digest(weighted_mean(result.updates)) == digest(weighted_mean([updates[0], updates[1], updates[3]]))


def test_a_site_cannot_raise_its_own_weight(updates, spec, registered):
    result = accept([*updates[1:], replace(updates[0], cases=10**6)], spec, round=3, registered=registered)
    assert result.accepted == ("north", "south", "west")


def test_all_refused_is_an_error_that_says_why(updates, spec, registered):
    refused = accept([replace(updates[0], round=2)], spec, round=3, registered=registered)
    assert refused.accepted == ()
    assert re.search(r"stay as they are\. site east .* for round 3", str(TooFewUpdatesError(3, refused, 1)))
    nothing = accept([], spec, round=3, registered=registered)
    assert "No other site sent an update" in str(TooFewUpdatesError(3, nothing, 1))


@pytest.mark.parametrize("cases", [0, -1, 10**12, 3.0, True, "30"])
def test_a_weight_that_is_not_sound_is_refused_at_registration(cases):
    with pytest.raises(RunError, match="site north registered with"):
        check_registration({"east": 1, "north": cases})


@pytest.mark.parametrize("name", ["fp32", "fp16", "int8", "int4"])
def test_24_orders_of_messages_give_one_hash_with_every_codec(updates, registered, name):
    codec, received = Codec(name), {key: tensor + 0.1 for key, tensor in updates[3].tensors.items()}
    spec = UpdateSpec.of(received, codec)
    messages = [(update.site, encode(update, codec, received)) for update in updates]
    results = []
    for order in itertools.permutations(messages):
        opened, unread = open_messages(dict(order), spec, received)
        assert unread == {}
        results.append(accept(opened, spec, round=3, registered=registered))
    assert len({digest(weighted_mean(result.updates)) for result in results}) == 1
    exact = weighted_mean(updates)
    mean = weighted_mean(results[0].updates)
    worst = max((mean[key].float() - exact[key].float()).abs().max().item() for key in exact)
    spread = max((u.tensors[key].float() - received[key].float()).abs().max().item() for u in updates for key in exact)
    assert worst <= spread * {"fp32": 0, "fp16": 2**-10, "int8": 0.005, "int4": 0.08}[name]


def test_a_message_that_cannot_be_read_is_one_sites_failure(updates, spec, registered):
    messages = {update.site: encode(update) for update in updates}
    messages["south"] = messages["south"][:-1]
    opened, unread = open_messages(messages, spec, {})
    assert list(unread) == ["south"]
    assert "cannot be read" in unread["south"]
    result = accept(opened, spec, round=3, registered=registered)
    assert digest(weighted_mean(result.updates)) == digest(weighted_mean([updates[0], updates[1], updates[3]]))


def test_a_message_in_another_sites_name_is_refused(updates, spec):
    messages = {"east": encode(updates[0]), "south": encode(updates[0])}
    opened, unread = open_messages(messages, spec, {})
    assert [update.site for update in opened] == [updates[0].site]
    assert unread == {
        s: f"site {s} sent an update in the name of another site." for s in messages if s != updates[0].site
    }


def of_classes(site, tokens, mlp, lora, cases):
    return Update(
        site, 0, {"tokens": torch.tensor(tokens), "mlp.1": torch.tensor(mlp), "lora": torch.tensor(lora)}, cases
    )


TENSORS = {"tokens": ("disc", "cup"), "mlp.1": ("cup",)}
BEFORE = {"tokens": torch.tensor([[9.0], [9.0]]), "mlp.1": torch.tensor([9.0]), "lora": torch.tensor([9.0])}
THREE = [
    of_classes("a", [[1.0], [2.0]], [3.0], [0.0], 2),
    of_classes("b", [[4.0], [50.0]], [60.0], [3.0], 1),
    of_classes("c", [[1.0], [5.0]], [6.0], [4.0], 4),
]


def test_what_belongs_to_a_class_is_averaged_over_the_sites_that_annotate_it_by_hand():
    filled = combine_by_class(THREE, Annotations(TENSORS, {"b": {"cup"}}), BEFORE)
    mean = weighted_mean(filled)
    assert mean["tokens"].tolist() == [[pytest.approx(10 / 7)], [4.0]]  # (2*1 + 1*4 + 4*1) / 7; (2*2 + 4*5) / 6
    assert mean["mlp.1"].tolist() == [5.0]  # (2*3 + 4*6) / 6
    assert mean["lora"].tolist() == [pytest.approx(19 / 7)]  # everybody's: (0 + 3 + 16) / 7
    for before, after in zip(THREE, filled, strict=True):
        assert (
            after.tensors["tokens"][0].tolist() == before.tensors["tokens"][0].tolist()
        )  # every site annotates the disc
        assert after.tensors["tokens"][1].tolist() == [4.0]
        assert after.tensors["lora"] is before.tensors["lora"]


def test_no_site_has_more_than_its_share_of_a_class_that_few_annotate():
    declared = [replace(one, cases=10**6 if one.site == "c" else one.cases) for one in THREE]
    filled = combine_by_class(declared, Annotations(TENSORS, {"b": {"cup"}}), BEFORE, max_share=0.5)
    assert weighted_mean(filled)["mlp.1"].tolist() == [
        4.5
    ]  # (3 + 6) / 2: half for each of the two sites that annotate the cup


def test_a_class_that_no_site_of_the_round_annotates_keeps_its_value():
    missing = {site: {"cup"} for site in "abc"}
    mean = weighted_mean(combine_by_class(THREE, Annotations(TENSORS, missing), BEFORE))
    assert mean["tokens"].tolist() == [[pytest.approx(10 / 7)], [9.0]]
    assert mean["mlp.1"].tolist() == [9.0]


@pytest.mark.parametrize("missing", [{}, {"a": set()}, {"gone": {"cup"}}])
def test_where_all_sites_of_a_round_annotate_everything_not_a_bit_changes(missing):
    filled = combine_by_class(THREE, Annotations(TENSORS, missing), BEFORE)
    assert digest(weighted_mean(filled)) == digest(weighted_mean(THREE))


def test_the_order_of_arrival_changes_no_bit_of_a_partial_mean():
    annotations = Annotations(TENSORS, {"b": {"cup"}, "c": {"disc"}})
    means = {
        digest(weighted_mean(combine_by_class(order, annotations, BEFORE))) for order in itertools.permutations(THREE)
    }
    assert len(means) == 1
