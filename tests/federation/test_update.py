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
from pfedsam.federation.codec import LOSSLESS, Codec
from pfedsam.federation.update import MAX_MAGNITUDE, Update, UpdateSpec, check, decode, encode

CODECS = [LOSSLESS, Codec("fp16"), Codec("int8"), Codec("int4", 8)]
LOSSY = CODECS[1:]
each_codec = pytest.mark.parametrize("codec", CODECS, ids=str)
lossy = pytest.mark.parametrize("codec", LOSSY, ids=str)


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
    "stale round": (lambda u: replace(u, round=2), "for round 3; round 4 is being"),
    "round of text": (lambda u: replace(u, round="3"), "for round <str>"),
    "unknown site": (lambda u: replace(u, site="ea\nst"), "site ea?st is not registered"),
    "site without a name": (lambda u: replace(u, site=None), "site <NoneType> is not registered"),
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
        assert (back.site, back.round, back.cases) == (update.site, 3, update.cases)


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
    message = encode(Update("a hospital", 12, tensors, 1234))
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


@pytest.fixture
def received(updates):
    """What the sites started the round from."""
    return {name: tensor * 0.9 + 0.01 for name, tensor in updates[3].tensors.items()}


@lossy
def test_a_message_of_changes_comes_back_close_and_keeps_shapes_and_types(updates, registered, received, codec):
    spec = UpdateSpec.of(received, codec)
    for update in updates:
        back = decode(encode(update, codec, received), spec, received)
        check(back, spec, round=3, registered=registered)
        for name, tensor in update.tensors.items():
            assert back.tensors[name].dtype == tensor.dtype
            change = (tensor.float() - received[name].float()).abs().max()
            error = (back.tensors[name].float() - tensor.float()).abs().max()
            assert error <= change * {"fp16": 2**-10, "int8": 0.005, "int4": 0.08}[codec.name] + 0.01 * (
                name == "token"
            )


def test_no_change_is_no_change(updates, received):
    for codec in LOSSY:
        still = replace(updates[0], tensors=received)
        back = decode(encode(still, codec, received), UpdateSpec.of(received, codec), received)
        assert digest(back.tensors) == digest(received)


def test_the_spec_covers_codec_and_block_and_knows_sizes(updates):
    tensors = updates[0].tensors
    specs = [UpdateSpec.of(tensors, codec) for codec in (*CODECS, Codec("int8", 32), Codec("fp32", 8))]
    assert len({spec.digest for spec in specs}) == 5  # a block says nothing about fp32
    sizes = [spec.sizes for spec in specs]
    assert sizes[0] == {"lora.a": 48, "lora.b": 48, "token": 4}
    assert sizes[1] == {"lora.a": 24, "lora.b": 24, "token": 4}
    assert sizes[2] == {"lora.a": 14, "lora.b": 14, "token": 4}
    assert sizes[3] == {"lora.a": 10, "lora.b": 10, "token": 3}  # blocks of 8: two scales and six bytes
    assert [spec.payload_bytes for spec in specs[:4]] == [100, 52, 32, 23]


@lossy
def test_changes_of_other_parameters_than_the_rounds_are_refused(updates, received, codec):
    message, spec = encode(updates[0], codec, received), UpdateSpec.of(received, codec)
    with pytest.raises(UpdateError, match="site east counted its changes from other parameters"):
        decode(message, spec, {**received, "token": received["token"] + 1})
    with pytest.raises(UpdateError, match="site east counted its changes from other parameters"):
        decode(message, spec)
    with pytest.raises(UpdateError, match="needs the shared tensors of the round"):
        encode(updates[0], codec)
    with pytest.raises(UpdateError, match="needs the shared tensors of the round"):
        encode(updates[0], codec, drop(updates[0], "token").tensors)


@pytest.mark.parametrize("sent", [*CODECS, Codec("int8", 32)], ids=str)
@pytest.mark.parametrize("agreed", [*CODECS, Codec("int8", 32)], ids=str)
def test_another_codec_or_block_than_agreed_is_refused(updates, received, sent, agreed):
    message = encode(updates[0], sent, received)
    if sent == agreed:
        decode(message, UpdateSpec.of(received, agreed), received)
        return
    with pytest.raises(UpdateError, match="site east sent an update of another form"):
        decode(message, UpdateSpec.of(received, agreed), received)


def values_of(message, change):
    values = from_bytes(message, max_bytes=10**6)[0]["values"].clone()
    return {"values": change(values)}


ENVELOPES = {
    "no cases": {"cases": 0},
    "negative cases": {"cases": -10},
    "NaN cases": {"cases": float("nan")},
    "1e12 cases": {"cases": 10**12},
    "cases of 400 digits": {"cases": 10**400},
    "cases as text": {"cases": "Mrs Canary"},
    "cases that are true": {"cases": True},
    "stale round": {"round": 2},
    "round of text": {"round": "3"},
    "unknown site": {"site": "ea\nst"},
    "site without a name": {"site": None},
    "another site's name": {"site": "west"},
    "a further entry": {"seconds": {"Mrs Canary": 1.0}},
    "another base": {"base": "0" * 16},
    "a longer base": {"base": "Mrs Canary" * 100},
}


