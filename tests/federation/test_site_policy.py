"""A site sends and accepts exactly what the approved manifest lists."""

import json
import re
from contextlib import suppress
from dataclasses import replace

import pytest
import torch

from pfedsam.core import tensors
from pfedsam.core.errors import RunError
from pfedsam.data.site_summary import BINS, SIZE_EDGES, SPACING_EDGES, ClassFrequency, Histogram, SiteSummaryFile
from pfedsam.federation.data_summary import from_site_summary, summary_names
from pfedsam.federation.manifest import StudyManifest, largest_change, parse_manifest, shared_tensors
from pfedsam.federation.messages import (
    REFUSALS,
    Reply,
    Request,
    reply_from_wire,
    reply_to_wire,
    request_from_wire,
    request_to_wire,
)
from pfedsam.federation.site_policy import MAX_PENDING, MISSED_ROUNDS, Gate, RefusedError, SitePolicy
from pfedsam.federation.update import Update, encode

STUDY = "0123456789abcdef"
START = {"lora.a": torch.ones(4, 3), "lora.b": torch.zeros(3, 4), "token": torch.full((2,), 0.5)}
OTHERWISE_EQUAL = {"data": {}, "model": {"backbone": "sam-tiny"}, "communication": {"codec": "fp32"}}
MOVED = {name: value + 0.01 for name, value in START.items()}


@pytest.fixture
def manifest() -> StudyManifest:
    return StudyManifest(
        study=STUDY,
        name="s",
        method="pfedsam",
        rounds=5,
        configuration={
            "training": {"rounds": 5},
            **OTHERWISE_EQUAL,
        },
        backbone="b" * 64,
        tensors=shared_tensors(START),
        components={"lora_a": ("lora.a",), "lora_b": ("lora.b",), "class_tokens": ("token",)},
        pipeline=("encode as fp32",),
        max_change=largest_change(START, 4e-3, 4),
        scalar_metrics={
            "join": ("cases",),
            "train": ("loss.global.total",),
            "validate": ("dice.shared",),
            "finalize": (),
            "test": (),
        },
    )


@pytest.fixture
def gate(tmp_path, manifest) -> Gate:
    gate = Gate(tmp_path, "north")
    gate.policy.approve(manifest)
    gate.release(reply_to_wire(Reply("join", STUDY, 0, {"cases": 12.0})))  # the first line of the ledger
    gate.policy.accept_broadcast(manifest, request(manifest), START)
    return gate


def request(manifest: StudyManifest, shared=START, round_: int = 0, **more) -> Request:
    return Request("train", manifest.study, manifest.digest, round_, shared=tensors.to_bytes(shared), **more)


def trained(values=MOVED, *, site: str = "north", round_: int = 0, scalar_metrics=None) -> Reply:
    update = encode(Update(site, round_, values, 12))
    return Reply(
        "train", STUDY, round_, {"loss.global.total": 0.5} if scalar_metrics is None else scalar_metrics, update
    )


def with_more(reply: Reply) -> Reply:
    """The same, with a further entry in the update's envelope."""
    values, metadata = tensors.from_bytes(reply.update, max_bytes=10**6)
    envelope = json.loads(metadata["update"]) | {"Jane Doe": 1.0}
    return replace(reply, update=tensors.to_bytes(values, metadata | {"update": json.dumps(envelope)}))


def test_what_the_manifest_lists_leaves_unchanged_and_is_in_the_ledger(gate, manifest):
    wire = reply_to_wire(trained())
    assert gate.release(wire) == wire
    _, line = gate.ledger.read()
    assert (line["sent"], line["tensors"], line["scalar_metrics"]) == (True, sorted(START), ["loss.global.total"])
    assert line["by_component"] == {"lora_a": 48, "lora_b": 48, "class_tokens": 8}  # four bytes a value
    assert line["bytes"] == sum(map(len, wire.values()))


