import contextlib
import json
import re
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pfedsam.core.errors import UpdateError
from pfedsam.core.tensors import digest, from_bytes, to_bytes
from pfedsam.federation.update import MAX_MAGNITUDE, METRICS, Update, UpdateSpec, check, decode, encode


def swap(update, name, tensor):
    return replace(update, tensors={**update.tensors, name: tensor})


def drop(update, name):
    return replace(update, tensors={key: tensor for key, tensor in update.tensors.items() if key != name})


def put(value):
    def change(update):
        tensor = update.tensors["lora.b"].clone()
        tensor[1, 2] = value
        return swap(update, "lora.b", tensor)

    return change


MALFORMED = {
    "missing tensor": (lambda u: drop(u, "lora.a"), "no value for 1 shared tensor(s), first lora.a"),
    "extra tensor": (lambda u: swap(u, "moe.up", torch.ones(1)), "does not share, first moe.up"),
    "renamed tensor": (lambda u: swap(drop(u, "lora.a"), "lora.A", u.tensors["lora.a"]), "first lora.a"),
    "no tensors": (lambda u: replace(u, tensors={}), "no value for 3 shared"),
    "a list of tensors": (lambda u: replace(u, tensors=list(u.tensors.values())), "not a table by name"),
    "wrong shape": (lambda u: swap(u, "lora.a", torch.ones(3, 4)), "float32 [3, 4]; expected is float32 [4, 3]"),
    "shape (1,)": (lambda u: swap(u, "lora.a", torch.ones(1)), "float32 [1]; expected"),
    "wrong dtype": (lambda u: swap(u, "lora.b", torch.ones(3, 4).double()), "lora.b as float64"),
    "not a tensor": (lambda u: swap(u, "lora.b", [[1.0] * 4] * 3), "lora.b as list"),
    "sparse tensor": (lambda u: swap(u, "lora.b", torch.ones(3, 4).to_sparse()), "lora.b as Tensor"),
    "NaN": (put(float("nan")), "lora.b with values that are not finite"),
    "Inf": (put(float("inf")), "lora.b with values that are not finite"),
    "-Inf": (put(float("-inf")), "lora.b with values that are not finite"),
    "3e38": (put(3e38), "lora.b with values beyond 1e+06"),
    "-3e38": (put(-3e38), "lora.b with values beyond 1e+06"),
    "no cases": (lambda u: replace(u, cases=0), "a count of 0 cases; it registered with 10"),
    "negative cases": (lambda u: replace(u, cases=-10), "a count of -10 cases"),
    "NaN cases": (lambda u: replace(u, cases=float("nan")), "a count of nan cases"),
    "1e12 cases": (lambda u: replace(u, cases=10**12), "a count of 1000000000000 cases"),
    "cases of 400 digits": (lambda u: replace(u, cases=10**400), "a count of <int> cases"),
    "cases as text": (lambda u: replace(u, cases="Mrs Canary"), "a count of <str> cases"),
    "cases that are true": (lambda u: replace(u, cases=True), "a count of <bool> cases"),
    "stale round": (lambda u: replace(u, round=2), "for round 2; round 3 is being"),
    "round of text": (lambda u: replace(u, round="3"), "for round <str>"),
    "unknown site": (lambda u: replace(u, site="ea\nst"), "site ea?st is not registered"),
    "site without a name": (lambda u: replace(u, site=None), "site <NoneType> is not registered"),
    "unknown metric": (lambda u: replace(u, metrics={"Mrs Canary": 1.0}), "a metric of another name"),
    "NaN metric": (lambda u: replace(u, metrics={"seconds": float("nan")}), "nan as seconds"),
    "metric of text": (lambda u: replace(u, metrics={"seconds": "Mrs Canary"}), "<str> as seconds"),
    "huge metric": (lambda u: replace(u, metrics={"seconds": 10**400}), "<int> as seconds"),
    "metrics as a list": (lambda u: replace(u, metrics=["seconds"]), "not a table of numbers"),
}


def test_a_sound_update_passes(updates, spec, registered):
    for update in updates:
        check(update, spec, round=3, registered=registered)