@each_codec
@pytest.mark.parametrize("changes", ENVELOPES.values(), ids=ENVELOPES)
def test_a_malformed_envelope_is_refused_by_every_codec(updates, registered, received, codec, changes):
    spec = UpdateSpec.of(received, codec)
    message = rewrite(encode(updates[0], codec, received), **changes)
    with pytest.raises(UpdateError) as caught:
        check(decode(message, spec, received), spec, round=3, registered=registered)
    assert "Canary" not in str(caught.value)


@lossy
@pytest.mark.parametrize("change", BAD_MESSAGES.values(), ids=BAD_MESSAGES)
def test_a_bad_message_of_changes_is_refused(updates, received, codec, change):
    spec = UpdateSpec.of(received, codec)
    with pytest.raises(UpdateError) as caught:
        decode(change(encode(updates[0], codec, received)), spec, received)
    assert "Canary" not in str(caught.value)


@lossy
@pytest.mark.parametrize("change", [lambda v: v[:-1], lambda v: torch.cat([v, v[:1]]), lambda v: v[:0]])
def test_values_of_another_length_are_refused_before_they_are_read(updates, received, codec, change, monkeypatch):
    spec = UpdateSpec.of(received, codec)
    message = encode(updates[0], codec, received)
    monkeypatch.setattr(Codec, "unpack", None)
    with pytest.raises(UpdateError, match=f"sent other than {spec.payload_bytes} bytes"):
        decode(rewrite(message, values_of(message, change)), spec, received)


@pytest.mark.parametrize("codec", [Codec("int8"), Codec("int4", 8)], ids=str)
@pytest.mark.parametrize("scale", [float("nan"), float("inf"), float("-inf"), -1.0])
def test_a_scale_that_no_site_computes_is_refused(updates, registered, received, codec, scale):
    def poison(values):
        values[:2] = torch.tensor([scale], dtype=torch.float16).view(torch.uint8)
        return values

    spec = UpdateSpec.of(received, codec)
    message = encode(updates[0], codec, received)
    with pytest.raises(UpdateError, match=r"site east .*(not finite|beyond)"):
        check(
            decode(rewrite(message, values_of(message, poison)), spec, received), spec, round=3, registered=registered
        )


def test_a_huge_scale_is_refused_with_what_it_makes(updates, registered, received):
    """65504 is the largest half float: 127 of it are more than any weight."""

    def inflate(values):
        values[:2] = torch.tensor([65504.0], dtype=torch.float16).view(torch.uint8)
        return values

    spec = UpdateSpec.of(received, Codec("int8"))
    message = encode(updates[0], Codec("int8"), received)
    update = decode(rewrite(message, values_of(message, inflate)), spec, received)
    with pytest.raises(UpdateError, match=r"site east sent tensor lora\.a with values beyond 1e\+06"):
        check(update, spec, round=3, registered=registered)


@lossy
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 3e38])
def test_a_site_that_diverged_is_refused_by_name_whatever_the_codec(updates, registered, received, codec, value):
    spec = UpdateSpec.of(received, codec)
    update = decode(encode(put(value)(updates[0]), codec, received), spec, received)
    with pytest.raises(UpdateError, match=r"site east sent tensor lora\.b with values that are not finite"):
        check(update, spec, round=3, registered=registered)


@lossy
def test_a_message_of_changes_is_its_values_and_at_most_one_percent_more(codec):
    """Ninety thousand values in 60 tensors, about what `sam-tiny` shares."""
    generator = torch.Generator().manual_seed(1)
    tensors = {f"layer.{i}.lora": torch.randn(12, 128, generator=generator) for i in range(60)}
    update = Update("a hospital", 12, tensors, 1234)
    codec = replace(codec, block=64)
    message = encode(update, codec, {name: tensor * 0.99 for name, tensor in tensors.items()})
    count, blocks = 60 * 12 * 128, 60 * 12 * 128 // 64
    values = {"fp16": 2 * count, "int8": count + 2 * blocks, "int4": count // 2 + 2 * blocks}[codec.name]
    assert values < len(message) < 1.01 * values


@lossy
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(data=st.data())
def test_any_damage_to_changes_is_refused_or_harmless(updates, registered, received, codec, data):
    spec, message = UpdateSpec.of(received, codec), bytearray(encode(updates[0], codec, received))
    for place in data.draw(st.lists(st.integers(0, len(message) - 1), max_size=4)):
        message[place] = data.draw(st.integers(0, 255))
    with contextlib.suppress(UpdateError):
        check(decode(bytes(message), spec, received), spec, round=3, registered=registered)