HELD_BACK = {
    "another tensor": lambda: trained({**MOVED, "experts.0": torch.zeros(2)}),
    "a missing tensor": lambda: trained({name: MOVED[name] for name in ("lora.a", "token")}),
    "another name": lambda: trained({"lora.c" if name == "lora.b" else name: t for name, t in MOVED.items()}),
    "another shape": lambda: trained({**MOVED, "lora.a": torch.zeros(3, 4)}),
    "another type": lambda: trained({**MOVED, "lora.a": torch.zeros(4, 3, dtype=torch.float64)}),
    "not a number": lambda: trained({**MOVED, "token": torch.tensor([0.5, torch.nan])}),
    "too far": lambda: trained({name: value + 3 for name, value in START.items()}),
    "another site's name": lambda: trained(site="Jane Doe"),
    "another round": lambda: replace(trained(round_=1), round=0),
    "a number not listed": lambda: trained(scalar_metrics={"loss.global.total": 0.5, "Jane Doe": 1.0}),
    "an envelope with more": lambda: with_more(trained()),
    "an update to validate": lambda: replace(trained(), task="validate", scalar_metrics={}),
    "no update to train": lambda: replace(trained(), update=b""),
    "a study not approved": lambda: replace(trained(), study="f" * 16),
    "a study that is no id": lambda: replace(trained(), study="Jane Doe" * 1000),
    "a refusal with a rider": lambda: replace(trained(), refused="data"),
}


@pytest.mark.parametrize("what", HELD_BACK)
def test_anything_else_stays_and_is_recorded(gate, what):
    reply = HELD_BACK[what]()
    out = reply_from_wire(gate.release(reply_to_wire(reply)))
    assert (out.refused, out.update, dict(out.scalar_metrics)) == ("withheld", b"", {})
    _, line = gate.ledger.read()
    assert line["sent"] is False
    assert line["note"]
    assert len(line["study"]) <= len(STUDY)


@pytest.mark.parametrize(
    "wire",
    [
        {},
        {"head": b"{}", "update": b""},
        {"head": b"\xff", "update": b""},
        {"head": b"[" * 100000, "update": b""},
        {**reply_to_wire(trained()), "note": b"Jane Doe"},
        {"head": 3, "update": b""},
    ],
)
def test_a_message_of_another_form_stays(gate, wire):
    assert reply_from_wire(gate.release(wire)).refused == "withheld"
    assert gate.ledger.read()[-1]["sent"] is False


def test_a_refusal_leaves_as_one_word(gate):
    out = reply_from_wire(gate.release(reply_to_wire(Reply("train", STUDY, 0, refused="data"))))
    assert out.refused == "data"
    assert gate.ledger.read()[-1]["note"] == "data"


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"backbone": "c" * 64}, "other-backbone"),
        ({"configuration": {"training": {"rounds": 50}, **OTHERWISE_EQUAL}}, "other-configuration"),
        ({"rounds": 6}, "other-configuration"),
        ({"tensors": {}, "components": {}}, "other-tensors"),
        ({"scalar_metrics": {"join": ("cases", "name")}}, "other-configuration"),
        ({"max_change": 1e9}, "other-configuration"),
    ],
)
def test_a_study_that_differs_from_the_approved_one_is_refused(gate, manifest, change, word):
    offered = StudyManifest.model_validate({**manifest.model_dump(), **change})
    with pytest.raises(RefusedError) as refused:
        gate.policy.admit(Request("join", STUDY, offered.digest, 0, manifest=offered.model_dump_json().encode()))
    assert refused.value.word == word
    assert next(iter(change)) in str(refused.value)
    with pytest.raises(RefusedError):  # also where only the digest says so
        gate.policy.admit(Request("train", STUDY, offered.digest, 0))


def test_an_unapproved_study_is_kept_as_an_offer_and_not_without_end(tmp_path, manifest):
    policy = SitePolicy(tmp_path)
    for number in range(MAX_PENDING + 5):
        other = manifest.model_copy(update={"study": f"{number:016x}"})
        with pytest.raises(RefusedError) as refused:
            policy.admit(Request("join", other.study, other.digest, 0, manifest=other.model_dump_json().encode()))
        assert refused.value.word == "not-approved"
    assert len(policy.manifests("pending")) == MAX_PENDING
    policy.approve(policy.manifests("pending")[0])
    assert len(policy.manifests("pending")) == MAX_PENDING - 1


def test_an_offer_that_names_no_backbone_is_not_kept(tmp_path, manifest):
    policy = SitePolicy(tmp_path)
    for configuration in ({}, {"model": None}, {"model": {"backbone": 7}}, {**OTHERWISE_EQUAL, "data": [1]}):
        other = manifest.model_copy(update={"configuration": configuration})
        with pytest.raises(RefusedError):
            policy.admit(Request("join", STUDY, other.digest, 0, manifest=other.model_dump_json().encode()))
    assert policy.manifests("pending") == []