@pytest.mark.parametrize(("change", "reason"), MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_update_is_refused_with_site_and_reason(updates, spec, registered, change, reason):
    with pytest.raises(UpdateError, match=re.escape(reason)) as caught:
        check(change(updates[0]), spec, round=3, registered=registered)
    assert "site" in str(caught.value)
    assert "Canary" not in str(caught.value)


def test_the_largest_value_that_passes(updates, spec, registered):
    check(put(MAX_MAGNITUDE)(updates[0]), spec, round=3, registered=registered)
    with pytest.raises(UpdateError):
        check(put(MAX_MAGNITUDE * 1.001)(updates[0]), spec, round=3, registered=registered)


def test_a_spec_needs_tensors_that_have_a_mean():
    with pytest.raises(UpdateError, match="no shared tensors"):
        UpdateSpec.of({})
    with pytest.raises(UpdateError, match=r"step has type torch\.int64"):
        UpdateSpec.of({"step": torch.tensor(1)})


def test_the_spec_says_names_shapes_types_and_sizes(spec):
    assert {name: str(entry) for name, entry in spec.tensors.items()} == {
        "lora.a": "float32 [4, 3]",
        "lora.b": "float32 [3, 4]",
        "token": "bfloat16 [2]",
    }
    assert spec.payload_bytes == 12 * 4 + 12 * 4 + 2 * 2


def test_a_message_comes_back_equal(updates, spec, registered):
    for update in updates:
        back = decode(encode(update), spec)
        check(back, spec, round=3, registered=registered)
        assert digest(back.tensors) == digest(update.tensors)
        assert (back.site, back.round, back.cases, back.metrics) == (update.site, 3, update.cases, update.metrics)


def test_equal_updates_give_equal_messages(updates):
    turned = replace(updates[0], tensors=dict(reversed(updates[0].tensors.items())))
    assert encode(turned) == encode(updates[0])


def test_a_message_is_its_values_and_at_most_one_percent_more():
    """LoRA of rank 4 on q, k, v and the projection of 12 blocks of width 192: 96 small tensors, 295 kB."""
    tensors = {}
    for block in range(12):
        for layer in ("q", "k", "v", "proj"):
            tensors[f"vision_encoder.layers.{block}.attn.{layer}.lora_A.weight"] = torch.randn(4, 192)
            tensors[f"vision_encoder.layers.{block}.attn.{layer}.lora_B.weight"] = torch.randn(192, 4)
    message = encode(Update("a hospital", 12, tensors, 1234, dict.fromkeys(METRICS, 1 / 3)))
    values = 12 * 4 * 2 * 4 * 192 * 4
    assert values < len(message) < 1.01 * values
    assert len(message) < UpdateSpec.of(tensors).max_bytes


def test_nothing_but_shared_values_fits_in_a_message(updates, spec):
    """A canary in a tensor that is not shared makes another spec, and that message is refused."""
    smuggling = swap(updates[0], "moe.up", torch.full((7,), 1234.5))
    with pytest.raises(UpdateError, match="site east sent an update of another form or of other shared tensors"):
        decode(encode(smuggling), spec)
    with pytest.raises(UpdateError, match="of other shared tensors"):
        decode(encode(drop(updates[0], "token")), spec)


def rewrite(message, values=None, **changes):
    tensors, metadata = from_bytes(message, max_bytes=10**6)
    envelope = json.loads(metadata["update"])
    for name, value in changes.items():
        (metadata if name in metadata else envelope)[name] = value
    if "update" not in changes:
        metadata["update"] = json.dumps(envelope)
    return to_bytes(tensors if values is None else values, metadata)


BAD_MESSAGES = {
    "empty": lambda m: b"",
    "truncated": lambda m: m[:-1],
    "a pickle": lambda m: b"\x80\x04\x95" + bytes(100),
    "oversize": lambda m: m + bytes(10_000),
    "oversize values": lambda m: rewrite(m, {"values": torch.zeros(10_000, dtype=torch.uint8)}),
    "one byte more": lambda m: rewrite(m, {"values": torch.zeros(101, dtype=torch.uint8)}),
    "values of another type": lambda m: rewrite(m, {"values": torch.zeros(100, dtype=torch.int8)}),
    "values of another name": lambda m: rewrite(m, {"weights": torch.zeros(100, dtype=torch.uint8)}),
    "a second tensor": lambda m: rewrite(
        m, {"values": torch.zeros(100, dtype=torch.uint8), "image": torch.zeros(9, dtype=torch.uint8)}
    ),
    "another schema": lambda m: rewrite(m, schema="pfedsam-update-2"),
    "another spec": lambda m: rewrite(m, spec="0" * 64),
    "a field more": lambda m: rewrite(m, patient="Mrs Canary"),
    "an envelope that is no table": lambda m: rewrite(m, update="[]"),
    "an envelope that is no json": lambda m: rewrite(m, update="{"),
}


@pytest.mark.parametrize("change", BAD_MESSAGES.values(), ids=BAD_MESSAGES)
def test_a_bad_message_is_refused(updates, spec, change):
    with pytest.raises(UpdateError) as caught:
        decode(change(encode(updates[0])), spec)
    assert "Canary" not in str(caught.value)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damage_is_refused_or_harmless(updates, spec, registered, data):
    message = bytearray(encode(updates[0]))
    for place in data.draw(st.lists(st.integers(0, len(message) - 1), max_size=4)):
        message[place] = data.draw(st.integers(0, 255))
    with contextlib.suppress(UpdateError):
        check(decode(bytes(message), spec), spec, round=3, registered=registered)