def test_a_foreign_file_among_the_approvals_stops_no_study_and_is_named(gate, manifest):
    (gate.policy.folder / "approved" / "0123456789abcdee.json").write_text("{}")
    assert gate.policy.admit(request(manifest)) == manifest
    with pytest.raises(RunError, match=r"0123456789abcdee\.json.*Move the file away"):
        gate.policy.manifests()


def test_what_is_no_studys_id_becomes_no_path(gate, manifest):
    (gate.policy.folder / "secret.json").write_text(manifest.model_dump_json())
    assert gate.policy.approved("../secret") is None


def test_leaving_and_coming_back(gate, manifest):
    assert gate.policy.withdraw(STUDY)
    with pytest.raises(RefusedError) as refused:
        gate.policy.admit(request(manifest))
    assert refused.value.word == "left"
    gate.policy.approve(manifest)
    assert gate.policy.admit(request(manifest)) == manifest


@pytest.mark.parametrize(
    ("shared", "part"),
    [
        ({**START, "lora.a": START["lora.a"] * 100}, "differ by"),
        ({**START, "experts": torch.zeros(2)}, "1 tensor"),
        ({name: START[name] for name in ("lora.a", "token")}, "did not send"),
        ({**START, "lora.a": torch.zeros(3, 4)}, "another shape or type"),
        ({**START, "token": torch.tensor([torch.inf, 0.5])}, "finite"),
    ],
)
def test_a_broadcast_that_training_cannot_explain_is_refused(gate, manifest, shared, part):
    with pytest.raises(RefusedError, match=part) as refused:
        gate.policy.accept_broadcast(manifest, request(manifest, shared, 1), START)
    assert refused.value.word == "bad-broadcast"
    assert tensors.digest(gate.policy.received(STUDY)) == tensors.digest(START)


def test_after_missed_rounds_the_shared_parameters_may_have_moved_further(gate, manifest):
    far = away(manifest, 1.5)
    with pytest.raises(RefusedError):
        gate.policy.accept_broadcast(manifest, request(manifest, far, 1), START)
    gate.policy.accept_broadcast(manifest, request(manifest, far, 2), START)


def away(manifest: StudyManifest, times: float):
    """The first shared parameters, all moved alike, so many times the allowed norm away."""
    count = sum(value.numel() for value in START.values())
    return {name: value + times * manifest.max_change / count**0.5 for name, value in START.items()}


def test_a_large_round_number_makes_no_room_for_a_jump(tmp_path, manifest):
    """The number of the round is the coordinator's word: it makes room for `MISSED_ROUNDS`, and for no more."""
    long = manifest.model_copy(update={"rounds": 200})
    policy = SitePolicy(tmp_path)
    policy.approve(long)
    for times in (100, MISSED_ROUNDS + 1):
        with pytest.raises(RefusedError, match=r"began with|trained last"):
            policy.accept_broadcast(long, request(long, away(long, times), 120), START)
    policy.accept_broadcast(long, request(long, away(long, MISSED_ROUNDS - 1), 120), START)


def test_no_walk_by_requests_that_train_nothing(tmp_path, manifest):
    """Each within the bound of the one before; the anchor is what the site trained last, and does not move with them."""
    policy = SitePolicy(tmp_path)
    policy.approve(manifest)
    accepted = 0
    for step in range(1, 31):
        validate = replace(request(manifest, away(manifest, 0.99 * step)), task="validate")
        with suppress(RefusedError):
            policy.accept_broadcast(manifest, validate, START)
            accepted += 1
    assert accepted == 1


DUE = {
    "round 1": (("train", 0, 0.0), True),
    "round 1 again": (("train", 0, 0.0), True),
    "round 1 with other parameters": (("train", 0, 0.01), False),
    "validation after it": (("validate", 0, 0.1), True),
    "the same validation again": (("validate", 0, 0.1), True),
    "the same validation with other parameters": (("validate", 0, 0.2), False),
    "round 2": (("train", 1, 0.1), True),
    "round 1 after round 2": (("train", 0, 0.0), False),
    "the test before the end": (("test", 1, 0.1), False),
    "a round beyond the last": (("train", 5, 0.1), False),
    "round 999999": (("train", 999_998, 0.1), False),
    "validation of round 999999": (("validate", 999_998, 0.1), False),
    "finalize at the end": (("finalize", 5, 0.3), True),
    "validation of the end with other parameters": (("validate", 5, 0.4), False),
    "the test with other parameters": (("test", 5, 0.4), False),
    "the test": (("test", 5, 0.3), True),
    "the test again": (("test", 5, 0.3), True),
    "round 4 after the test": (("train", 3, 0.3), False),
}


def test_a_coordinator_asks_for_what_was_approved_in_its_order_and_once(tmp_path, manifest):
    policy = SitePolicy(tmp_path)
    policy.approve(manifest)
    for what, ((task, round_, times), due) in DUE.items():
        asked = replace(request(manifest, away(manifest, times), round_), task=task)
        refused = None
        try:
            policy.accept_broadcast(manifest, asked, START)
        except RefusedError as error:
            refused = error.word
        assert refused == (None if due else "wrong-round"), what


ENDS = {
    "round 1": (("train", 0, 0.0, None), True),
    "an end before the round": (("train", 1, 0.1, 1), False),
    "an end before no site can have gained for the patience": (("train", 1, 0.1, 2), False),
    "an end after the approved one": (("train", 1, 0.1, 6), False),
    "the test before an end was said": (("test", 1, 0.1, None), False),
    "round 2, the last but one": (("train", 1, 0.1, 3), True),
    "round 3 with a later end": (("train", 2, 0.2, 4), False),
    "round 3 as if no end had been said": (("train", 2, 0.2, None), False),
    "round 3": (("train", 2, 0.2, 3), True),
    "round 4, which is none": (("train", 3, 0.2, 3), False),
    "validation at the end": (("validate", 2, 0.3, 3), True),
    "the test at the approved end": (("test", 5, 0.3, None), False),
    "the test with other parameters": (("test", 3, 0.4, 3), True),
    "the test again with others": (("test", 3, 0.3, 3), False),
}


def test_a_study_ends_once_and_never_after_the_approved_number_of_rounds(tmp_path, manifest):
    patient = {**manifest.configuration, "training": {"rounds": 5, "patience": 1}}
    manifest = manifest.model_copy(update={"configuration": patient})
    SitePolicy(tmp_path).approve(manifest)
    for what, ((task, round_, times, ends), due) in ENDS.items():
        policy = SitePolicy(tmp_path)  # anew: what was said is known after a restart
        asked = replace(request(manifest, away(manifest, times), round_, ends=ends), task=task)
        refused = None
        try:
            policy.accept_broadcast(manifest, asked, START)
        except RefusedError as error:
            refused = error.word
        assert refused == (None if due else "wrong-round"), what


def test_a_study_without_patience_has_exactly_its_rounds(tmp_path, manifest):
    policy = SitePolicy(tmp_path)
    policy.approve(manifest)
    policy.accept_broadcast(manifest, request(manifest), START)
    with pytest.raises(
        RefusedError,
        match=r"ends the study after 2 round\(s\), which the approved manifest with 5",
    ):
        policy.accept_broadcast(manifest, request(manifest, away(manifest, 0.1), 1, ends=2), START)


def test_a_repeated_request_gets_the_same_reply_and_no_other_does(tmp_path, manifest):
    policy = SitePolicy(tmp_path)
    policy.approve(manifest)
    asked, reply = request(manifest), trained()
    policy.accept_broadcast(manifest, asked, START)
    assert policy.history(STUDY).reply(asked) is None
    policy.history(STUDY).keep(asked, reply)
    assert policy.history(STUDY).reply(asked) == reply
    assert policy.history(STUDY).reply(request(manifest, MOVED)) is None
    assert policy.history(STUDY).reply(request(manifest, round_=1)) is None


def test_bytes_that_are_no_tensors_are_refused(gate, manifest):
    for data in (b"", b"\x00" * 100, b"\xff" * 8 + b"{}", tensors.to_bytes({"lora.a": torch.zeros(10_000)})):
        with pytest.raises(RefusedError):
            gate.policy.accept_broadcast(manifest, replace(request(manifest), shared=data), START)


def test_a_manifest_from_elsewhere_is_checked(manifest):
    good = json.loads(manifest.model_dump_json())
    for change in ({"study": "../../etc"}, {"backbone": "x"}, {"extra": 1}, {"components": {"lora_a": ["other"]}}):
        with pytest.raises(RunError):
            parse_manifest(json.dumps({**good, **change}).encode())
    with pytest.raises(RunError, match="bytes"):
        parse_manifest(b" " * (5 * 2**20))
    assert parse_manifest(json.dumps(good).encode()).digest == manifest.digest


def test_messages_come_back_equal(manifest):
    sent = replace(request(manifest), manifest=manifest.model_dump_json().encode())
    assert request_from_wire(request_to_wire(sent)) == sent
    for word in (None, *REFUSALS):
        reply = Reply("test", STUDY, 3, {} if word else {"a": 0.1, "b": None}, b"", word)
        assert reply_from_wire(reply_to_wire(reply)) == reply


SUMMARY = SiteSummaryFile(
    site="north",
    min_cases=10,
    kind="pictures",
    cases=12,
    patients=12,
    intensities=(1.0, *[0.0] * (BINS - 1)),
    sizes=Histogram(edges=SIZE_EDGES, counts=(12, *[None] * len(SIZE_EDGES))),
    depths=None,
    spacing=Histogram(edges=SPACING_EDGES, counts=(None,) * (len(SPACING_EDGES) + 1)),
    slice_distance=None,
    without_spacing=12,
    classes={"organ": ClassFrequency(annotated=True, cases=None, share=None)},
)


@pytest.fixture
def asking(manifest: StudyManifest) -> StudyManifest:
    """A study that asks for summaries of the data."""
    listed = {**manifest.scalar_metrics, "summarize": summary_names(["organ"])}
    return manifest.model_copy(update={"scalar_metrics": listed, "min_cases": 10})


def test_a_summary_leaves_as_it_is_and_is_in_the_ledger(tmp_path, asking):
    gate = Gate(tmp_path, "north")
    gate.policy.approve(asking)
    wire = reply_to_wire(Reply("summarize", STUDY, 0, from_site_summary(SUMMARY)))
    assert gate.release(wire) == wire
    (line,) = gate.ledger.read()
    assert (line["sent"], line["task"], line["scalar_metrics"]) == (True, "summarize", sorted(summary_names(["organ"])))


@pytest.mark.parametrize(
    ("change", "note"),
    [
        ({"data.sizes.1": 9}, "sizes"),
        ({"data.without_spacing": 4}, "below 10|without_spacing"),
        ({"data.class.organ.cases": 3, "data.class.organ.share": 0.5}, "below 10"),
        ({"data.class.organ.cases": 11, "data.class.organ.share": 0.5}, "computed from the counts of class"),
        ({"data.class.Jane Doe.cases": None}, "does not list"),
    ],
)
def test_a_summary_with_a_number_of_few_cases_is_withheld(tmp_path, asking, change, note):
    gate = Gate(tmp_path, "north")
    gate.policy.approve(asking)
    held = gate.release(reply_to_wire(Reply("summarize", STUDY, 0, from_site_summary(SUMMARY) | change)))
    assert reply_from_wire(held) == Reply("summarize", STUDY, 0, refused="withheld")
    (line,) = gate.ledger.read()
    assert line["sent"] is False
    assert re.search(note, line["note"])


def test_a_summary_that_the_study_does_not_list_is_withheld(gate):
    held = gate.release(reply_to_wire(Reply("summarize", STUDY, 0, from_site_summary(SUMMARY))))
    assert reply_from_wire(held).refused == "withheld"
    empty = gate.release(reply_to_wire(Reply("summarize", STUDY, 0)))
    assert reply_from_wire(empty).refused == "withheld"


def test_requests_for_the_summary_are_all_the_same_and_settle_no_parameters(tmp_path, asking):
    """They have round 0 in every round, so that a site has one reply to them."""
    policy = SitePolicy(tmp_path)
    policy.approve(asking)
    summary = Request("summarize", asking.study, asking.digest, 0)
    for what, asked, word in [
        ("the summary", summary, None),
        ("one of round 2", replace(summary, round=1), "wrong-round"),
        ("one with parameters", replace(summary, shared=tensors.to_bytes(START)), "wrong-round"),
        ("round 1", request(asking), None),
        ("round 2", request(asking, away(asking, 0.1), 1), None),
        ("the summary again", summary, None),
        ("round 1 after round 2", request(asking), "wrong-round"),
        ("round 2 with other parameters", request(asking, away(asking, 0.2), 1), "wrong-round"),
    ]:
        refused = None
        try:
            policy.accept_broadcast(asking, asked, START)
        except RefusedError as error:
            refused = error.word
        assert refused == word, what
